/** Processes that run on whether anyone listens or not; their output is read by absolute offsets. */

import type { ProcessEvent, ProcessExit, ProcessRow } from "@mitos/engine";
import { limits } from "@mitos/protocol";
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import type { ServerContext } from "../context.ts";
import { isOurFault, toMitosError } from "../errors.ts";
import { check, readJson } from "../http/json.ts";
import { requestSignal } from "../http/signal.ts";
import { argv, checkCeiling, command, env, path, sandboxId, seconds, terminalSide } from "../schemas.ts";
import { follow } from "../stream/follow.ts";
import { JsonLines } from "../stream/lines.ts";

const params = z.object({ id: sandboxId });
const pid = z.coerce.number().pipe(
  z
    .int()
    .min(2)
    .max(2 ** 31 - 1),
);
const processParams = z.object({ id: sandboxId, pid });

const startBody = z
  .object({
    command: command.optional(),
    args: argv.optional(),
    cwd: path.optional(),
    env: env.nullish(),
    user: z.string().min(1).max(64).optional(),
    stdin: z.boolean().default(false),
    // Default: none, it runs until it ends or is killed.
    timeout_seconds: seconds.nullish(),
    pty: z.object({ cols: terminalSide.default(80), rows: terminalSide.default(24), term: z.string().min(1).max(64).optional() }).nullish(),
  })
  .refine((body) => (body.command === undefined) !== (body.args === undefined), "exactly one of command and args is required");

const offset = z.coerce.number().pipe(z.int().min(0)).default(0);
const outputQuery = z.object({ stdout_from: offset, stderr_from: offset, follow: z.enum(["true", "false"]).default("false") });

const stdinBody = z
  .object({ data: z.base64().default(""), close: z.boolean().default(false) })
  .refine((body) => body.data !== "" || body.close, "data or close is required");
const signalBody = z.object({ signal: z.int().min(1).max(64), group: z.boolean().default(true) });
const resizeBody = z.object({ cols: terminalSide, rows: terminalSide });

export function processRoutes(app: FastifyInstance, context: ServerContext): void {
  const { streams, shutdown } = context;

  app.get("/v1/sandboxes/:id/processes", async (request) => {
    const { id } = check(params, request.params);
    return (await context.engineFor(request.raw).runtime(id).listProcesses()).map(rowJson);
  });

  app.post("/v1/sandboxes/:id/processes", async (request) => {
    const { id } = check(params, request.params);
    const body = await readJson(request, startBody);
    checkCeiling(body.timeout_seconds, context.maxExecTimeoutSeconds, id);
    let ok = false;
    try {
      const started = await context
        .engineFor(request.raw)
        .runtime(id)
        .start({
          argv: body.args,
          shellCommand: body.command,
          cwd: body.cwd,
          env: body.env ?? {},
          user: body.user,
          stdin: body.stdin,
          pty: body.pty ?? undefined,
          timeoutMs: (body.timeout_seconds ?? 0) * 1000,
        });
      ok = true;
      return { pid: started.pid, started_unix: Math.floor(started.startedUnixMs / 1000) };
    } finally {
      context.auditFor(request.raw).record({ sandbox_id: id, op: "process_start", detail: `pty=${Boolean(body.pty)}`, ok });
    }
  });

  app.get("/v1/sandboxes/:id/processes/:pid/output", { exposeHeadRoute: false }, async (request, reply) => {
    const target = check(processParams, request.params);
    const query = check(outputQuery, request.query);
    // Before the count of its streams, which would tell that it exists.
    const runtime = context.engineFor(request.raw).runtime(target.id);
    using _place = streams.take(target.id);
    using client = requestSignal(request, reply, shutdown);
    const options = { stdoutFrom: query.stdout_from, stderrFrom: query.stderr_from, follow: query.follow === "true" };
    const events = follow(runtime.attach(target.pid, options, client.signal), {
      client: client.signal,
      shutdown,
    });

    // An unknown pid must be answered as an error, so the answer begins with the first event.
    let event = await events.next();
    const lines = new JsonLines(reply);
    lines.begin();
    try {
      for (; !event.done; event = await events.next()) {
        for (const line of eventJson(event.value)) await lines.write(line);
      }
    } catch (error) {
      const mitos = toMitosError(error);
      if (isOurFault(mitos)) context.log.error({ err: mitos.detail.reason ?? mitos, sandbox: target.id }, "following a process failed");
      // A pause, the end of the sandbox or of this server: the reader may come back at the offsets it has reached.
      await lines.write(mitos.toEnvelope()).catch(() => {});
    } finally {
      await events.return();
      lines.end();
    }
    return reply;
  });

  app.post("/v1/sandboxes/:id/processes/:pid/stdin", async (request) => {
    const target = check(processParams, request.params);
    const body = await readJson(request, stdinBody);
    await context.engineFor(request.raw).runtime(target.id).writeStdin(target.pid, Buffer.from(body.data, "base64"), body.close);
    return { status: "ok" };
  });

  app.post("/v1/sandboxes/:id/processes/:pid/signal", async (request) => {
    const target = check(processParams, request.params);
    const body = await readJson(request, signalBody);
    let ok = false;
    try {
      await context.engineFor(request.raw).runtime(target.id).signalProcess(target.pid, body.signal, body.group);
      ok = true;
    } finally {
      context.auditFor(request.raw).record({ sandbox_id: target.id, op: "signal", ok });
    }
    return { status: "ok" };
  });

  app.post("/v1/sandboxes/:id/processes/:pid/resize", async (request) => {
    const target = check(processParams, request.params);
    const body = await readJson(request, resizeBody);
    await context.engineFor(request.raw).runtime(target.id).resizeTerminal(target.pid, body.cols, body.rows);
    return { status: "ok" };
  });
}

function rowJson(row: ProcessRow): object {
  return {
    pid: row.pid,
    command: row.command,
    started_unix: Math.floor(row.startedUnixMs / 1000),
    state: row.state,
    exit_code: row.exit ? row.exit.exitCode : null,
    stdout_bytes: row.stdoutBytes,
    stderr_bytes: row.stderrBytes,
  };
}

function* eventJson(event: ProcessEvent): Generator<object> {
  switch (event.kind) {
    case "started":
      return;
    case "output":
      for (let start = 0; start < event.data.length; start += limits.outputChunkBytesMax) {
        const piece = event.data.subarray(start, start + limits.outputChunkBytesMax);
        yield { stream: event.stream, offset: event.offset + start, data: Buffer.from(piece).toString("base64") };
      }
      return;
    case "gap":
      yield { gap: { stream: event.stream, from: event.from, to: event.to } };
      return;
    case "exit":
      yield { exit: exitJson(event) };
  }
}

function exitJson(exit: ProcessExit): object {
  return {
    exit_code: exit.exitCode,
    signal: exit.signal,
    timed_out: exit.timedOut,
    exec_time_ms: exit.execTimeMs,
    ...(exit.error ? { error: exit.error } : {}),
  };
}
