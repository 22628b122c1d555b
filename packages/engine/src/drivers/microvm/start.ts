import { rm } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import { allOf } from "../../all-of.ts";
import type { MachineResources, MachineSpec, RestoreSpec, RootSource, Snapshot } from "../../driver.ts";
import { nameKeeper, nameOf, newKeeperId } from "../host/layout.ts";
import type { ReadyKeepers } from "../host/ready.ts";
import type { MachineShape } from "./command-line.ts";
import { attachDisk, completeDisk, openAhead } from "./disk-steps.ts";
import type { NewDisk } from "./disks.ts";
import type { Host } from "./host.ts";
import { activate, type MicrovmMachine } from "./machine.ts";
import { type Details, type Opened, stateFile } from "./saved.ts";
import { discardVmm, ownerOf, runSteps, saysNoAnswer, startVmm, type Vmm } from "./vmm.ts";
import { execute, fdSets, type VmmStep } from "./vmm-steps.ts";

/** Of an emulated boot on a host that is not very busy, many times over. The next attempt has twice as long, since nothing tells a slow boot from one that hangs. */
const firstBootTimeoutMs = 60_000;
/** A kernel that hangs while it starts (it was seen to, when it measures its clock under emulation) is started anew. */
const bootAttempts = 3;
const restoreTimeoutMs = 30_000;
const timeoutPerGiBMs = 30_000;

/** A monitor says nothing of the state that it takes until it is asked to. */
const tellOfMigration = execute("migrate-set-capabilities", { capabilities: [{ capability: "events", state: true }] });
/** The guest has opened its end of the link: the agent is about to read. */
const linkOpened: VmmStep = { await: { event: "VSERPORT_CHANGE", field: "open", values: [true], failures: [] } };

/** A machine from its kernel on. @throws quota_exceeded, unavailable when it does not boot */
export async function bootMachine(host: Host, spec: MachineSpec): Promise<MicrovmMachine> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await bootOnce(host, spec, firstBootTimeoutMs * 2 ** (attempt - 1));
    } catch (error) {
      if (attempt >= bootAttempts || !saysNoAnswer(error)) throw error;
      host.log.warn({ machine: spec.machineId, attempt }, "a machine did not boot in time: it is started anew");
    }
  }
}

async function bootOnce(host: Host, { machineId, resources, root }: MachineSpec, timeoutMs: number): Promise<MicrovmMachine> {
  const vmm = await startBooting(host, resources, root);
  using disk = await equip(host, vmm, machineId, host.disks.create(null));
  const { steps, afterwards } = attachDisk(disk.chain);
  const starting = [...steps, execute("cont"), linkOpened];
  return await activate(host, vmm, machineId, { disk: disk.id, steps: starting, afterwards, timeoutMs });
}

async function startBooting(host: Host, resources: MachineResources, root: RootSource): Promise<Vmm> {
  const id = newKeeperId();
  const image = await host.images.use(root);
  try {
    const base = await host.bases.create(resources.memSizeMiB * 2 ** 20, ownerOf(host, id));
    return await startVmm(host, { resources, image: image.key, base: base.id, boots: true }, { image, base }, id);
  } catch (error) {
    image[Symbol.dispose]();
    throw error;
  }
}

/** What a machine needs that goes on from a snapshot. */
export function restoredShape({ resources, image, base }: Details): MachineShape {
  return { resources, image, base, boots: false };
}

/** Machines that may go on soon: of this shape, and over this disk. */
export interface Expected {
  readonly shape: MachineShape;
  /** Id; whether somebody writes to it, and theirs lie over what it lies over itself. Undefined: of a machine that has ended. */
  readonly disk: { readonly id: string; readonly isWritten: boolean } | undefined;
}

/** A monitor that has opened what it can. @throws as `startWaiting` */
export async function startReady(host: Host, { shape, disk }: Expected): Promise<Vmm> {
  const vmm = await startWaiting(host, shape);
  try {
    // A disk that is gone by now is nobody's: it waits without one.
    const chain = disk ? await host.disks.chainOf(disk.id).catch(() => []) : [];
    vmm.opened = { frozen: disk?.isWritten ? chain.slice(0, -1) : chain, overlay: await host.disks.createLoose() };
    const steps = openAhead({ frozen: vmm.opened.frozen, overlay: vmm.opened.overlay.path });
    await runSteps(vmm, "open a disk ahead", steps, restoreTimeoutMs);
    return vmm;
  } catch (error) {
    await discardVmm(host, vmm);
    throw error;
  }
}

/** A monitor for machines of this shape, which waits for a state. @throws snapshot_incompatible when what it stands on is gone */
export async function startWaiting(host: Host, shape: MachineShape): Promise<Vmm> {
  const image = await host.images.useKnown(shape.image);
  try {
    const base = await host.bases.use(shape.base);
    return await startIncoming(host, shape, { image, base });
  } catch (error) {
    image[Symbol.dispose]();
    throw error;
  }
}

async function startIncoming(host: Host, shape: MachineShape, uses: Vmm["uses"]): Promise<Vmm> {
  const vmm = await startVmm(host, shape, uses);
  try {
    await runSteps(vmm, "prepare a monitor", [tellOfMigration], restoreTimeoutMs);
    return vmm;
  } catch (error) {
    await discardVmm(host, vmm);
    throw error;
  }
}

/** @throws invalid_input for other resources than it was saved with; snapshot_incompatible, quota_exceeded */
export async function restoreMachine(
  host: Host,
  ready: ReadyKeepers<Expected, Vmm>,
  snapshot: Snapshot,
  { details, intact }: Opened,
  { machineId, resources }: RestoreSpec,
): Promise<{ machine: MicrovmMachine; wasReady: boolean }> {
  requireSameHardware(resources, details.resources);
  const shape = restoredShape(details);
  const waiting = ready.take({ shape, disk: { id: details.disk, isWritten: false } });
  // Nothing is begun for what is damaged, unless it can be seen meanwhile whether it is.
  if (!waiting) await intact;
  const vmm = waiting ?? (await startWaiting(host, shape));
  const { opened } = vmm;
  const placed = opened ? host.disks.place(opened.overlay, details.disk) : host.disks.create(details.disk);
  using disk = await equip(host, vmm, machineId, placed, intact);
  const file = path.join(snapshot.dir, stateFile);
  const attachment = opened ? completeDisk(disk.chain, { ...opened, overlay: disk.path }) : attachDisk(disk.chain);
  const steps: VmmStep[] = [
    ...attachment.steps,
    { add_fd: { set: fdSets.incoming, path: file, access: "read" } },
    execute("migrate-incoming", { uri: `file:/dev/fdset/${fdSets.incoming}` }),
    { await: { event: "MIGRATION", field: "status", values: ["completed"], failures: ["failed", "cancelled"] } },
  ];
  const afterwards = [...attachment.afterwards, execute("remove-fd", { "fdset-id": fdSets.incoming })];
  const timeoutMs = restoreTimeoutMs + Math.ceil(resources.memSizeMiB / 1024) * timeoutPerGiBMs;
  return {
    machine: await activate(host, vmm, machineId, { disk: disk.id, steps, letRun: execute("cont"), afterwards, timeoutMs }),
    wasReady: waiting !== undefined,
  };
}

/**
 * Gives a monitor what it needs to become a machine: all at once, since a fork waits for it.
 *
 * @param intact - rejects when what it goes on from is damaged
 * @throws what one of them throws; the monitor, its disk and its name are gone then
 */
async function equip(host: Host, vmm: Vmm, machineId: string, disk: Promise<NewDisk>, intact?: Promise<void>): Promise<NewDisk> {
  const name = nameKeeper(host.layout, machineId, vmm.id);
  try {
    return (await allOf([disk, name, intact]))[0];
  } catch (error) {
    const undone = [disk.then((made) => made[Symbol.dispose]()), name.then(() => rm(nameOf(host.layout, machineId), { force: true }))];
    await Promise.allSettled(undone);
    await discardVmm(host, vmm);
    throw error;
  }
}

/** They are part of the saved state. How many processes programs may have is the agent's, and may differ. */
function requireSameHardware(wanted: MachineResources, saved: MachineResources): void {
  for (const [key, name] of [
    ["memSizeMiB", "MiB of memory"],
    ["vcpuCount", "processors"],
  ] as const) {
    if (wanted[key] === saved[key]) continue;
    throw new MitosError("invalid_input", {
      cause: `a virtual machine has the hardware that its template was built with: ${saved[key]} ${name}, not ${wanted[key]}`,
      remediation: "Build a template with these resources, and create the sandbox from it.",
    });
  }
}
