import { create } from "@bufbuild/protobuf";
import { limits, MitosError } from "@mitos/protocol";
import { sandbox as pb } from "@mitos/protocol/proto";
import { toMitosError } from "../errors.ts";
import type { Outcome } from "../metrics.ts";
import { checkCeiling } from "../schemas.ts";
import { ChunkCutter } from "../stream/chunks.ts";
import { follow } from "../stream/follow.ts";
import { type Call, firstMessage, notOpen } from "./call.ts";

/** @param lossName - of the error event that tells of a sandbox that was lost in mid-stream */
export function runCodeStream(
  request: pb.RunCodeStreamRequest,
  call: Call,
  lossName = "SandboxUnavailable",
): AsyncGenerator<pb.RunCodeResponse> {
  return run(request, call, lossName);
}

/** Input messages are part of the schema, but no kernel reads them. */
export async function* runCode(requests: AsyncIterable<pb.RunCodeRequest>, call: Call): AsyncGenerator<pb.RunCodeResponse> {
  const { first } = await firstMessage(requests);
  if (first.msg.case !== "open") throw notOpen();
  yield* run(first.msg.value, call, "SandboxUnavailable");
}

async function* run(request: pb.RunCodeStreamRequest | pb.RunCodeOpen, call: Call, lossName: string): AsyncGenerator<pb.RunCodeResponse> {
  const asked = Number(request.timeoutSeconds);
  checkCeiling(asked, call.context.maxExecTimeoutSeconds, call.sandbox);
  const seconds = asked > 0 ? asked : limits.runCodeTimeoutSecondsDefault;
  const context = call.codeContext();
  const cutters = { stdout: new ChunkCutter(), stderr: new ChunkCutter() };
  let begun = false;
  let failed = false;
  // What it stays when the reader leaves.
  let outcome: Outcome = "canceled";
  const beganMs = performance.now();
  try {
    const { code, language } = request;
    const source = call.runtime().runCode({ code, language, timeoutMs: seconds * 1000, context }, call.signals.client);
    for await (const response of follow(source, call.signals)) {
      begun = true;
      const { msg } = response;
      if (msg.case === "stdout" || msg.case === "stderr") {
        for (const value of cutters[msg.case].push(msg.value)) yield create(pb.RunCodeResponseSchema, { msg: { case: msg.case, value } });
        continue;
      }
      // Anything else ends a run of output: what is held back goes before it.
      yield* heldBack(cutters);
      failed ||= msg.case === "error";
      if (msg.case === "exitCode") outcome = msg.value === 0 ? "ok" : "error";
      yield response;
      if (msg.case === "exitCode") return;
    }
    throw new MitosError("unavailable", { cause: "the sandbox ended the stream without an exit code" });
  } catch (error) {
    if (!call.signals.client.aborted) outcome = "failed";
    if (!begun || call.signals.client.aborted || call.signals.shutdown.aborted) throw error;
    const mitos = toMitosError(error);
    if (mitos.code !== "unavailable") throw mitos;
    yield* heldBack(cutters);
    if (!failed) {
      yield create(pb.RunCodeResponseSchema, { msg: { case: "error", value: { name: lossName, value: mitos.message } } });
    }
    yield create(pb.RunCodeResponseSchema, { msg: { case: "exitCode", value: 1 } });
  } finally {
    call.context.metrics.runCodeSeconds.observe({ outcome }, (performance.now() - beganMs) / 1000);
  }
}

function* heldBack(cutters: Record<"stdout" | "stderr", ChunkCutter>): Generator<pb.RunCodeResponse> {
  for (const stream of ["stdout", "stderr"] as const) {
    for (const value of cutters[stream].end()) yield create(pb.RunCodeResponseSchema, { msg: { case: stream, value } });
  }
}
