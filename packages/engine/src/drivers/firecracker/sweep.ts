import { readdir } from "node:fs/promises";
import path from "node:path";
import { listCgroups } from "../host/cgroup.ts";
import { makeHostFolders } from "../host/layout.ts";
import { sweepKeepers } from "../host/sweep.ts";
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
  const jails = await readdir(path.join(layout.jails, path.basename(firecracker.path))).catch(() => []);
  const prefix = vmId(layout, "");
  const found = [
    ...(await findProcesses(layout)).keys(),
    ...(await readdir(layout.machines)),
    ...(await readdir(layout.disks)).map((name) => path.basename(name, ".ext4")),
    ...jails.map((name) => (name.startsWith(prefix) ? name.slice(prefix.length) : "")),
    ...(cgroups ? await listCgroups(cgroups) : []),
  ];
  await sweepKeepers({
    layout,
    log: host.log,
    keepMachines,

    found,
    async remove(keeperId) {
      await killVmm(layout, keeperId);
      await removeTraces(host, keeperId);
    },
  });
}
