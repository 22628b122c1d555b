/** The pieces that request bodies of several routes are made of. Unknown members are ignored everywhere. */

import { type BuildStep, type Digest, languages } from "@mitos/engine";
import { isId, isImageReference, isTemplateId, limits, MitosError, resourceBounds, type SandboxId, type TemplateId } from "@mitos/protocol";
import { z } from "zod";

const idRule = "must be 1 to 64 letters, digits, '_' or '-', and begin with a letter or digit";

export const sandboxId = z.string().refine(isId, idRule) as unknown as z.ZodType<SandboxId>;

/** Of a sandbox that is there already. It is looked up, not checked as input. @see existing */
export const sandboxName = z.string().min(1, "must not be empty");

/** A name that no sandbox can have is one that none has. @throws not_found */
export function existing(name: string): SandboxId {
  if (!isId(name)) throw new MitosError("not_found", { cause: "no sandbox can have this id" });
  return name as SandboxId;
}

export const templateId = z
  .string()
  .refine(isTemplateId, `${idRule}; or be an image reference such as python:3.12`) as unknown as z.ZodType<TemplateId>;

const referenceRule = "must be an image reference such as python:3.12 or registry.example/team/tool";

/** A name of the default registry without a tag says nothing else than the tag `latest`: only with it is it told from the name of a template. */
const withTag = (text: string) => (isImageReference(text) ? text : `${text}:latest`);

/** An image of a registry, whatever templates there are: `python` is `python:latest`. */
export const imageReference = z.string().transform(withTag).refine(isImageReference, referenceRule);

/** What a template may be made of: a name that the server gives its meaning, or an image. */
export const imageName = z
  .string()
  .transform((text) => (isId(text) ? text : withTag(text)))
  .refine(isTemplateId, `${idRule}; or ${referenceRule.replace("must ", "")}`);

export const digest = z
  .string()
  .regex(/^sha256:[0-9a-f]{64}$/, "must be sha256: and 64 lower-case hexadecimal digits") as unknown as z.ZodType<Digest>;

export const contextId = z.string().refine(isId, idRule);
export const language = z.enum(languages);

const noNul = (text: string) => !text.includes("\0");

export const path = z
  .string()
  .min(1, "must not be empty")
  .refine(noNul, "must not hold NUL")
  .refine((text) => Buffer.byteLength(text) <= limits.pathBytesMax, `must be at most ${limits.pathBytesMax} bytes`);

/** A line for the shell, to which an empty one is a line that does nothing. */
export const shellLine = z
  .string()
  .refine(noNul, "must not hold NUL")
  .refine((text) => Buffer.byteLength(text) <= limits.commandBytesMax, `must be at most ${limits.commandBytesMax} bytes`);

export const command = shellLine.min(1, "must not be empty");

export const argv = z
  .array(z.string().refine(noNul, "must not hold NUL"))
  .min(1, "must not be empty")
  .refine((words) => words[0] !== "", "must begin with a program")
  .refine(
    (words) => words.reduce((sum, word) => sum + Buffer.byteLength(word) + 1, 0) <= limits.commandBytesMax,
    `must be at most ${limits.commandBytesMax} bytes`,
  );

/** Environment variables and secrets. Values never appear in a message. */
export const env = z
  .record(z.string(), z.string())
  .refine((vars) => Object.keys(vars).length <= limits.envEntriesMax, `must have at most ${limits.envEntriesMax} entries`)
  .refine((vars) => Object.keys(vars).every((name) => /^[^=\0]+$/.test(name)), "names must not be empty or hold '=' or NUL")
  .refine((vars) => Object.values(vars).every(noNul), "values must not hold NUL")
  .refine(
    (vars) =>
      Object.entries(vars).reduce((sum, [name, value]) => sum + Buffer.byteLength(name) + Buffer.byteLength(value) + 2, 0) <=
      limits.envBytesMax,
    `must be at most ${limits.envBytesMax} bytes`,
  );

export const metadata = z
  .record(z.string().min(1).max(128), z.string())
  .refine((entries) => Object.keys(entries).length <= limits.metadataEntriesMax, `must have at most ${limits.metadataEntriesMax} entries`)
  .refine(
    (entries) => Object.values(entries).every((value) => Buffer.byteLength(value) <= limits.metadataValueBytesMax),
    `values must be at most ${limits.metadataValueBytesMax} bytes`,
  );

const bounded = ([min, max]: readonly [number, number]) => z.int().min(min).max(max);

/** 0 = not said, as published clients send it. */
const resource = (bounds: readonly [number, number]) =>
  z.union([z.literal(0), bounded(bounds)], `must be ${bounds[0]} to ${bounds[1]}`).optional();

export const resources = z
  .object({
    vcpu_count: resource(resourceBounds.vcpuCount),
    mem_size_mib: resource(resourceBounds.memSizeMiB),
    processes_max: resource(resourceBounds.processesMax),
  })
  .transform((wire) => ({
    ...(wire.vcpu_count ? { vcpuCount: wire.vcpu_count } : {}),
    ...(wire.mem_size_mib ? { memSizeMiB: wire.mem_size_mib } : {}),
    ...(wire.processes_max ? { processesMax: wire.processes_max } : {}),
  }));

/** How many children a sandbox may ask for from inside. */
export const forkBudget = z.int().min(0).max(limits.forkBudgetMax);

/** Of any size: what is too much is said by the ceiling, not by what a number can count. */
export const wholeSeconds = z.number().refine(Number.isInteger, "must be a whole number");

export const seconds = wholeSeconds.min(1, "must be at least 1");

/** What kind of file it is among its bits, as a listing tells it, is not set. */
export const fileMode = z
  .int()
  .min(0)
  .max(0o177777, "must be at most 0o177777")
  .transform((mode) => mode & 0o7777);

export const terminalSide = z.int().min(1).max(65_535);

/** Above the ceiling is refused, never clamped. @throws timeout_too_large */
export function checkCeiling(requested: number | null | undefined, max: number, sandbox: string): void {
  if (!requested || max === 0 || requested <= max) return;
  throw new MitosError("timeout_too_large", {
    cause: `${requested} s were asked for, the ceiling is ${max} s`,
    context: { sandbox, requested_s: requested, max_timeout_s: max },
  });
}

/** A name or number, with or without a group. */
const userName = z.string().regex(/^[\w.][\w.-]{0,63}(:[\w.][\w.-]{0,63})?$/, "must be a user such as app, 1000 or app:staff");

const steps = {
  run: z.object({ run: command }).transform(({ run }) => ({ kind: "run" as const, command: run })),
  env: z
    .object({ env_name: z.string(), env_value: z.string().default(""), env_expand: z.boolean().default(false) })
    .transform(({ env_name: name, env_value: value, env_expand: expand }) => ({
      kind: "env" as const,
      name,
      value,
      ...(expand ? { expand: true as const } : {}),
    })),
  workdir: z.object({ workdir: path }).transform(({ workdir }) => ({ kind: "workdir" as const, path: workdir })),
  user: z.object({ user: userName }).transform(({ user }) => ({ kind: "user" as const, user })),
  copy: z.object({ source: path, dest: path, context: digest }).transform((members) => ({ kind: "copy" as const, ...members })),
} satisfies Record<BuildStep["kind"], z.ZodType<BuildStep>>;

const stepMember = z.string().optional();

const buildStep = z
  .object({
    type: z.enum(Object.keys(steps) as BuildStep["kind"][]),
    run: stepMember,
    env_name: stepMember,
    env_value: stepMember,
    env_expand: z.boolean().optional(),
    workdir: stepMember,
    user: stepMember,
    source: stepMember,
    dest: stepMember,
    context: stepMember,
  })
  .transform(({ type, ...members }, step): BuildStep => {
    const schema = steps[type];
    // An empty one is not said, as clients with structs send it.
    const stray = Object.entries(members).find(([name, value]) => value && !Object.hasOwn(schema.in.shape, name));
    if (stray) step.addIssue({ code: "custom", path: [stray[0]], message: `belongs to no step of the type ${type}` });
    const { data, error } = schema.safeParse(members);
    for (const { path, message } of error?.issues ?? []) step.addIssue({ code: "custom", path, message });
    return data ?? z.NEVER;
  });

/** Their environment is held to the same rules as any. */
export const buildSteps = z
  .array(buildStep)
  .max(limits.buildStepsMax, `must be at most ${limits.buildStepsMax}`)
  .superRefine((all, context) => {
    const vars = all.flatMap((step) => (step.kind === "env" ? [[step.name, step.value] as const] : []));
    const { error } = env.safeParse(Object.fromEntries(vars));
    for (const { message } of error?.issues ?? []) context.addIssue({ code: "custom", message: `environment: ${message}` });
  });

/** Code that runs before a template is saved. */
export const warmCode = z
  .object({
    language,
    code: command,
    timeout_seconds: z.int().min(1).max(limits.buildStepTimeoutSeconds).default(limits.runCodeTimeoutSecondsDefault),
  })
  .transform(({ timeout_seconds: timeoutSeconds, ...wire }) => ({ ...wire, timeoutSeconds }));
