import { create } from "@bufbuild/protobuf";
import { sandbox as pb } from "@mitos/protocol/proto";
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import { runCodeStream } from "../connect/run-code.ts";
import type { ServerContext } from "../context.ts";
import { readJson } from "../http/json.ts";
import { checkCeiling, sandboxId, wholeSeconds } from "../schemas.ts";
import type { JsonLines } from "../stream/lines.ts";
import { answerLines, asCall } from "./call.ts";

const runCodeBody = z.object({ sandbox: sandboxId, code: z.string(), language: z.string().nullish(), timeout: wholeSeconds.nullish() });

/** The name of the error by which these clients learn that the stream itself was lost. */
const lossName = "KernelStreamError";

export function runCodeRoutes(app: FastifyInstance, context: ServerContext): void {
  app.post("/v1/run_code/stream", async (request, reply) => {
    const body = await readJson(request, runCodeBody);
    checkCeiling(body.timeout, context.maxExecTimeoutSeconds, body.sandbox);
    const { code, language, timeout } = body;
    const run = create(pb.RunCodeStreamRequestSchema, { code, language: language ?? "", timeoutSeconds: BigInt(timeout ?? 0) });
    return asCall(context, { request, reply, sandbox: body.sandbox, op: "run_code" }, async (call) => {
      // Before the count of its streams, which would tell that it exists.
      call.runtime();
      using _place = context.streams.take(call.sandbox);
      const produce = async (lines: JsonLines) => {
        for await (const response of runCodeStream(run, call, lossName)) {
          const line = toLine(response);
          if (line) await lines.write(line);
        }
      };
      // The exit line must come: without it the client takes the answer for cut off.
      return await answerLines(context, reply, produce, ({ message }) => [
        { kind: "error", error: { name: lossName, value: message, traceback: [] } },
        { kind: "exit", exit_code: 1 },
      ]);
    });
  });
}

function toLine({ msg }: pb.RunCodeResponse): object | undefined {
  switch (msg.case) {
    case "stdout":
    case "stderr":
      return { kind: msg.case, [msg.case]: Buffer.from(msg.value).toString("base64") };
    case "result": {
      // Unlike on Connect the values travel as the kernel's text, not as bytes.
      const data = Object.entries(msg.value.data).map(([mime, value]) => [mime, Buffer.from(value).toString()]);
      return { kind: "result", result: { text: msg.value.text, data: Object.fromEntries(data) } };
    }
    case "error": {
      const { name, value, traceback } = msg.value;
      return { kind: "error", error: { name, value, traceback } };
    }
    case "exitCode":
      return { kind: "exit", exit_code: msg.value };
    default:
      return undefined;
  }
}
