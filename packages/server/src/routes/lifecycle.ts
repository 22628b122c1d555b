import type { FastifyInstance } from "fastify";
import { z } from "zod";
import { audited } from "../audit.ts";
import type { ServerContext } from "../context.ts";
import { readJson } from "../http/json.ts";
import { checkCeiling, existing, sandboxName, seconds } from "../schemas.ts";

const sandboxBody = z.object({ sandbox: sandboxName });
const timeoutBody = z.object({ sandbox: sandboxName, timeout_seconds: seconds });

export function lifecycleRoutes(app: FastifyInstance, context: ServerContext): void {
  const { maxExecTimeoutSeconds, metrics } = context;

  app.post("/v1/set_timeout", async (request) => {
    const { sandbox: name, timeout_seconds } = await readJson(request, timeoutBody);
    const sandbox = existing(name);
    checkCeiling(timeout_seconds, maxExecTimeoutSeconds, sandbox);
    const event = { sandbox_id: sandbox, op: "set_timeout", detail: `timeout_s=${timeout_seconds}` };
    const { deadlineMs } = await audited(context.auditFor(request.raw), event, () =>
      context.engineFor(request.raw).setTimeout(sandbox, timeout_seconds),
    );
    return { status: "ok", deadline_unix: Math.floor(deadlineMs / 1000), timeout_seconds };
  });

  app.post("/v1/pause", async (request) => {
    const sandbox = existing((await readJson(request, sandboxBody)).sandbox);
    const event = { sandbox_id: sandbox, op: "pause" };
    const done = metrics.pauseSeconds.startTimer();
    await audited(context.auditFor(request.raw), event, () => context.engineFor(request.raw).pause(sandbox));
    done();
    return { status: "paused" };
  });

  app.post("/v1/resume", async (request) => {
    const sandbox = existing((await readJson(request, sandboxBody)).sandbox);
    const event = { sandbox_id: sandbox, op: "resume" };
    const done = metrics.resumeSeconds.startTimer();
    await audited(context.auditFor(request.raw), event, () => context.engineFor(request.raw).resume(sandbox));
    done();
    return { status: "running" };
  });
}
