import { readdir, readFile } from "node:fs/promises";
import { isKeeperId } from "../host/layout.ts";
import { killAll } from "../host/processes.ts";
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

/** A shim names its folder, a VMM its id: as a word of its own, after `--id=`, or in the specification of its launcher. */
function keeperOfArguments(args: readonly string[], layout: Layout): string | undefined {
  if (args[1] === "shim") return args[2] === "--dir" ? keeperAfter(`${layout.machines}/`, args[3]) : undefined;
  const named = args.find((arg, at) => ["--id", "confine"].includes(args[at - 1] ?? "") || arg.startsWith("--id="));
  return keeperAfter(vmId(layout, ""), named);
}

function keeperAfter(prefix: string, text = ""): string | undefined {
  const at = text.indexOf(prefix);
  const id = text.slice(at + prefix.length, at + prefix.length + 12);
  return at >= 0 && isKeeperId(id) ? id : undefined;
}

/** SIGKILL to every process of a machine; resolves when none is left. @throws when one does not go */
export function killVmm(layout: Layout, keeperId: string): Promise<void> {
  return killAll(async () => (await findProcesses(layout)).get(keeperId) ?? []);
}
