import { readdir, rm } from "node:fs/promises";
import path from "node:path";
import { listCgroups } from "../host/cgroup.ts";
import { isKeeperId, keeperOf } from "../host/layout.ts";
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
  const keep = new Set(keepContainers);
  for (const machineId of keepMachines) {
    const containerId = await keeperOf(layout, machineId);
    if (containerId) keep.add(containerId);
  }
  const found = new Set<string>([
    ...(await findProcesses(layout)).keys(),
    ...(await readdir(layout.machines)),
    ...(await readdir(layout.scratch).catch(() => [])),
    ...(await readdir(layout.runscRoot)).map((name) => containerOfState(name) ?? ""),
    ...(cgroups ? await listCgroups(cgroups) : []),
  ]);
  for (const containerId of found) {
    if (!isKeeperId(containerId) || keep.has(containerId)) continue;
    try {
      await killContainer(layout, containerId);
      await removeTraces(host, containerId);
      host.log.info({ container: containerId }, "removed what was left of a container");
    } catch (error) {
      // A process that the kernel does not let go of (a disk that hangs) keeps no server from starting; the next one tries again.
      host.log.error({ container: containerId, error: String(error) }, "something of a container could not be removed");
    }
  }
  for (const machineId of await readdir(layout.ids)) {
    const containerId = await keeperOf(layout, machineId);
    if (!containerId || !keep.has(containerId)) await rm(path.join(layout.ids, machineId), { force: true });
  }
}
