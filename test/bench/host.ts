import os from "node:os";
import { setTimeout as delay } from "node:timers/promises";

const lookMs = 200;
/** Of one processor; machines with nothing to do take some hundredths. */
const idleShare = 0.15;
/** On a host with other work the figures are what they are. */
const idleTimeoutMs = 10_000;

/** What absolute figures depend on. */
export interface HostDescription {
  readonly cpu: string;
  readonly cores: number;
  readonly memoryMiB: number;
  readonly kernel: string;
  /** The mean number of busy processes in the minute before. */
  readonly load: number;
}

export function describeHost(): HostDescription {
  return {
    cpu: os.cpus()[0]?.model.trim() ?? "unknown processor",
    cores: os.availableParallelism(),
    memoryMiB: Math.round(os.totalmem() / 2 ** 20),
    kernel: os.release(),
    load: os.loadavg()[0] ?? 0,
  };
}

export function hostLine({ cpu, cores, memoryMiB, kernel, load }: HostDescription): string {
  return `${cpu}, ${cores} cores, ${(memoryMiB / 1024).toFixed(0)} GiB, Linux ${kernel}, load ${load.toFixed(1)} at the start`;
}

/** Resolves when little is done on this host: after a start or a fork machines are made ready, and others end. */
export async function hostIsIdle(): Promise<void> {
  const until = Date.now() + idleTimeoutMs;
  for (let before = busyMs(); Date.now() < until; ) {
    await delay(lookMs);
    const now = busyMs();
    if (now - before < idleShare * lookMs) return;
    before = now;
  }
}

/** Of all processors together. */
function busyMs(): number {
  return os.cpus().reduce((sum, { times }) => sum + times.user + times.nice + times.sys + times.irq, 0);
}
