import { readdir, readFile } from "node:fs/promises";
import { isKeeperId } from "../host/layout.ts";
import { killAll } from "../host/processes.ts";
import type { Layout } from "./layout.ts";

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
    if (id && isKeeperId(id)) return id;
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
export function killContainer(layout: Layout, containerId: string): Promise<void> {
  return killAll(async () => (await findProcesses(layout)).get(containerId) ?? []);
}
