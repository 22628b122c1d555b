import { setTimeout as delay } from "node:timers/promises";
import { MitosError } from "@mitos/protocol";
import type { ReadyCheck, Runtime, Workload } from "./actions.ts";
import type { ImageConfig } from "./images/image.ts";

const probeEveryMs = 50;
/** A command costs processes each time. */
const commandEveryMs = 250;
const probeMsMax = 5_000;
const commandMsMax = 30_000;
const statusLineBytesMax = 4_096;
const tailBytes = 4_096;

/**
 * What a workload starts: its own command, or that of the image.
 *
 * @throws invalid_input when there is neither
 */
export function commandOf({ command }: Workload, { entrypoint, command: arguments_ }: ImageConfig): readonly string[] {
  if (command.length > 0) return command;
  const own = [...entrypoint, ...arguments_];
  if (own.length > 0) return own;
  throw new MitosError("invalid_input", {
    cause: "the workload starts what the image starts, and the image starts nothing",
    remediation: "Give the workload a command.",
  });
}

/**
 * Starts a template's program, so that every sandbox wakes with it running, and waits until it answers as it should.
 * Without `ready` it only has to have been started.
 *
 * @throws build_failed with the end of its output
 */
export async function runWorkload(runtime: Runtime, { command, env, ready }: Workload, signal: AbortSignal): Promise<void> {
  const { pid } = await runtime.start({ argv: command, env });
  if (!ready) return;
  const deadlineMs = performance.now() + ready.timeoutSeconds * 1000;
  let seen = "nothing";
  for (;;) {
    const leftMs = deadlineMs - performance.now();
    if (leftMs <= 0) break;
    signal.throwIfAborted();
    const answer = await ask(runtime, ready, leftMs);
    if (answer.isReady) return;
    // What the deadline cuts off says less than what was seen before it.
    if (performance.now() < deadlineMs || seen === "nothing") seen = answer.seen;
    const row = (await runtime.listProcesses()).find((process) => process.pid === pid);
    if (row?.exit) throw await failed(runtime, pid, `the program ended with exit code ${row.exit.exitCode} before it was ready`);
    await delay(ready.kind === "command" ? commandEveryMs : probeEveryMs);
  }
  throw await failed(runtime, pid, `it was not ready after ${ready.timeoutSeconds} s: wanted ${wantedBy(ready)}, last seen: ${seen}`);
}

interface Answer {
  readonly isReady: boolean;
  readonly seen: string;
}

/** Never fails because the program does: that is an answer. */
function ask(runtime: Runtime, ready: ReadyCheck, leftMs: number): Promise<Answer> {
  switch (ready.kind) {
    case "http":
      return askHttp(runtime, ready, Math.min(probeMsMax, leftMs));
    case "port":
      return askPort(runtime, ready, Math.min(probeMsMax, leftMs));
    case "command":
      return askCommand(runtime, ready, Math.min(commandMsMax, leftMs));
  }
}

function wantedBy(ready: ReadyCheck): string {
  switch (ready.kind) {
    case "http":
      return `${ready.expect} from port ${ready.port}${ready.path}`;
    case "port":
      return `somebody who listens on port ${ready.port}`;
    case "command":
      return "exit code 0 of its command";
  }
}

/** The status that the port answers with, or why there is none. */
async function askHttp(runtime: Runtime, { port, path, expect }: ReadyCheck & { kind: "http" }, msMax: number): Promise<Answer> {
  try {
    const tunnel = await runtime.tunnel(port, AbortSignal.timeout(Math.ceil(msMax)));
    try {
      await tunnel.send(Buffer.from(`GET ${path} HTTP/1.1\r\nHost: localhost:${port}\r\nConnection: close\r\n\r\n`));
      let head = "";
      for await (const chunk of tunnel) {
        head += Buffer.from(chunk).toString("latin1");
        if (head.includes("\r\n") || head.length > statusLineBytesMax) break;
      }
      const status = /^HTTP\/1\.[01] (\d{3})/.exec(head)?.[1];
      return { isReady: status === String(expect), seen: status ?? "an answer that is not HTTP" };
    } finally {
      tunnel.abort();
    }
  } catch (error) {
    return { isReady: false, seen: messageOf(error) };
  }
}

async function askPort(runtime: Runtime, { port }: ReadyCheck & { kind: "port" }, msMax: number): Promise<Answer> {
  try {
    const tunnel = await runtime.tunnel(port, AbortSignal.timeout(Math.ceil(msMax)));
    tunnel.abort();
    return { isReady: true, seen: "a connection" };
  } catch (error) {
    return { isReady: false, seen: messageOf(error) };
  }
}

async function askCommand(runtime: Runtime, { command }: ReadyCheck & { kind: "command" }, msMax: number): Promise<Answer> {
  let output = "";
  for await (const event of runtime.exec({ argv: ["/bin/sh", "-c", command], timeoutMs: Math.ceil(msMax) })) {
    if (event.kind === "output") output = (output + Buffer.from(event.data).toString()).slice(-tailBytes);
    if (event.kind !== "exit") continue;
    const { exitCode, timedOut, signal, error } = event;
    if (exitCode === 0 && !timedOut && !signal && !error) return { isReady: true, seen: "exit code 0" };
    const how = error || (timedOut ? "no end in time" : signal ? `signal ${signal}` : `exit code ${exitCode}`);
    return { isReady: false, seen: output ? `${how}: ${output.trimEnd()}` : how };
  }
  return { isReady: false, seen: "no exit code" };
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

async function failed(runtime: Runtime, pid: number, reason: string): Promise<MitosError> {
  let output = "";
  for await (const event of runtime.attach(pid, { follow: false })) {
    if (event.kind === "output") output = (output + Buffer.from(event.data).toString()).slice(-tailBytes);
  }
  return new MitosError("build_failed", {
    cause: output ? `${reason}; its output ended with:\n${output}` : reason,
    context: { step_kind: "workload" },
  });
}
