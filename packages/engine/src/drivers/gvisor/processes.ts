import { readdir, readFile } from "node:fs/promises";
import { isContainerId, type Layout } from "./layout.ts";

/** Time for a killed process to vanish. Only a process in uninterruptible sleep needs longer than a moment. */
const vanishTimeoutMs = 10_000;

/**
 * The host processes of this runtime directory, by container: shims, sentries, gofers and running runsc commands. Found by their arguments, so that it
 * also finds what a killed server or shim has left behind, and never a process that merely got an old pid.
 */
export async function findProcesses(layout: Layout): Promise<Map<string, number[]>> {
  const found = new Map<string, number[]>();
  for (const name of await readdir("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const text = await readFile(`/proc/${name}/cmdline`, "latin1").catch(() => "");
    const containerId = text && containerOfArguments(text.split("\0"), layout);
    if (!containerId) continue;
    const pids = found.get(containerId) ?? [];
    pids.push(Number(name));
    found.set(containerId, pids);
  }
  return found;
}

function containerOfArguments(args: readonly string[], layout: Layout): string | undefined {
  const prefix = `${layout.machines}/`;
  const shim = args.indexOf("--dir");
  const isOurs = args.includes(`--root=${layout.runscRoot}`) || (args[1] === "shim" && args[shim + 1]?.startsWith(prefix));
  if (!isOurs) return undefined;
  for (const arg of args) {
    const at = arg.indexOf(prefix);
    const id = at < 0 ? arg : arg.slice(at + prefix.length).split("/", 1)[0];
    if (id && isContainerId(id)) return id;
  }
  return undefined;
}

/** The runsc commands that work on a container now. */
export async function commandsOf(layout: Layout, containerId: string): Promise<number[]> {
  const pids: number[] = [];
  for (const pid of (await findProcesses(layout)).get(containerId) ?? []) {
    const text = await readFile(`/proc/${pid}/cmdline`, "latin1").catch(() => "");
    if (text.split("\0").some((arg) => arg === "checkpoint" || arg === "restore")) pids.push(pid);
  }
  return pids;
}

/** SIGKILL to every process of a container; resolves when none is left. @throws when one does not go */
export async function killContainer(layout: Layout, containerId: string): Promise<void> {
  const until = Date.now() + vanishTimeoutMs;
  for (;;) {
    const pids = (await findProcesses(layout)).get(containerId) ?? [];
    if (pids.length === 0) return;
    for (const pid of pids) sendSignal(pid, "SIGKILL");
    await Promise.all(pids.map((pid) => processGone(pid, until)));
  }
}

/** Resolves when the process is gone or only waits to be reaped. Node has no pidfd, so this looks every few milliseconds. */
export async function processGone(pid: number, untilMs = Date.now() + vanishTimeoutMs): Promise<void> {
  while (await isAlive(pid)) {
    if (Date.now() > untilMs) throw new Error(`process ${pid} does not end`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

async function isAlive(pid: number): Promise<boolean> {
  const text = await readFile(`/proc/${pid}/stat`, "latin1").catch(() => "");
  const state = text.slice(text.lastIndexOf(")") + 2, text.lastIndexOf(")") + 3);
  return text !== "" && state !== "Z" && state !== "X";
}

/** Children, their children and so on. Those that end meanwhile are left out. */
export async function descendantsOf(pid: number): Promise<number[]> {
  const found: number[] = [];
  const queue = [pid];
  for (let parent = queue.shift(); parent !== undefined; parent = queue.shift()) {
    const tasks = await readdir(`/proc/${parent}/task`).catch(() => []);
    const lists = await Promise.all(tasks.map((task) => readFile(`/proc/${parent}/task/${task}/children`, "latin1").catch(() => "")));
    const children = lists.join(" ").split(" ").filter(Boolean).map(Number);
    found.push(...children);
    queue.push(...children);
  }
  return found;
}

/** A process that is gone is no error. */
export function sendSignal(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}
