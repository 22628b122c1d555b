import type { FastifyInstance } from "fastify";
import { z } from "zod";
import type { ServerContext } from "../context.ts";
import { readJson } from "../http/json.ts";
import { checkCeiling, sandboxId, seconds } from "../schemas.ts";

const sandboxBody = z.object({ sandbox: sandboxId });
const timeoutBody = z.object({ sandbox: sandboxId, timeout_seconds: seconds });

export function lifecycleRoutes(app: FastifyInstance, { engine, audit, metrics, maxExecTimeoutSeconds }: ServerContext): void {
  app.post("/v1/set_timeout", async (request) => {
    const { sandbox, timeout_seconds } = await readJson(request, timeoutBody);
    checkCeiling(timeout_seconds, maxExecTimeoutSeconds, sandbox);
    const { deadlineMs } = await audited(
      "set_timeout",
      sandbox,
      () => engine.setTimeout(sandbox, timeout_seconds),
      `timeout_s=${timeout_seconds}`,
    );
    return { status: "ok", deadline_unix: Math.floor(deadlineMs / 1000), timeout_seconds };
  });

  app.post("/v1/pause", async (request) => {
    const { sandbox } = await readJson(request, sandboxBody);
    const done = metrics.pauseSeconds.startTimer();
    await audited("pause", sandbox, () => engine.pause(sandbox));
    done();
    return { status: "paused" };
  });

  app.post("/v1/resume", async (request) => {
    const { sandbox } = await readJson(request, sandboxBody);
    const done = metrics.resumeSeconds.startTimer();
    await audited("resume", sandbox, () => engine.resume(sandbox));
    done();
    return { status: "running" };
  });

  async function audited<T>(op: string, sandbox: string, action: () => Promise<T>, detail = ""): Promise<T> {
    let ok = false;
    try {
      const result = await action();
      ok = true;
      return result;
    } finally {
      audit.record({ sandbox_id: sandbox, op, detail, ok });
    }
  }
}
