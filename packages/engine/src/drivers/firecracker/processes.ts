import { readdir, readFile } from "node:fs/promises";
import { isKeeperId } from "../host/layout.ts";
import { processGone, sendSignal, vanishTimeoutMs } from "../host/processes.ts";
import { type Layout, vmId } from "./host.ts";

/**
 * The host processes of this data directory's machines, by keeper: shims, jailers, VMMs. Found by their arguments, so that it also finds what a
 * killed server or shim has left behind, and never a process that merely got an old pid.
 */
export async function findProcesses(layout: Layout): Promise<Map<string, number[]>> {
  const found = new Map<string, number[]>();
  for (const name of await readdir("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const text = await readFile(`/proc/${name}/cmdline`, "latin1").catch(() => "");
    const keeperId = text && keeperOfArguments(text.split("\0"), layout);
    if (!keeperId) continue;
    found.set(keeperId, [...(found.get(keeperId) ?? []), Number(name)]);
  }
  return found;
}

function keeperOfArguments(args: readonly string[], layout: Layout): string | undefined {
  const dir = args[1] === "shim" ? args[args.indexOf("--dir") + 1] : undefined;
  const ids = vmId(layout, "");
  for (const arg of args) {
    // `--id <id>`, and in a jail `--id=<id>`.
    const id = arg === dir && arg.startsWith(`${layout.machines}/`) ? arg.slice(layout.machines.length + 1) : arg.replace(/^--id=/, "");
    const keeperId = id.startsWith(ids) ? id.slice(ids.length) : arg === dir ? id : "";
    if (isKeeperId(keeperId)) return keeperId;
  }
  return undefined;
}

/** SIGKILL to every process of a machine; resolves when none is left. @throws when one does not go */
export async function killVmm(layout: Layout, keeperId: string): Promise<void> {
  const untilMs = Date.now() + vanishTimeoutMs;
  for (;;) {
    const pids = (await findProcesses(layout)).get(keeperId) ?? [];
    if (pids.length === 0) return;
    for (const pid of pids) sendSignal(pid, "SIGKILL");
    await Promise.all(pids.map((pid) => processGone(pid, untilMs)));
  }
}
