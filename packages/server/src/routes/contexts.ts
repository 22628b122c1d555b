/** Interpreters of one language side by side, each with its own state. Code runs in one of them by the header `Mitos-Context`. */

import type { Context } from "@mitos/engine";
import type { ContextJson } from "@mitos/protocol";
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import { audited } from "../audit.ts";
import type { ServerContext } from "../context.ts";
import { check, readJson } from "../http/json.ts";
import { contextId, language, path, sandboxId } from "../schemas.ts";

const params = z.object({ id: sandboxId });
const contextParams = z.object({ id: sandboxId, context: contextId });
const createBody = z.object({ language, cwd: path.optional() });

export function contextRoutes(app: FastifyInstance, server: ServerContext): void {
  app.post("/v1/sandboxes/:id/contexts", async (request) => {
    const { id } = check(params, request.params);
    const body = await readJson(request, createBody);
    const event = { sandbox_id: id, op: "create_context", detail: `language=${body.language}` };
    return await audited(server.auditFor(request.raw), event, async () =>
      contextJson(await server.engineFor(request.raw).runtime(id).createContext(body)),
    );
  });

  app.get("/v1/sandboxes/:id/contexts", async (request) => {
    const { id } = check(params, request.params);
    return (await server.engineFor(request.raw).runtime(id).listContexts()).map(contextJson);
  });

  app.post("/v1/sandboxes/:id/contexts/:context/restart", async (request) => {
    const { id, context } = check(contextParams, request.params);
    const event = { sandbox_id: id, op: "restart_context", detail: `context=${context}` };
    return await audited(server.auditFor(request.raw), event, async () =>
      contextJson(await server.engineFor(request.raw).runtime(id).restartContext(context)),
    );
  });

  app.delete("/v1/sandboxes/:id/contexts/:context", async (request) => {
    const { id, context } = check(contextParams, request.params);
    const event = { sandbox_id: id, op: "remove_context", detail: `context=${context}` };
    await audited(server.auditFor(request.raw), event, () => server.engineFor(request.raw).runtime(id).removeContext(context));
    return { status: "removed", id: context };
  });
}

function contextJson({ id, language, cwd, isDefault }: Context): ContextJson {
  return { id, language, cwd, default: isDefault };
}
