/** `POST /v1/fork` makes a sandbox from a template, `POST /v1/sandboxes/{id}/fork` forks a running one. */

import type { Actions, ForkRequest, Sandbox } from "@mitos/engine";
import { type ForkJson, limits, livePrefix, MitosError, newSandboxId, type SandboxId, type TemplateId, toSandboxId } from "@mitos/protocol";
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import { audited } from "../audit.ts";
import type { ServerContext } from "../context.ts";
import { check, readJson } from "../http/json.ts";
import { idempotencyKey, once } from "../idempotency.ts";
import { checkNetwork } from "../network.ts";
import { checkCeiling, env, forkBudget, metadata, resources, sandboxId, seconds, templateId } from "../schemas.ts";
import { endpointOf, sandboxJson } from "../shapes.ts";

const createBody = z.object({
  id: sandboxId,
  template: z.string(),
  env: env.nullish(),
  secrets: env.nullish(),
  timeout_seconds: seconds.nullish(),
  idle_timeout_seconds: seconds.nullish(),
  metadata: metadata.nullish(),
  fork_budget: forkBudget.nullish(),
  resources: resources.nullish(),
  network: z.unknown().optional(),
});

/** Ignoring it would leave a child with other rules than its maker believes. */
const inherited = z.null("a child has the network rules of its parent").optional();

const forkBody = z
  .object({
    id: sandboxId.optional(),
    ids: z.array(sandboxId).min(1).max(limits.forkCountMax).optional(),
    count: z.int().min(1).max(limits.forkCountMax).optional(),
    inherit_secrets: z.boolean().default(false),
    // null = no deadline; absent = what remains of the parent's.
    timeout_seconds: seconds.nullable().optional(),
    env: env.nullish(),
    fork_budget: forkBudget.nullish(),
    network: inherited,
    // Sent by published clients; the parent always stands still for the snapshot only.
    pause_source: z.boolean().optional(),
  })
  .refine((body) => body.id !== undefined || body.ids !== undefined || body.count !== undefined, "id, ids or count is required")
  .refine((body) => body.id === undefined || body.ids === undefined, "id and ids exclude each other")
  .refine(
    (body) => body.count === undefined || (body.ids?.length ?? (body.id ? 1 : body.count)) === body.count,
    "count must be the number of ids",
  )
  .refine((body) => body.ids === undefined || new Set(body.ids).size === body.ids.length, "ids must differ");

const forkParams = z.object({ id: sandboxId });

export function forkRoutes(app: FastifyInstance, context: ServerContext): void {
  const { maxExecTimeoutSeconds, metrics } = context;

  app.post("/v1/fork", async (request) => {
    const engine = context.engineFor(request.raw);
    const audit = context.auditFor(request.raw);
    const body = await readJson(request, createBody, "ignored");
    const from = parseTemplate(body.template);
    checkCeiling(body.timeout_seconds, maxExecTimeoutSeconds, body.id);
    checkCeiling(body.idle_timeout_seconds, maxExecTimeoutSeconds, body.id);
    const rules = body.network === undefined || body.network === null ? undefined : checkNetwork(body.network);
    if (rules && from.kind === "live") check(z.object({ network: inherited }), { network: body.network });
    const endpoint = endpointOf(request);
    const answer = (sandbox: Sandbox) => ({ ...sandboxJson(sandbox, endpoint), template_id: `${livePrefix}${sandbox.id}` });

    return once(engine.idempotency, "fork", idempotencyKey(request), {
      ids: [body.id],
      find: findAll(engine, (found) => answer(found[0]!)),
      create: async () => {
        const done = metrics.forkSeconds.startTimer({ kind: from.kind });
        const sandbox =
          from.kind === "live"
            ? await audited(audit, forkEvent(from.source, [body.id]), () =>
                forkOne(engine, {
                  source: from.source,
                  ids: [body.id],
                  inheritSecrets: false,
                  timeoutSeconds: body.timeout_seconds ?? undefined,
                  env: body.env ?? {},
                  forkBudget: body.fork_budget ?? 0,
                }),
              )
            : await audited(audit, { sandbox_id: body.id, op: "create", detail: `template=${from.template}` }, () =>
                engine.create({
                  template: from.template,
                  id: body.id,
                  env: body.env ?? {},
                  secrets: body.secrets ?? {},
                  timeoutSeconds: body.timeout_seconds ?? null,
                  idleTimeoutSeconds: body.idle_timeout_seconds ?? null,
                  metadata: body.metadata ?? {},
                  forkBudget: body.fork_budget ?? 0,
                  ...(body.resources ? { resources: body.resources } : {}),
                  network: rules,
                }),
              );
        done();
        return { resource: sandbox.id, answer: answer(sandbox) };
      },
    });
  });

  app.post("/v1/sandboxes/:id/fork", async (request) => {
    const engine = context.engineFor(request.raw);
    const { id: source } = check(forkParams, request.params);
    const body = await readJson(request, forkBody, "ignored");
    checkCeiling(body.timeout_seconds, maxExecTimeoutSeconds, source);
    const ids = body.ids ?? (body.id ? [body.id] : freshIds(engine, body.count ?? 1));
    const endpoint = endpointOf(request);
    const single = body.count === undefined && body.ids === undefined;
    const children = (sandboxes: readonly Sandbox[]) => sandboxes.map((child) => sandboxJson(child, endpoint));

    // A repetition knows the children, not what the first fork took.
    const find = findAll(engine, (found) =>
      single ? children(found)[0]! : ({ children: children(found), paused_ms: 0, snapshot_bytes: 0 } satisfies ForkJson),
    );
    const create = async () => {
      const done = metrics.forkSeconds.startTimer({ kind: "live" });
      const result = await audited(context.auditFor(request.raw), forkEvent(source, ids), () =>
        engine.fork({
          source,
          ids,
          inheritSecrets: body.inherit_secrets,
          timeoutSeconds: body.timeout_seconds,
          env: body.env ?? {},
          forkBudget: body.fork_budget ?? 0,
        }),
      );
      done();
      return {
        resource: result.children.map(({ id }) => id).join(","),
        answer: single
          ? children(result.children)[0]!
          : ({ children: children(result.children), paused_ms: result.pausedMs, snapshot_bytes: result.snapshotBytes } satisfies ForkJson),
      };
    };
    return once(engine.idempotency, "fork", idempotencyKey(request), { ids, find, create });
  });
}

type CreateSource = { readonly kind: "live"; readonly source: SandboxId } | { readonly kind: "create"; readonly template: TemplateId };

function parseTemplate(text: string): CreateSource {
  if (text.startsWith(livePrefix)) return { kind: "live", source: toSandboxId(text.slice(livePrefix.length), "template") };
  return { kind: "create", template: check(z.object({ template: templateId }), { template: text }).template };
}

/** Also of a fork that a sandbox asks for itself. */
export function forkEvent(source: SandboxId, children: readonly SandboxId[]) {
  return { sandbox_id: source, op: "fork", detail: `children=${children.join(",")}` };
}

async function forkOne(engine: Actions, request: ForkRequest): Promise<Sandbox> {
  const { children } = await engine.fork(request);
  const child = children[0];
  if (!child) throw new MitosError("internal", { reason: new Error("a fork of one child answered none") });
  return child;
}

/** Looks up the sandboxes of an earlier request; undefined when one of them is gone. */
function findAll(engine: Actions, answer: (found: readonly Sandbox[]) => object): (resource: string) => object | undefined {
  return (resource) => {
    const ids = resource.split(",");
    const living = new Map(engine.list().map((sandbox) => [sandbox.id as string, sandbox]));
    const found = ids.flatMap((id) => living.get(id) ?? []);
    return found.length === ids.length ? answer(found) : undefined;
  };
}

function freshIds(engine: Actions, count: number): SandboxId[] {
  const taken = new Set(engine.list().map(({ id }) => id));
  const ids: SandboxId[] = [];
  while (ids.length < count) {
    const id = newSandboxId();
    if (taken.has(id)) continue;
    taken.add(id);
    ids.push(id);
  }
  return ids;
}
