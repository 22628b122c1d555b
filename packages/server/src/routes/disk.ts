import type { DiskUsageJson, PrunedJson } from "@mitos/protocol";
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import type { ServerContext } from "../context.ts";
import { readJson } from "../http/json.ts";
import { usageTotalsJson } from "../shapes.ts";

const pruneBody = z.object({
  older_than_seconds: z
    .int()
    .min(0)
    .max(Number.MAX_SAFE_INTEGER / 1000)
    .default(0),
});

export function diskRoutes(app: FastifyInstance, context: ServerContext): void {
  app.get("/v1/usage/disk", async (request): Promise<DiskUsageJson> => {
    const usage = await context.engineFor(request.raw).diskUsage();
    const seesAll = context.auth?.callerOf(request.raw).scopes.includes("admin") ?? true;
    return {
      templates: usage.templates.map((template) => ({
        id: template.id,
        snapshot_bytes: template.snapshotBytes,
        root_bytes: template.rootBytes,
        own_bytes: template.ownBytes,
      })),
      ...(seesAll ? { totals: usageTotalsJson(usage) } : {}),
    };
  });

  app.post("/v1/prune", async (request): Promise<PrunedJson> => {
    const { older_than_seconds: seconds } = await readJson(request, pruneBody);
    let removedBytes = 0;
    let ok = false;
    try {
      ({ removedBytes } = await context.engineFor(request.raw).prune({ olderThanMs: seconds * 1000 }));
      ok = true;
    } finally {
      const detail = `older_than_seconds=${seconds}`;
      context.auditFor(request.raw).record({ sandbox_id: "", op: "prune", detail, bytes: removedBytes, ok });
    }
    return { removed_bytes: removedBytes };
  });
}
