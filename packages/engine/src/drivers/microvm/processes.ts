import { readdir, readFile } from "node:fs/promises";
import { type HostLayout, isKeeperId } from "../host/layout.ts";
import { killAll } from "../host/processes.ts";

/**
 * The host processes of this runtime directory, by keeper: shims, launchers and monitors. Found by their arguments, so that it also finds what a
 * killed server or shim has left behind, and never a process that merely got an old pid.
 */
export async function findProcesses({ machines }: HostLayout): Promise<Map<string, number[]>> {
  const found = new Map<string, number[]>();
  for (const name of await readdir("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const text = await readFile(`/proc/${name}/cmdline`, "latin1").catch(() => "");
    const keeperId = keeperOfArguments(text.split("\0"), `${machines}/`);
    if (keeperId) found.set(keeperId, [...(found.get(keeperId) ?? []), Number(name)]);
  }
  return found;
}

/** The folder follows `--dir` of a shim, `-name` of a monitor, and stands in the launcher's specification. */
function keeperOfArguments(args: readonly string[], prefix: string): string | undefined {
  const isShim = args[1] === "shim" && args[2] === "--dir";
  const isLauncher = args[1] === "confine";
  const text = isShim ? args[3] : isLauncher ? args[2] : args[args.indexOf("-name") + 1];
  const at = text?.indexOf(prefix) ?? -1;
  const id = at < 0 ? undefined : text?.slice(at + prefix.length, at + prefix.length + 12);
  return id && isKeeperId(id) ? id : undefined;
}

/** SIGKILL to every process of a machine; resolves when none is left. @throws when one does not go */
export function killKeeper(layout: HostLayout, keeperId: string): Promise<void> {
  return killAll(async () => (await findProcesses(layout)).get(keeperId) ?? []);
}
