import { MitosError } from "@mitos/protocol";
import type { Core } from "./core.ts";
import type { Machine, Snapshot } from "./driver.ts";
import { forkSelf } from "./fork.ts";
import type { Adoption } from "./guest.ts";
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
  const spec = { machineId: record.machineId, root: { kind: "host" }, resources: record.resources, hostName: record.id } as const;
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
    });
    requireAlive(entry.record);
    return live;
  } catch (error) {
    live.guest.close(new MitosError("unavailable", { cause: `sandbox ${record.id} did not start`, reason: error }));
    await machine.end("start failed");
    throw error;
  }
}

/** A way to talk to a sandbox's machine. */
export function connect(core: Core, entry: Entry, machine: Machine): Live {
  const guest = core.connectGuest(machine, {
    onActivity: () => entry.activity.begin(),
    egress: core.egress.open({ id: entry.record.id, network: entry.record.network, usage: entry.egress }),
    onForkSelf: (count) => forkSelf(core, entry, count),
    onLost: (error) => linkLost(core, entry, machine, error),
  });
  return { machine, guest };
}
