import { readdir, readlink, stat } from "node:fs/promises";
import path from "node:path";
import { setTimeout as after } from "node:timers/promises";
import { freeBytes } from "../../free-bytes.ts";
import type { GvisorMachine } from "./machine.ts";

/** What a layer may have at most, which is what such a machine is for. */
const scratchBytesMax = 16 * 1024 ** 3;
/** Left for the server itself and everybody else on that disk. */
const freeBytesMin = 512 * 1024 ** 2;
const checkMs = 500;

export interface ScratchLimits {
  readonly bytesMax: number;
  readonly freeBytesMin: number;
}

/**
 * Ends a machine that writes more to the disk than it may, or the disk full. runsc has no limit of its own for that.
 * @param dir - on the same disk
 */
export async function limitScratch(machine: GvisorMachine, dir: string): Promise<void> {
  const over = new AbortController();
  void machine.exited.then(() => over.abort());
  const file = await fileOf(machine.container.sentryPid);
  const why = await untilOver(file, dir, { bytesMax: scratchBytesMax, freeBytesMin }, over.signal);
  if (why !== undefined) await machine.end(why);
}

/** runsc has taken its name away: only its process leads to it. */
async function fileOf(sentryPid: number): Promise<string> {
  const dir = `/proc/${sentryPid}/fd`;
  for (const name of await readdir(dir).catch(() => [])) {
    const file = path.join(dir, name);
    if ((await readlink(file).catch(() => "")).includes("/runsc-filestore-")) return file;
  }
  return "";
}

/** @returns which limit was passed; undefined when `signal` came first */
export async function untilOver(file: string, dir: string, limits: ScratchLimits, signal: AbortSignal): Promise<string | undefined> {
  while (!signal.aborted) {
    // Either may be gone just before its machine is known to have ended.
    const [{ blocks }, free] = await Promise.all([
      stat(file).catch(() => ({ blocks: 0 })),
      freeBytes(dir).catch(() => Number.MAX_SAFE_INTEGER),
    ]);
    if (blocks * 512 > limits.bytesMax) return `it wrote more to the disk than ${Math.floor(limits.bytesMax / 1024 ** 2)} MiB`;
    if (free < limits.freeBytesMin) return "it has filled the disk of the data directory";
    await after(checkMs, undefined, { signal, ref: false }).catch(() => undefined);
  }
  return undefined;
}
