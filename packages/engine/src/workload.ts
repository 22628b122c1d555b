import { setTimeout as delay } from "node:timers/promises";
import { MitosError } from "@mitos/protocol";
import type { ReadyCheck, Runtime, Workload } from "./actions.ts";

type Ready = ReadyCheck & { readonly kind: "http" };

const probeEveryMs = 50;
const probeMsMax = 5_000;
const statusLineBytesMax = 4_096;
const tailBytes = 4_096;

/**
 * Starts a template's program, so that every sandbox wakes with it running, and waits until it answers as it should.
 * Without `ready` it only has to have been started.
 *
 * @throws build_failed with the end of its output
 */
export async function runWorkload(runtime: Runtime, workload: Workload): Promise<void> {
  const { pid } = await runtime.start({ argv: workload.command, env: workload.env });
  if (!workload.ready) return;
  const { ready } = workload;
  if (ready.kind !== "http") throw new MitosError("not_supported", { cause: `a ready check of kind ${ready.kind}` });
  const deadlineMs = performance.now() + ready.timeoutSeconds * 1000;
  let seen = "no connection";
  while (performance.now() < deadlineMs) {
    seen = await probe(runtime, ready);
    if (seen === String(ready.expect)) return;
    const row = (await runtime.listProcesses()).find((process) => process.pid === pid);
    if (row?.exit) throw await failed(runtime, pid, `the program ended with exit code ${row.exit.exitCode} before it was ready`);
    await delay(probeEveryMs);
  }
  const wanted = `${ready.expect} from port ${ready.port}${ready.path}`;
  throw await failed(runtime, pid, `it was not ready after ${ready.timeoutSeconds} s: wanted ${wanted}, last seen: ${seen}`);
}

/** The status that the port answers with, or why there is none. */
async function probe(runtime: Runtime, { port, path }: Ready): Promise<string> {
  try {
    const tunnel = await runtime.tunnel(port, AbortSignal.timeout(probeMsMax));
    try {
      await tunnel.send(Buffer.from(`GET ${path} HTTP/1.1\r\nHost: localhost:${port}\r\nConnection: close\r\n\r\n`));
      let head = "";
      for await (const chunk of tunnel) {
        head += Buffer.from(chunk).toString("latin1");
        if (head.includes("\r\n") || head.length > statusLineBytesMax) break;
      }
      return /^HTTP\/1\.[01] (\d{3})/.exec(head)?.[1] ?? "an answer that is not HTTP";
    } finally {
      tunnel.abort();
    }
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
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
