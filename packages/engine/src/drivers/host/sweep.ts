import { readdir, rm } from "node:fs/promises";
import path from "node:path";
import type { Log } from "../../actions.ts";
import { type HostLayout, isKeeperId, keeperOf } from "./layout.ts";

export interface Sweep {
  readonly layout: HostLayout;
  readonly log: Log;
  readonly keepMachines: ReadonlySet<string>;
  /** Of what is not a machine yet. */
  readonly keepKeepers?: ReadonlySet<string>;
  /** Names wherever a leftover can be: processes, folders, cgroups. Those that are no keeper's are passed over. */
  readonly found: Iterable<string>;
  /** Ends all processes of a keeper and removes everything of it. */
  remove(keeperId: string): Promise<void>;
}

/** Removes every keeper that is not to be kept: what a killed server, a crash or a full disk has left. */
export async function sweepKeepers({ layout, log, keepMachines, keepKeepers = new Set(), found, remove }: Sweep): Promise<void> {
  const keep = new Set(keepKeepers);
  for (const machineId of keepMachines) {
    const keeperId = await keeperOf(layout, machineId);
    if (keeperId) keep.add(keeperId);
  }
  for (const keeperId of new Set(found)) {
    if (!isKeeperId(keeperId) || keep.has(keeperId)) continue;
    try {
      await remove(keeperId);
      log.info({ keeper: keeperId }, "removed what was left of a machine");
    } catch (error) {
      // A process that the kernel does not let go of (a disk that hangs) keeps no server from starting; the next one tries again.
      log.error({ keeper: keeperId, error: String(error) }, "something of a machine could not be removed");
    }
  }
  for (const machineId of await readdir(layout.ids)) {
    const keeperId = await keeperOf(layout, machineId);
    if (!keeperId || !keep.has(keeperId)) await rm(path.join(layout.ids, machineId), { force: true });
  }
}
