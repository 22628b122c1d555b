import type { Sandbox } from "@mitos/engine";
import type { SandboxId } from "@mitos/protocol";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { z } from "zod";
import { audited } from "../audit.ts";
import type { ServerContext } from "../context.ts";
import { check } from "../http/json.ts";
import { existing, sandboxId, sandboxName } from "../schemas.ts";
import { endpointOf, sandboxDetailJson, sandboxJson, treeJson } from "../shapes.ts";

const listQuery = z.looseObject({
  state: z.enum(["starting", "running", "pausing", "paused", "resuming", "ended", "failed"]).optional(),
  parent: sandboxId.optional(),
  limit: z.coerce.number().pipe(z.int().min(1).max(1000)).optional(),
  cursor: z.string().max(200).optional(),
});

const params = z.object({ id: sandboxName });
const deleteQuery = z.object({ subtree: z.enum(["true", "false"]).default("false") });

/** @throws invalid_input, not_found for what is no id */
function sandboxOf(request: FastifyRequest): SandboxId {
  return existing(check(params, request.params).id);
}

export function sandboxRoutes(app: FastifyInstance, context: ServerContext): void {
  app.get("/v1/sandboxes", async (request, reply) => {
    const query = check(listQuery, request.query);
    const { state, parent, limit } = query;
    const rows = context
      .engineFor(request.raw)
      .list({ state, parent, metadata: metadataFilter(query) })
      .toSorted(byCreation);
    const after = query.cursor === undefined ? undefined : parseCursor(query.cursor);
    const rest = after ? rows.filter((row) => byCreation(row, after) > 0) : rows;
    const page = limit === undefined ? rest : rest.slice(0, limit);
    const last = page.at(-1);
    if (last && page.length < rest.length) reply.header("X-Next-Cursor", cursorOf(last));
    const endpoint = endpointOf(request);
    return page.map((row) => sandboxJson(row, endpoint));
  });

  app.get("/v1/sandboxes/:id", async (request) => {
    const id = sandboxOf(request);
    return sandboxDetailJson(context.engineFor(request.raw).get(id), endpointOf(request));
  });

  app.get("/v1/sandboxes/:id/tree", async (request) => {
    const id = sandboxOf(request);
    return treeJson(context.engineFor(request.raw).tree(id), endpointOf(request));
  });

  app.get("/v1/sandboxes/:id/console", async (request, reply) => {
    const id = sandboxOf(request);
    const text = await context.engineFor(request.raw).console(id);
    // Whatever a sandbox likes to say: no browser is to take it for a page.
    return reply.type("application/octet-stream").header("x-content-type-options", "nosniff").send(Buffer.from(text));
  });

  app.delete("/v1/sandboxes/:id", async (request) => {
    const id = sandboxOf(request);
    const { subtree } = check(deleteQuery, request.query);
    const event = { sandbox_id: id, op: "terminate", detail: `subtree=${subtree}` };
    await audited(context.auditFor(request.raw), event, () =>
      context.engineFor(request.raw).terminate(id, { subtree: subtree === "true" }),
    );
    return { status: "terminated", id };
  });
}

/** `?metadata.team=a&metadata.run=7` */
function metadataFilter(query: Record<string, unknown>): Record<string, string> | undefined {
  const prefix = "metadata.";
  const wanted = Object.entries(query).filter(([key]) => key.startsWith(prefix));
  if (wanted.length === 0) return undefined;
  return check(z.record(z.string(), z.string()), Object.fromEntries(wanted.map(([key, value]) => [key.slice(prefix.length), value])));
}

type Position = Pick<Sandbox, "createdAtMs" | "id">;

function byCreation(a: Position, b: Position): number {
  return a.createdAtMs - b.createdAtMs || (a.id < b.id ? -1 : a.id > b.id ? 1 : 0);
}

/** The place after which the next page begins: it holds even when that sandbox has ended meanwhile. */
function cursorOf({ createdAtMs, id }: Position): string {
  return Buffer.from(`${createdAtMs} ${id}`).toString("base64url");
}

const position = z.object({ createdAtMs: z.coerce.number().nonnegative(), id: sandboxId });

function parseCursor(cursor: string): Position {
  const [createdAtMs, id] = Buffer.from(cursor, "base64url").toString().split(" ");
  return check(z.object({ cursor: position }), { cursor: { createdAtMs, id } }).cursor;
}
