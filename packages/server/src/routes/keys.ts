/** `/v1/keys` makes, lists and revokes keys; `/v1/whoami` tells a caller whose key it holds. */

import { type ApiKey, type Keys, scopes } from "@mitos/engine";
import { type KeyJson, MitosError, type NewKeyJson } from "@mitos/protocol";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { z } from "zod";
import { audited } from "../audit.ts";
import type { Auth } from "../auth/auth.ts";
import type { ServerContext } from "../context.ts";
import { check, readJson } from "../http/json.ts";

const text = z.string().max(200);
const limit = z.int().optional();

const createBody = z.object({
  name: text,
  owner: text.optional(),
  organisation: text.optional(),
  scopes: z.array(z.enum(scopes)).min(1),
  ttl_seconds: z.int().default(0),
  limits: z
    .object({ max_sandboxes: limit, max_memory_mib: limit, max_streams: limit, requests_per_second: limit })
    .default({})
    .transform((wire) => ({
      maxSandboxes: wire.max_sandboxes,
      maxMemoryMiB: wire.max_memory_mib,
      maxStreams: wire.max_streams,
      requestsPerSecond: wire.requests_per_second,
    })),
});

const listQuery = z.object({ organisation: text.optional() });
const params = z.object({ id: z.string().max(64) });

export function keyRoutes(app: FastifyInstance, context: ServerContext): void {
  const { engine } = context;

  app.get("/v1/whoami", async (request) => keyJson(engine.keys, requireAuth(context).callerOf(request.raw)));

  app.post("/v1/keys", async (request): Promise<NewKeyJson> => {
    const caller = requireAuth(context).callerOf(request.raw);
    const {
      ttl_seconds: ttlSeconds,
      owner = caller.owner,
      organisation = caller.organisation,
      ...body
    } = await readJson(request, createBody);
    const { key, record } = await auditedKey(request, "create_key", `owner=${owner} organisation=${organisation}`, async () =>
      engine.keys.create({ ...body, owner, organisation, ttlSeconds }),
    );
    return { ...keyJson(engine.keys, record), key };
  });

  app.get("/v1/keys", async (request): Promise<{ keys: KeyJson[] }> => {
    requireAuth(context);
    const { organisation } = check(listQuery, request.query);
    const rows = engine.keys.list().filter((record) => organisation === undefined || record.organisation === organisation);
    return { keys: rows.map((record) => keyJson(engine.keys, record)) };
  });

  app.delete("/v1/keys/:id", async (request) => {
    const auth = requireAuth(context);
    const { id } = check(params, request.params);
    await auditedKey(request, "revoke_key", `id=${id}`, async () => engine.keys.revoke(id));
    auth.cutStreams(id);
    return { status: "revoked", id };
  });

  function auditedKey<T>(request: FastifyRequest, op: string, detail: string, action: () => Promise<T>): Promise<T> {
    return audited(context.auditFor(request.raw), { sandbox_id: "", op, detail }, action);
  }
}

/** @throws not_supported: whoever reaches a server without keys could otherwise make one for the time when it has them */
function requireAuth({ auth }: ServerContext): Auth {
  if (auth) return auth;
  throw new MitosError("not_supported", {
    message: "this server uses no keys",
    cause: "it was started without --auth",
    remediation: "Call it without a key, or start it with `mitos serve --auth`.",
  });
}

function keyJson(keys: Keys, record: ApiKey): KeyJson {
  return {
    id: record.id,
    name: record.name,
    prefix: record.prefix,
    owner: record.owner,
    organisation: record.organisation,
    scopes: record.scopes,
    status: keys.statusOf(record),
    created_at: toTime(record.createdAtMs),
    expires_at: record.expiresAtMs === null ? null : toTime(record.expiresAtMs),
    last_used_at: record.lastUsedAtMs === null ? null : toTime(record.lastUsedAtMs),
    limits: {
      max_sandboxes: record.limits.maxSandboxes,
      max_memory_mib: record.limits.maxMemoryMiB,
      max_streams: record.limits.maxStreams,
      requests_per_second: record.limits.requestsPerSecond,
    },
  };
}

function toTime(ms: number): string {
  return new Date(ms).toISOString();
}
