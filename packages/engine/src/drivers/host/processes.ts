import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";

/** Time for a killed process to vanish. Only a process in uninterruptible sleep needs longer than a moment. */
const vanishTimeoutMs = 10_000;

/** Resolves when the process is gone or only waits to be reaped. Node has no pidfd, so this looks every few milliseconds. */
export async function processGone(pid: number, untilMs = Date.now() + vanishTimeoutMs): Promise<void> {
  while (await isAlive(pid)) {
    if (Date.now() > untilMs) throw new Error(`process ${pid} does not end`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

async function isAlive(pid: number): Promise<boolean> {
  return saysAlive(await readFile(`/proc/${pid}/stat`, "latin1").catch(() => ""));
}

/** The same at once, for where waiting would let something else happen in between. */
export function isAliveNow(pid: number): boolean {
  try {
    return saysAlive(readFileSync(`/proc/${pid}/stat`, "latin1"));
  } catch {
    return false;
  }
}

function saysAlive(text: string): boolean {
  const state = text.slice(text.lastIndexOf(")") + 2, text.lastIndexOf(")") + 3);
  return text !== "" && state !== "Z" && state !== "X";
}

/** A process that is gone is no error. */
export function sendSignal(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

/**
 * SIGKILL to all that `find` finds; resolves when it finds none any more.
 *
 * @throws when one does not go
 */
export async function killAll(find: () => Promise<readonly number[]>): Promise<void> {
  const untilMs = Date.now() + vanishTimeoutMs;
  for (;;) {
    const pids = await find();
    if (pids.length === 0) return;
    for (const pid of pids) sendSignal(pid, "SIGKILL");
    await Promise.all(pids.map((pid) => processGone(pid, untilMs)));
  }
}
