import { MitosError, type SandboxId } from "@mitos/protocol";
import type { Core } from "./core.ts";
import { type Machine, programsMax, type Snapshot } from "./driver.ts";
import { forkSelf } from "./fork.ts";
import type { Adoption } from "./guest.ts";
import { hostNameOf } from "./host-name.ts";
import { linkLost } from "./lifecycle.ts";
import type { Entry, Live } from "./sandboxes.ts";
import { requireAlive } from "./states.ts";

/** What a machine is told beside the facts of its record. */
export type Delivery = Pick<Adoption, "env" | "secrets" | "forgetSecrets">;

/**
 * Restores the machine of a sandbox that is `starting` or `resuming`, and makes it that sandbox. Nobody is served by it before ADOPTED.
 * When this throws nothing of the machine is left; the record is the caller's to put right.
 */
export async function startFromSnapshot(core: Core, entry: Entry, snapshot: Snapshot, delivery: Delivery): Promise<Live> {
  const { record } = entry;
  if (!record.machineId) throw new Error(`broken invariant: ${record.id} starts without a machine id`);
  const spec = {
    machineId: record.machineId,
    resources: record.resources,
    hostName: hostNameOf(record.id),
  };
  const machine = await core.starts.run(() => {
    // A sandbox can be terminated, or run out of time, while its machine is still being started.
    requireAlive(entry.record);
    return core.driver.restore(snapshot, spec);
  });
  const live = connect(core, entry, machine);
  try {
    await machine.setDeadline(record.deadlineMs);
    await live.guest.open({
      ...delivery,
      sandboxId: record.id,
      templateId: record.templateId,
      parentId: record.parentId,
      generation: record.generation,
      deadlineMs: record.deadlineMs,
      forkBudget: record.forkBudget,
      forksUsed: record.forksUsed ?? 0,
      processesMax: programsMax(record.resources),
    });
    requireAlive(entry.record);
    return live;
  } catch (error) {
    await abandon(live, record.id, error);
    throw error;
  }
}

/** Ends a machine that was started and is not to become its sandbox after all. */
export async function abandon({ guest, machine }: Live, id: SandboxId, reason: unknown): Promise<void> {
  guest.close(new MitosError("unavailable", { cause: `sandbox ${id} did not start`, reason }));
  await machine.end("start failed");
}

/** A way to talk to a sandbox's machine. */
export function connect(core: Core, entry: Entry, machine: Machine): Live {
  const guest = core.connectGuest(machine, {
    onActivity: () => entry.activity.begin(),
    egress: core.egress.open({ id: entry.record.id, network: entry.record.network, usage: entry.egress }),
    onForkSelf: (count, label) => forkSelf(core, entry, count, label),
    onLost: (error) => linkLost(core, entry, machine, error),
  });
  return { machine, guest };
}
