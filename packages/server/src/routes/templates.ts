import { isDeepStrictEqual } from "node:util";
import type { Actions, BuildOptions, BuildStep, Digest, Template, TemplateRequest, Workload } from "@mitos/engine";
import { isImageReference, MitosError, type PushedJson, resourceDefaults, type TemplateJson } from "@mitos/protocol";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { z } from "zod";
import { audited } from "../audit.ts";
import type { ServerContext } from "../context.ts";
import { check, readJson } from "../http/json.ts";
import { tolerate } from "../http/tolerance.ts";
import { idempotencyKey, once } from "../idempotency.ts";
import { checkNetwork } from "../network.ts";
import { argv, buildSteps, command, env, imageName, imageReference, resources, templateId, warmCode } from "../schemas.ts";
import { templateJson } from "../shapes.ts";
import { answerEvents, answerPastEvents, wantsEvents } from "../stream/build-events.ts";

/** 0 and an empty path are not said, as published clients send them. */
const ready = z
  .object({
    kind: z.enum(["http", "port", "command"]).default("http"),
    port: z.int().min(0).max(65_535).default(0),
    path: z.string().max(4096).default("/"),
    expect: z.int().min(0).max(599).default(0),
    command: command.or(z.literal("")).default(""),
    timeout_seconds: z.int().min(0).max(86_400).default(0),
  })
  .refine(({ kind, port }) => kind === "command" || port > 0, { path: ["port"], message: "must be 1 to 65535" })
  .refine((wire) => (wire.kind === "command") === (wire.command !== ""), {
    path: ["command"],
    message: "is what a check of the kind command has, and no other",
  })
  .transform(({ kind, port, path, expect, command, timeout_seconds }): Workload["ready"] => {
    const timeoutSeconds = timeout_seconds || 120;
    switch (kind) {
      case "http":
        return { kind, port, path: path || "/", expect: expect || 200, timeoutSeconds };
      case "port":
        return { kind, port, timeoutSeconds };
      case "command":
        return { kind, command, timeoutSeconds };
    }
  });

const noWords = z.array(z.never()).max(0);

/** What goes with a program. */
const surroundings = z.object({ env: env.nullish(), ready: ready.nullish() });

/** Without a command, and without a wish for the image's own, it is none, whatever else it says. */
const workload = z
  .object({
    command: argv.or(noWords).nullish(),
    entrypoint: z.boolean().default(false),
    env: z.unknown().optional(),
    ready: z.unknown().optional(),
  })
  .refine((wire) => !wire.entrypoint || !wire.command?.length, "has either a command or the image's entrypoint")
  .transform(({ command, entrypoint, ...rest }, wire): Workload | undefined => {
    if (!entrypoint && !command?.length) return undefined;
    // What a schema does not see inside, the body's own tolerance has left as it was sent.
    const { data, error } = surroundings.safeParse(tolerate(surroundings, rest));
    for (const { path, message } of error?.issues ?? []) wire.addIssue({ code: "custom", path, message });
    return data ? { command: command ?? [], env: data.env ?? {}, ready: data.ready ?? undefined } : z.NEVER;
  });

const templateBody = z.object({
  id: templateId,
  image: imageName.nullish(),
  build_steps: buildSteps.nullish(),
  warm: warmCode.nullish(),
  no_cache: z.boolean().default(false),
  pull: z.boolean().default(false),
  init_wait_seconds: z.int().nullish(),
  // Checked apart, since its errors are told in words of their own.
  network: z.unknown().optional(),
  workload: workload.nullish(),
  resources: resources.nullish(),
});

const templateParams = z.object({ id: templateId });
const eventsQuery = z.object({ follow: z.enum(["true", "false"]).default("false") });
const pushBody = z.object({ reference: imageReference });

export function templateRoutes(app: FastifyInstance, context: ServerContext): void {
  app.post("/v1/templates", async (request, reply) => {
    const { definition, ...options } = toRequest(await readJson(request, templateBody, "ignored"));
    const key = idempotencyKey(request);
    if (!wantsEvents(request)) return await createOnce(context, request, definition, options, key);
    return await answerEvents(
      context,
      { request, reply },
      (stream) => createOnce(context, request, definition, { ...options, ...stream }, key),
      (template) => ({ template }),
    );
  });

  app.get("/v1/templates", async (request) => context.engineFor(request.raw).listTemplates().map(templateJson));

  app.delete("/v1/templates/:id", async (request) => {
    const { id } = check(templateParams, request.params);
    const event = { sandbox_id: "", op: "delete_template", detail: `template=${id}` };
    await audited(context.auditFor(request.raw), event, () => context.engineFor(request.raw).deleteTemplate(id));
    return { status: "deleted", id };
  });

  app.get("/v1/templates/:id/events", { exposeHeadRoute: false }, async (request, reply) => {
    const { id } = check(templateParams, request.params);
    const { follow } = check(eventsQuery, request.query);
    const engine = context.engineFor(request.raw);
    return await answerPastEvents(context, { request, reply }, (signal) => engine.buildEvents(id, { follow: follow === "true" }, signal));
  });

  app.post("/v1/templates/:id/push", async (request, reply) => {
    const { id } = check(templateParams, request.params);
    const { reference } = await readJson(request, pushBody);
    const event = { sandbox_id: "", op: "push_template", detail: `template=${id} reference=${reference}` };
    const push = async (options?: Pick<BuildOptions, "signal" | "onEvent">): Promise<PushedJson> =>
      audited(context.auditFor(request.raw), event, async () => {
        const pushed = await context.engineFor(request.raw).pushTemplate(id, reference, options);
        return { reference: pushed.reference, digest: pushed.digest };
      });
    return wantsEvents(request) ? await answerEvents(context, { request, reply }, push, (pushed) => pushed) : await push();
  });
}

/** What stays out of the definition decides only how it is built now. */
function toRequest(body: z.infer<typeof templateBody>): BuildOptions & { readonly definition: TemplateRequest } {
  const steps = body.build_steps?.length ? body.build_steps : undefined;
  return {
    definition: {
      id: body.id,
      image: body.image ?? undefined,
      steps,
      warm: body.warm ?? undefined,
      network: checkNetwork(body.network),
      workload: body.workload ?? undefined,
      resources: { ...resourceDefaults, ...body.resources },
    },
    noCache: body.no_cache,
    pull: body.pull,
  };
}

async function createOnce(
  context: ServerContext,
  request: FastifyRequest,
  definition: TemplateRequest,
  options: BuildOptions,
  key: string | undefined,
): Promise<TemplateJson> {
  const engine = context.engineFor(request.raw);
  const { id, image, steps = [] } = definition;
  const templateOf = (id: string) => engine.listTemplates().find((template) => template.id === id);
  const find = (resource: string) => {
    const template = templateOf(resource);
    return template && templateJson(template);
  };
  const create = async () => {
    const detail = [
      `template=${id}`,
      ...(image === undefined ? [] : [`image=${image}`]),
      ...(steps.length > 0 ? [`steps=${steps.length}`] : []),
    ];
    const event = { sandbox_id: "", op: "create_template", detail: detail.join(" ") };
    const template = await audited(context.auditFor(request.raw), event, async () => {
      await requireContexts(engine, steps);
      using _place = isBuilt(definition, templateOf(id), options)
        ? context.builds.take("create_template", `template ${id}`, context.auth?.callerOf(request.raw))
        : undefined;
      return await engine.createTemplate(definition, options);
    });
    return { resource: template.id, answer: templateJson(template) };
  };
  return await once(engine.idempotency, "template", key, { ids: [], find, create });
}

/** Before anything is built: the files of the last step are not to be missed after all others have run. @throws not_found */
async function requireContexts(engine: Actions, steps: readonly BuildStep[]): Promise<void> {
  const known = new Set<Digest>();
  for (const [index, step] of steps.entries()) {
    if (step.kind !== "copy" || known.has(step.context)) continue;
    if (!(await engine.hasContext(step.context))) {
      throw new MitosError("not_found", {
        message: "the files of a copy step are not on this server",
        cause: `build_steps.${index} copies ${step.source}, and no context ${step.context} is known`,
        remediation: `Send its files as a tar with PUT /v1/contexts/${step.context}, then send the request again.`,
        context: { op: "create_template", step: index, digest: step.context },
      });
    }
    known.add(step.context);
  }
}

/** The host's files, which are made into a template in a moment, and what is there already take no place among the builds. */
function isBuilt(wanted: TemplateRequest, existing: Template | undefined, { noCache, pull }: BuildOptions): boolean {
  const isOfHost = wanted.image === undefined && !wanted.steps && !wanted.warm && !isImageReference(wanted.id);
  if (isOfHost) return false;
  return !(existing?.ready && isDeepStrictEqual(definitionOf(existing), definitionOf(wanted))) || Boolean(noCache || pull);
}

/** As it would come back from a database: without members that are undefined. */
function definitionOf({ image, steps, warm, network, workload, resources }: TemplateRequest): unknown {
  return JSON.parse(JSON.stringify({ image, steps, warm, network, workload, resources }));
}
