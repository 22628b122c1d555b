/** The pieces that request bodies of several routes are made of. Unknown members are ignored everywhere. */

import { languages } from "@mitos/engine";
import { isId, isTemplateId, limits, MitosError, resourceBounds, type SandboxId, type TemplateId } from "@mitos/protocol";
import { z } from "zod";

const idRule = "must be 1 to 64 letters, digits, '_' or '-', and begin with a letter or digit";

export const sandboxId = z.string().refine(isId, idRule) as unknown as z.ZodType<SandboxId>;
export const templateId = z
  .string()
  .refine(isTemplateId, `${idRule}; or be an image reference such as python:3.12`) as unknown as z.ZodType<TemplateId>;

export const contextId = z.string().refine(isId, idRule);
export const language = z.enum(languages);

const noNul = (text: string) => !text.includes("\0");

export const path = z
  .string()
  .min(1, "must not be empty")
  .refine(noNul, "must not hold NUL")
  .refine((text) => Buffer.byteLength(text) <= limits.pathBytesMax, `must be at most ${limits.pathBytesMax} bytes`);

export const command = z
  .string()
  .min(1, "must not be empty")
  .refine(noNul, "must not hold NUL")
  .refine((text) => Buffer.byteLength(text) <= limits.commandBytesMax, `must be at most ${limits.commandBytesMax} bytes`);

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

export const seconds = z.int().min(1, "must be at least 1");

export const terminalSide = z.int().min(1).max(65_535);

/** Above the ceiling is refused, never clamped. @throws timeout_too_large */
export function checkCeiling(requested: number | null | undefined, max: number, sandbox: string): void {
  if (!requested || max === 0 || requested <= max) return;
  throw new MitosError("timeout_too_large", {
    cause: `${requested} s were asked for, the ceiling is ${max} s`,
    context: { sandbox, requested_s: requested, max_timeout_s: max },
  });
}
