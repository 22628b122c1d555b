import { readdir, rm } from "node:fs/promises";
import { listCgroups } from "../host/cgroup.ts";
import { isKeeperId, keeperOf, makeHostFolders, nameOf } from "../host/layout.ts";
import type { Host } from "./host.ts";
import { findProcesses, killKeeper } from "./processes.ts";
import { removeTraces } from "./vmm.ts";

/**
 * Ends every virtual machine and removes everything of it on the host, except for those to keep: what a killed server, a crash or a full disk has
 * left. Leftovers are found wherever one can be: processes, folders, cgroups.
 */
export async function sweep(host: Host, keepMachines: ReadonlySet<string>, keepKeepers: ReadonlySet<string>): Promise<void> {
  const { layout, cgroups } = host;
  await makeHostFolders(layout);
  const keep = new Set(keepKeepers);
  for (const machineId of keepMachines) {
    const keeperId = await keeperOf(layout, machineId);
    if (keeperId) keep.add(keeperId);
  }
  const found = new Set<string>([
    ...(await findProcesses(layout)).keys(),
    ...(await readdir(layout.machines)),
    ...(cgroups ? await listCgroups(cgroups) : []),
  ]);
  for (const keeperId of found) {
    if (!isKeeperId(keeperId) || keep.has(keeperId)) continue;
    try {
      await killKeeper(layout, keeperId);
      await removeTraces(host, keeperId);
      host.log.info({ keeper: keeperId }, "removed what was left of a virtual machine");
    } catch (error) {
      // A process that the kernel does not let go of (a disk that hangs) keeps no server from starting; the next one tries again.
      host.log.error({ keeper: keeperId, error: String(error) }, "something of a virtual machine could not be removed");
    }
  }
  for (const machineId of await readdir(layout.ids)) {
    const keeperId = await keeperOf(layout, machineId);
    if (!keeperId || !keep.has(keeperId)) await rm(nameOf(layout, machineId), { force: true });
  }
}
