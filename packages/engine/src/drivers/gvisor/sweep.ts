import { readdir } from "node:fs/promises";
import { listCgroups } from "../host/cgroup.ts";
import { sweepKeepers } from "../host/sweep.ts";
import { containerOfState, removeTraces } from "./container.ts";
import type { Host } from "./host.ts";
import { makeFolders } from "./layout.ts";
import { findProcesses, killContainer } from "./processes.ts";

/**
 * Ends every container and removes everything of it, except for the machines and containers to keep: what a killed server, a crash or a full
 * disk has left. Leftovers are found wherever one can be: processes, folders, runsc's state, cgroups.
 */
export async function sweep(host: Host, keepMachines: ReadonlySet<string>, keepContainers: ReadonlySet<string>): Promise<void> {
  const { layout, cgroups } = host;
  await makeFolders(layout);
  const found = [
    ...(await findProcesses(layout)).keys(),
    ...(await readdir(layout.machines)),
    ...(await readdir(layout.scratch).catch(() => [])),
    ...(await readdir(layout.runscRoot)).map((name) => containerOfState(name) ?? ""),
    ...(cgroups ? await listCgroups(cgroups) : []),
  ];
  await sweepKeepers({
    layout,
    log: host.log,
    keepMachines,
    keepKeepers: keepContainers,
    found,
    async remove(keeperId) {
      await killContainer(layout, keeperId);
      await removeTraces(host, keeperId);
    },
  });
}
