import { readdir, rm } from "node:fs/promises";
import path from "node:path";
import { listCgroups } from "../host/cgroup.ts";
import { isKeeperId, keeperOf, makeHostFolders } from "../host/layout.ts";
import { type Host, vmId } from "./host.ts";
import { findProcesses, killVmm } from "./processes.ts";
import { removeTraces } from "./vmm.ts";

/**
 * Ends every machine and removes everything of it, except for those to keep: what a killed server, a crash or a full disk has left. Leftovers
 * are found wherever one can be: processes, folders, disks, jails, cgroups.
 */
export async function sweep(host: Host, keepMachines: ReadonlySet<string>): Promise<void> {
  const { layout, cgroups, firecracker } = host;
  await makeHostFolders(layout);
  const keep = new Set<string>();
  for (const machineId of keepMachines) {
    const keeperId = await keeperOf(layout, machineId);
    if (keeperId) keep.add(keeperId);
  }
  const jails = await readdir(path.join(layout.jails, path.basename(firecracker.path))).catch(() => []);
  const prefix = vmId(layout, "");
  const found = new Set<string>([
    ...(await findProcesses(layout)).keys(),
    ...(await readdir(layout.machines)),
    ...(await readdir(layout.disks)).map((name) => path.basename(name, ".ext4")),
    ...jails.map((name) => (name.startsWith(prefix) ? name.slice(prefix.length) : "")),
    ...(cgroups ? await listCgroups(cgroups) : []),
  ]);
  for (const keeperId of found) {
    if (!isKeeperId(keeperId) || keep.has(keeperId)) continue;
    try {
      await killVmm(layout, keeperId);
      await removeTraces(host, keeperId);
      host.log.info({ keeper: keeperId }, "removed what was left of a machine");
    } catch (error) {
      // A process that the kernel does not let go of (a disk that hangs) keeps no server from starting; the next one tries again.
      host.log.error({ keeper: keeperId, error: String(error) }, "something of a machine could not be removed");
    }
  }
  for (const machineId of await readdir(layout.ids)) {
    const keeperId = await keeperOf(layout, machineId);
    if (!keeperId || !keep.has(keeperId)) await rm(path.join(layout.ids, machineId), { force: true });
  }
}
