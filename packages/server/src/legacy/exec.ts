import { create } from "@bufbuild/protobuf";
import type { ProcessStart } from "@mitos/engine";
import { limits, MitosError } from "@mitos/protocol";
import { sandbox as pb } from "@mitos/protocol/proto";
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import type { Call } from "../connect/call.ts";
import { execFrames, toProcessStart } from "../connect/exec.ts";
import type { ServerContext } from "../context.ts";
import { toMitosError } from "../errors.ts";
import { readJson } from "../http/json.ts";
import { checkCeiling, env, path, sandboxId, shellLine, wholeSeconds } from "../schemas.ts";
import type { JsonLines } from "../stream/lines.ts";
import { answerLines, asCall } from "./call.ts";

const execBody = z.object({
  sandbox: sandboxId,
  command: shellLine,
  working_dir: path.or(z.literal("")).nullish(),
  env: env.nullish(),
  timeout: wholeSeconds.nullish(),
});

type ExecBody = z.infer<typeof execBody>;

/** The exit code by which these clients know a time-out. */
const timedOutExitCode = 124;

export function execRoutes(app: FastifyInstance, context: ServerContext): void {
  app.post("/v1/exec", async (request, reply) => {
    const body = await readJson(request, execBody);
    const start = toStart(body, context);
    return asCall(context, { request, reply, sandbox: body.sandbox, op: "exec" }, async (call) => {
      const { exit, stdout, stderr } = await collect(start, call);
      if (exit.error) throw failed(call, exit.error);
      if (exit.exitCode === timedOutExitCode) {
        throw new MitosError("exec_timeout", { context: { sandbox: call.sandbox, timeout_s: (start.timeoutMs ?? 0) / 1000 } });
      }
      return { exit_code: exit.exitCode, stdout, stderr, exec_time_ms: exit.execTimeMs };
    });
  });

  app.post("/v1/exec/stream", async (request, reply) => {
    const body = await readJson(request, execBody);
    const start = toStart(body, context);
    return asCall(context, { request, reply, sandbox: body.sandbox, op: "exec" }, async (call) => {
      const runtime = call.runtime();
      using _place = context.streams.take(call.sandbox);
      const produce = async (lines: JsonLines) => {
        const events = atFirst(runtime.exec(start, call.signals.client), () => lines.begin());
        for await (const { msg } of execFrames(events, call.signals, context.metrics)) {
          if (msg.case === "exit") {
            const { exitCode, execTimeMs, error } = msg.value;
            await lines.write({ exit_code: exitCode, exec_time_ms: execTimeMs, error });
          } else if (msg.case) {
            await lines.write({ stream: msg.case, data: Buffer.from(msg.value).toString("base64") });
          }
        }
      };
      return await answerLines(context, reply, produce, ({ message }) => [{ exit_code: 1, error: message }]);
    });
  });
}

/** @throws timeout_too_large, invalid_input */
function toStart(body: ExecBody, { maxExecTimeoutSeconds }: ServerContext): ProcessStart {
  checkCeiling(body.timeout, maxExecTimeoutSeconds, body.sandbox);
  const request = create(pb.ExecStreamRequestSchema, {
    command: body.command,
    cwd: body.working_dir ?? "",
    env: Object.entries(body.env ?? {}).map(([key, value]) => ({ key, value })),
    timeoutSeconds: body.timeout ?? 0,
  });
  return toProcessStart(request, maxExecTimeoutSeconds, body.sandbox);
}

interface Collected {
  readonly exit: pb.ExecExit;
  readonly stdout: string;
  readonly stderr: string;
}

/** The whole output in memory, up to what one answer may hold. @throws exec_failed above that, which kills the program */
async function collect(start: ProcessStart, call: Call): Promise<Collected> {
  const output = { stdout: [] as Uint8Array[], stderr: [] as Uint8Array[] };
  const text = (stream: keyof typeof output) => Buffer.concat(output[stream]).toString();
  let total = 0;
  try {
    for await (const { msg } of execFrames(call.runtime().exec(start, call.signals.client), call.signals, call.context.metrics)) {
      if (msg.case === "exit") return { exit: msg.value, stdout: text("stdout"), stderr: text("stderr") };
      if (!msg.case) continue;
      total += msg.value.length;
      if (total > limits.messageBytesMax) throw tooMuchOutput(call);
      output[msg.case].push(msg.value);
    }
  } catch (error) {
    const mitos = toMitosError(error);
    if (mitos.code === "unavailable" && !call.signals.shutdown.aborted) throw failed(call, mitos.message);
    throw mitos;
  }
  throw failed(call, "the sandbox ended the stream without an exit");
}

function failed({ sandbox }: Call, cause: string): MitosError {
  return new MitosError("exec_failed", { cause, context: { sandbox } });
}

function tooMuchOutput({ sandbox }: Call): MitosError {
  return new MitosError("exec_failed", {
    message: "the program wrote more than one answer can hold and was killed",
    cause: `the limit is ${limits.messageBytesMax} bytes`,
    remediation: "Let it write to a file, or read its output as a stream.",
    context: { sandbox },
  });
}

/** The same items; `act` runs before the first is passed on. */
async function* atFirst<T>(items: AsyncIterable<T>, act: () => void): AsyncGenerator<T> {
  let isFirst = true;
  for await (const item of items) {
    if (isFirst) act();
    isFirst = false;
    yield item;
  }
}
