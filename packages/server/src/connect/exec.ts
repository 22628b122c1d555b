/** Exec and ExecStream; the WebSocket route sends the same frames. */

import { create } from "@bufbuild/protobuf";
import type { Attachment, ProcessEvent, ProcessExit, ProcessStart } from "@mitos/engine";
import { type ErrorCode, limits, MitosError } from "@mitos/protocol";
import { sandbox as pb } from "@mitos/protocol/proto";
import { z } from "zod";
import { toMitosError } from "../errors.ts";
import { check } from "../http/json.ts";
import type { Metrics, Outcome } from "../metrics.ts";
import { argv, checkCeiling, env, path, shellLine, terminalSide } from "../schemas.ts";
import { ChunkCutter } from "../stream/chunks.ts";
import { type EndSignals, follow } from "../stream/follow.ts";
import { type Call, firstMessage, notOpen } from "./call.ts";

export async function* execStream(request: pb.ExecStreamRequest, call: Call): AsyncGenerator<pb.ExecResponse> {
  const start = toProcessStart(request, call.context.maxExecTimeoutSeconds, call.sandbox);
  const runtime = call.runtime();
  using _place = call.context.streams.take(call.sandbox);
  yield* execFrames(runtime.exec(start, call.signals.client), call.signals, call.context.metrics);
}

export async function* exec(requests: AsyncIterable<pb.ExecRequest>, call: Call): AsyncGenerator<pb.ExecResponse> {
  const { first, rest } = await firstMessage(requests);
  if (first.msg.case !== "open") throw notOpen();
  const start = { ...toProcessStart(first.msg.value, call.context.maxExecTimeoutSeconds, call.sandbox), stdin: true };
  const runtime = call.runtime();
  using _place = call.context.streams.take(call.sandbox);
  const attachment = runtime.exec(start, call.signals.client);
  const input = deliverInput(rest, attachment);
  // A client that breaks off shows in the output's signals; what the process no longer reads is not an error.
  input.catch(() => {});
  yield* execFrames(attachment, call.signals, call.context.metrics);
}

async function deliverInput(requests: AsyncIterable<pb.ExecRequest>, attachment: Attachment): Promise<void> {
  for await (const { msg } of requests) {
    if (msg.case === "stdin") await attachment.writeStdin(msg.value);
    else if (msg.case === "resize") await attachment.resize(msg.value.cols, msg.value.rows);
    else if (msg.case === "stdinClose" && msg.value) await attachment.closeStdin();
  }
  await attachment.closeStdin();
}

const environment = z
  .array(z.object({ key: z.string(), value: z.string() }))
  .transform((vars) => Object.fromEntries(vars.map(({ key, value }) => [key, value])));

const execOpen = z.object({ cwd: path.or(z.literal("")), env: environment.pipe(env) });
const shell = z.object({ command: shellLine });
const words = z.object({ args: argv });
const terminal = z.object({ term: z.string().max(64), cols: terminalSide, rows: terminalSide });

/** @throws invalid_input, timeout_too_large */
export function toProcessStart(request: pb.ExecOpen | pb.ExecStreamRequest, ceilingSeconds: number, sandbox: string): ProcessStart {
  checkCeiling(request.timeoutSeconds, ceilingSeconds, sandbox);
  const { cwd, env: vars } = check(execOpen, request);
  const pty = "pty" in request && request.pty ? toTerminal(request.pty) : undefined;
  const program = request.args.length > 0 ? { argv: check(words, { args: [request.command, ...request.args] }).args } : toShell(request);
  // A terminal is for a person, who may take longer than half a minute.
  const defaultSeconds = pty ? 0 : limits.execTimeoutSecondsDefault;
  const seconds = request.timeoutSeconds > 0 ? request.timeoutSeconds : defaultSeconds;
  return { ...program, env: vars, cwd: cwd || undefined, pty, timeoutMs: seconds * 1000 };
}

/** An empty line is one for the shell as well; the engine takes none for a command that is missing. */
function toShell(request: { readonly command: string }): Pick<ProcessStart, "argv" | "shellCommand"> {
  const line = check(shell, request).command;
  return line === "" ? { argv: ["/bin/sh", "-c", ""] } : { shellCommand: line };
}

function toTerminal({ term, size }: pb.PtyOptions) {
  return check(terminal, { term: term || "xterm-256color", cols: size?.cols || 80, rows: size?.rows || 24 });
}

/** The sandbox itself is no more, which the client must learn as such; other losses are told as the end of the exec. */
const sandboxEnded: ReadonlySet<ErrorCode> = new Set(["not_found", "idle_timeout", "oom_killed", "sandbox_not_running", "canceled"]);

/** The events of a foreground exec as frames: at most 32 KiB each, ended by exactly one exit. */
export async function* execFrames(
  attachment: AsyncIterable<ProcessEvent>,
  signals: EndSignals,
  { execSeconds }: Metrics,
): AsyncGenerator<pb.ExecResponse> {
  const cutters = { stdout: new ChunkCutter(), stderr: new ChunkCutter() };
  const began = performance.now();
  let started = false;
  // What it stays when the reader leaves.
  let outcome: Outcome = "canceled";
  try {
    for await (const event of follow(attachment, signals)) {
      started = true;
      if (event.kind === "output") {
        for (const piece of cutters[event.stream].push(event.data)) yield output(event.stream, piece);
      } else if (event.kind === "gap") {
        throw new MitosError("unavailable", { cause: `${event.to - event.from} bytes of ${event.stream} were lost` });
      } else if (event.kind === "exit") {
        outcome = outcomeOf(event);
        yield* heldBack(cutters);
        yield exit(event.exitCode, event.execTimeMs, event.error);
        return;
      }
    }
    throw new MitosError("unavailable", { cause: "the sandbox ended the stream without an exit" });
  } catch (error) {
    if (signals.client.aborted || signals.shutdown.aborted) throw error;
    outcome = "failed";
    const mitos = toMitosError(error);
    if (mitos.code === "internal" || sandboxEnded.has(mitos.code) || (!started && mitos.code !== "exec_failed")) throw mitos;
    yield* heldBack(cutters);
    yield exit(1, performance.now() - began, mitos.message);
  } finally {
    execSeconds.observe({ outcome }, (performance.now() - began) / 1000);
  }
}

function outcomeOf({ exitCode, timedOut, error }: ProcessExit): Outcome {
  if (error) return "failed";
  if (timedOut) return "timeout";
  return exitCode === 0 ? "ok" : "error";
}

function* heldBack(cutters: Record<"stdout" | "stderr", ChunkCutter>): Generator<pb.ExecResponse> {
  for (const stream of ["stdout", "stderr"] as const) {
    for (const piece of cutters[stream].end()) yield output(stream, piece);
  }
}

function output(stream: "stdout" | "stderr", value: Uint8Array): pb.ExecResponse {
  return create(pb.ExecResponseSchema, { msg: { case: stream, value } });
}

function exit(exitCode: number, execTimeMs: number, error: string): pb.ExecResponse {
  return create(pb.ExecResponseSchema, {
    msg: { case: "exit", value: { exitCode, execTimeMs: Math.round(execTimeMs * 1000) / 1000, error } },
  });
}
