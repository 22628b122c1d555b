import { resourceDefaults } from "@mitos/protocol";
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import { audited } from "../audit.ts";
import type { ServerContext } from "../context.ts";
import { check, readJson } from "../http/json.ts";
import { idempotencyKey, once } from "../idempotency.ts";
import { checkNetwork } from "../network.ts";
import { argv, env, resources, templateId } from "../schemas.ts";
import { templateJson } from "../shapes.ts";

const workload = z.object({
  command: argv.or(z.array(z.never()).max(0)).nullish(),
  env: env.nullish(),
  ready: z
    .object({
      port: z.int().min(1).max(65_535),
      path: z.string().max(4096).default("/"),
      expect: z.int().min(0).max(599).default(0),
      timeout_seconds: z.int().min(0).max(86_400).default(0),
    })
    .nullish(),
});

const templateBody = z.object({
  id: templateId,
  init_wait_seconds: z.int().nullish(),
  // Checked apart, since its errors are told in words of their own.
  network: z.unknown().optional(),
  workload: workload.nullish(),
  resources: resources.nullish(),
});

const templateParams = z.object({ id: templateId });

export function templateRoutes(app: FastifyInstance, context: ServerContext): void {
  app.post("/v1/templates", async (request) => {
    const engine = context.engineFor(request.raw);
    const body = await readJson(request, templateBody, "ignored");
    const policy = checkNetwork(body.network);
    const find = (id: string) => {
      const template = engine.listTemplates().find((candidate) => candidate.id === id);
      return template && templateJson(template);
    };
    const create = async () => {
      const event = { sandbox_id: "", op: "create_template", detail: `template=${body.id}` };
      const template = await audited(context.auditFor(request.raw), event, () =>
        engine.createTemplate({
          id: body.id,
          network: policy,
          workload: toWorkload(body.workload),
          resources: { ...resourceDefaults, ...body.resources },
        }),
      );
      return { resource: template.id, answer: templateJson(template) };
    };
    return once(engine.idempotency, "template", idempotencyKey(request), { ids: [], find, create });
  });

  app.get("/v1/templates", async (request) => context.engineFor(request.raw).listTemplates().map(templateJson));

  app.delete("/v1/templates/:id", async (request) => {
    const { id } = check(templateParams, request.params);
    const event = { sandbox_id: "", op: "delete_template", detail: `template=${id}` };
    await audited(context.auditFor(request.raw), event, () => context.engineFor(request.raw).deleteTemplate(id));
    return { status: "deleted", id };
  });
}

/** A workload without a command is none. */
function toWorkload(wire: z.infer<typeof workload> | null | undefined) {
  if (!wire?.command || wire.command.length === 0) return undefined;
  const { ready } = wire;
  return {
    command: wire.command,
    env: wire.env ?? {},
    ready: ready
      ? {
          kind: "http" as const,
          port: ready.port,
          path: ready.path || "/",
          expect: ready.expect || 200,
          timeoutSeconds: ready.timeout_seconds || 120,
        }
      : undefined,
  };
}
