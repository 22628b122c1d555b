import { MitosError, type SandboxId } from "@mitos/protocol";
import { type Core, newMachineId } from "./core.ts";
import { type Machine, programsMax, type Snapshot } from "./driver.ts";
import { forkSelf } from "./fork.ts";
import type { Adoption, GuestHooks } from "./guest.ts";
import { hostNameOf } from "./host-name.ts";
import { linkLost, tellDeadline } from "./lifecycle.ts";
import type { WaitingMachine } from "./pool/waiting.ts";
import type { Entry, Live } from "./sandboxes.ts";
import { requireAlive } from "./states.ts";

/** What a machine is told beside the facts of its record. */
export type Delivery = Pick<Adoption, "env" | "secrets" | "forgetSecrets">;

/**
 * Restores the machine of a sandbox that is `starting` or `resuming`, and makes it that sandbox. Nobody is served by it before ADOPTED.
 * When this throws nothing of the machine is left; the record is the caller's to put right.
 *
 * @param requireWanted - throws when no machine is to be started any more, for which it has waited. Default: when the sandbox has ended
 */
export async function startFromSnapshot(
  core: Core,
  entry: Entry,
  snapshot: Snapshot,
  delivery: Delivery,
  requireWanted: () => void = () => requireAlive(entry.record),
): Promise<Live> {
  const { record } = entry;
  if (!record.machineId) throw new Error(`broken invariant: ${record.id} starts without a machine id`);
  const spec = {
    machineId: record.machineId,
    resources: record.resources,
    hostName: hostNameOf(record.id),
  };
  const machine = await core.starts.run(() => {
    // A sandbox can be terminated, or run out of time, while its machine is still being started.
    requireWanted();
    return core.driver.restore(snapshot, spec);
  });
  const live = connect(core, entry, machine);
  try {
    await adopt(entry, live, delivery);
    return live;
  } catch (error) {
    await abandon(live, record.id, error);
    throw error;
  }
}

/**
 * The same with a machine that has waited for it.
 *
 * @returns undefined when that did not work out; nothing of it is left, and the sandbox has the id for another machine
 */
export async function startWaiting(core: Core, entry: Entry, waiting: WaitingMachine, delivery: Delivery): Promise<Live | undefined> {
  const { machine, guest } = waiting;
  const live: Live = { machine, guest };
  try {
    await waiting.wake(hooksOf(core, entry, machine));
    await adopt(entry, live, delivery);
    return live;
  } catch (error) {
    await abandon(live, entry.record.id, error);
    // Of what was asked for another machine is no way around it.
    if (error instanceof MitosError && error.code === "invalid_input") throw error;
    requireAlive(entry.record);
    core.log.warn(
      { sandbox: entry.record.id, error: String(error) },
      "a machine that waited could not become a sandbox: another is started",
    );
    core.sandboxes.patch(entry, { machineId: newMachineId() });
    return undefined;
  }
}

async function adopt(entry: Entry, live: Live, delivery: Delivery): Promise<void> {
  const { record } = entry;
  await tellDeadline(entry, live);
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
}

/** Ends a machine that was started and is not to become its sandbox after all. */
export async function abandon({ guest, machine }: Live, id: SandboxId, reason: unknown): Promise<void> {
  guest.close(new MitosError("unavailable", { cause: `sandbox ${id} did not start`, reason }));
  await machine.end("start failed");
}

/** A way to talk to a sandbox's machine. */
export function connect(core: Core, entry: Entry, machine: Machine): Live {
  return { machine, guest: core.connectGuest(machine, hooksOf(core, entry, machine)) };
}

function hooksOf(core: Core, entry: Entry, machine: Machine): GuestHooks {
  return {
    onActivity: () => entry.activity.begin(),
    egress: core.egress.open({ id: entry.record.id, network: entry.record.network, usage: entry.egress }),
    onForkSelf: (count, label) => core.underWay.run(() => forkSelf(core, entry, count, label)),
    onLost: (error) => linkLost(core, entry, machine, error),
  };
}
