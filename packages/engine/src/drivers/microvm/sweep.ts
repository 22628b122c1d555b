import { readdir } from "node:fs/promises";
import { listCgroups } from "../host/cgroup.ts";
import { makeHostFolders } from "../host/layout.ts";
import { sweepKeepers } from "../host/sweep.ts";
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
  const found = [
    ...(await findProcesses(layout)).keys(),
    ...(await readdir(layout.machines)),
    ...(cgroups ? await listCgroups(cgroups) : []),
  ];
  await sweepKeepers({
    layout,
    log: host.log,
    keepMachines,
    keepKeepers,
    found,
    async remove(keeperId) {
      await killKeeper(layout, keeperId);
      await removeTraces(host, keeperId);
    },
  });
}
