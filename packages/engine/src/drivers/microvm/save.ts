import { randomBytes } from "node:crypto";
import { mkdir, rm } from "node:fs/promises";
import path from "node:path";
import { allOf } from "../../all-of.ts";
import type { Snapshot, SnapshotOptions, SnapshotRequirements } from "../../driver.ts";
import { diskFull } from "../../storage-error.ts";
import { commitSnapshot, saysDiskFull } from "../host/details.ts";
import type { Facts } from "../host/facts.ts";
import type { BaseUse } from "./bases.ts";
import { settleChain, shortenChain } from "./chain-length.ts";
import { copySparse } from "./copy-sparse.ts";
import { askForTopDisk, type DiskSnapshot, type Succession, snapshotDisk, topDiskOf } from "./disk-steps.ts";
import type { NewDisk } from "./disks.ts";
import type { Host } from "./host.ts";
import type { MicrovmMachine } from "./machine.ts";
import { isWorthNewBase, makeNewBase } from "./new-base.ts";
import { fullOne } from "./room.ts";
import { type Details, stateFile } from "./saved.ts";
import { openSpare, successionOf, takeNext } from "./spare.ts";
import { recordMachine, requireDisk, runInBackground, runSteps, saveTimeoutMs } from "./vmm.ts";
import {
  type ExecuteStep,
  execute,
  fdSets,
  forgetDeviceState,
  saveDeviceState,
  saveNextDeviceState,
  timersLater,
  type VmmStep,
} from "./vmm-steps.ts";

/** For what copies nothing. */
const stepsTimeoutMs = 30_000;
const devicesFile = "devices";

interface Options extends SnapshotOptions {
  readonly facts: Facts;
}

/**
 * Saves a machine beside `dir` and renames it into place, so a folder that exists is whole.
 *
 * With `leaveRunning` it stands still only while the state of its devices and what it has changed in memory are copied, and goes on in a new
 * overlay of its disk. Otherwise it has ended when this resolves, and what it has is the snapshot's.
 */
export async function saveMachine(host: Host, machine: MicrovmMachine, dir: string, options: Options): Promise<Snapshot> {
  const snapshot = await machine.exclusively(async () => {
    const partial = `${dir}.partial-${randomBytes(4).toString("hex")}`;
    try {
      const [isWorth] = await allOf([options.leaveRunning && isWorthNewBase(host, machine, options), settleChain(host, machine)]);
      const save = isWorth ? saveWithNewBaseIfItGoes : options.leaveRunning ? saveOverBase : saveEnding;
      return await save(host, machine, { dir, partial }, options);
    } catch (error) {
      const folder = saysDiskFull(error)
        ? path.dirname(dir)
        : saysNotWritten(error) && (await fullOne([path.dirname(dir), machine.vmm.dir]));
      await rm(partial, { recursive: true, force: true });
      throw folder ? diskFull(folder, error) : error;
    }
  });
  if (options.leaveRunning) {
    shortenChain(host, machine);
    openSpare(host, machine);
  }
  return snapshot;
}

interface Folders {
  readonly dir: string;
  readonly partial: string;
}

async function saveWithNewBaseIfItGoes(host: Host, machine: MicrovmMachine, folders: Folders, options: Options): Promise<Snapshot> {
  try {
    return await saveWithNewBase(host, machine, folders, options);
  } catch (error) {
    host.log.warn({ machine: machine.machineId, error: String(error) }, "no new base was made of a machine: what it has written is copied");
    await rm(folders.partial, { recursive: true, force: true });
  }
  return saveOverBase(host, machine, folders, options);
}

/** What others go on from is what this machine does, with what it has changed; of one that has booted, a copy of what it still writes to. */
async function saveOverBase(host: Host, machine: MicrovmMachine, folders: Folders, options: Options): Promise<Snapshot> {
  const { shape } = machine.vmm;
  using copy = shape.boots ? await host.bases.create(shape.resources.memSizeMiB * 2 ** 20, undefined) : undefined;
  return await saveInNextOverlay(host, machine, folders, options, async (disk, { deviceState }) => {
    if (disk.before.length > 0) await runSteps(machine.vmm, "prepare a snapshot", disk.before, stepsTimeoutMs);
    await allOf([makeFolder(folders), options.quiet?.begin()]);
    const save = saveMemory(host, machine, folders, { deviceState, meanwhile: [...disk.whileStopped, saveNextDeviceState] });
    if (copy) await saveWithCopy(host, machine, save, copy);
    else await saveDelta(machine, save);
    return { base: copy?.id ?? shape.base, afterwards: disk.afterwards };
  });
}

/** Of one that has written much: all of its memory, in a file that its children share. */
async function saveWithNewBase(host: Host, machine: MicrovmMachine, folders: Folders, options: Options): Promise<Snapshot> {
  const at = (name: string) => path.join(folders.partial, name);
  const made: BaseUse[] = [];
  try {
    await makeFolder(folders);
    return await saveInNextOverlay(host, machine, folders, options, async (disk) => {
      const base = await makeNewBase(host, machine, { disk, deviceState: at(devicesFile), out: at(stateFile), quiet: options.quiet });
      await rm(at(devicesFile));
      made.push(base);
      return { base: base.id, afterwards: disk.afterwards };
    });
  } catch (error) {
    for (const base of made) await host.bases.remove(base.id);
    throw error;
  } finally {
    for (const base of made) base[Symbol.dispose]();
  }
}

interface Captured {
  /** What others go on from. */
  readonly base: string;
  /** What has time until the machine runs again. */
  readonly afterwards: readonly VmmStep[];
}

/** @param capture - begins the quiet and saves devices and memory, in between which the machine's disk is frozen and it goes on in a new overlay */
async function saveInNextOverlay(
  host: Host,
  machine: MicrovmMachine,
  folders: Folders,
  options: Options,
  capture: (disk: DiskSnapshot, succession: Succession) => Promise<Captured>,
): Promise<Snapshot> {
  const { vmm } = machine;
  const frozen = requireDisk(vmm);
  const { next: taken, isOpen } = await takeNext(host, vmm, frozen);
  using next = taken;
  const succession = successionOf(vmm, next);
  const disk = snapshotDisk({ ...succession, isOpen });
  let captured: Captured;
  try {
    captured = await capture(disk, succession);
  } catch (error) {
    await undo(machine, disk, next);
    await rm(succession.deviceState, { force: true });
    throw error;
  }
  vmm.disk = next.id;
  const goesOn = options.quiet?.end();
  runInBackground(host, vmm, "go on after a snapshot", captured.afterwards, stepsTimeoutMs);
  const [snapshot] = await allOf([
    commit(host, machine, folders, options, { base: captured.base, disk: frozen }),
    goesOn,
    recordMachine(vmm),
    rm(succession.deviceState, { force: true }),
  ]);
  return snapshot;
}

/** The usual fork: one operation of the shim, so that nothing but it decides how long the machine stands still. */
async function saveDelta({ vmm }: MicrovmMachine, save: VmmStep): Promise<void> {
  await runSteps(vmm, "save a machine", [execute("stop"), save, goOn], saveTimeoutMs(vmm));
}

/** Of a machine that has booted, whose memory file is still written to: a copy of it is what others go on from. */
async function saveWithCopy(host: Host, { vmm }: MicrovmMachine, save: VmmStep, copy: BaseUse): Promise<void> {
  let failure: unknown;
  try {
    await runSteps(vmm, "save a machine", [execute("stop"), save], saveTimeoutMs(vmm));
    await copySparse(vmm.uses.base.path, copy.path);
  } catch (error) {
    failure = error;
  }
  // What failed first is told.
  await runSteps(vmm, "go on with a machine", [goOn], stepsTimeoutMs).catch((error: unknown) => {
    failure ??= error;
  });
  if (failure !== undefined) throw failure;
  await host.bases.freeze(copy.id);
}

/** Nothing but the machine itself is there until the snapshot is: it ends after that, and goes on when there is none. */
async function saveEnding(host: Host, machine: MicrovmMachine, folders: Folders, options: Options): Promise<Snapshot> {
  const { vmm } = machine;
  const { base, boots } = vmm.shape;
  const disk = requireDisk(vmm);
  const deviceState = path.join(folders.partial, devicesFile);
  try {
    await allOf([makeFolder(folders), options.quiet?.begin()]);
    const add: VmmStep = { add_fd: { set: fdSets.deviceState, path: deviceState, access: "create_write" } };
    const steps = [add, execute("stop"), saveMemory(host, machine, folders, { deviceState, meanwhile: [saveDeviceState] })];
    await runSteps(vmm, "save a machine", steps, saveTimeoutMs(vmm));
    await rm(deviceState);
    const snapshot = await commit(host, machine, folders, options, { base, disk });
    await machine.end("saved");
    if (boots) await host.bases.freeze(base);
    return snapshot;
  } catch (error) {
    await runSteps(vmm, "go on with a machine that could not be saved", [forgetState, goOn], stepsTimeoutMs).catch(() => undefined);
    throw error;
  }
}

async function makeFolder({ partial }: Folders): Promise<void> {
  await mkdir(partial, { mode: 0o700 });
}

async function commit(
  host: Host,
  machine: MicrovmMachine,
  { dir, partial }: Folders,
  { facts, durable }: Options,
  { base, disk }: { base: string; disk: string },
): Promise<Snapshot> {
  const { image, resources } = machine.vmm.shape;
  const requirements: SnapshotRequirements = { ...facts, hostFiles: {} };
  const [sealed, baseBytes] = await Promise.all([
    host.disks.seal(disk, { durable }),
    host.bases.bytesOf(base),
    durable ? host.bases.sync(base) : undefined,
  ]);
  const details: Details = { version: 1, requirements, resources, image, base, disk, diskFiles: sealed.files };
  const { files, bytes } = await commitSnapshot(partial, dir, details, { durable, names: [stateFile] });
  // What it stands on is the machine's too until here.
  host.saved.set(dir, details);
  return { dir, bytes, standsOnBytes: sealed.bytes + baseBytes, requirements, files };
}

/** Of the state of its devices. QEMU does not say why. */
const saysNotWritten = (error: unknown) => /saving Xen device state failed/.test(String(error));
const forgetState: VmmStep = { ...forgetDeviceState, always: true };
const goOn: VmmStep = { ...execute("cont"), always: true };

interface Devices {
  /** Where their state is written to, `meanwhile`. */
  readonly deviceState: string;
  readonly meanwhile: readonly ExecuteStep[];
}

function saveMemory({ accel }: Host, { vmm }: MicrovmMachine, { partial }: Folders, { deviceState, meanwhile }: Devices): VmmStep {
  const out = path.join(partial, stateFile);
  return { save_memory: { base: vmm.uses.base.path, device_state: deviceState, out, meanwhile, ...timersLater(accel) } };
}

/** A machine whose disk is frozen already goes on in the new overlay, though nobody has a snapshot of it. */
async function undo({ vmm }: MicrovmMachine, disk: DiskSnapshot, next: NewDisk): Promise<void> {
  await runSteps(vmm, "undo what a fork has begun", disk.undo, stepsTimeoutMs).catch(() => undefined);
  // One that does not answer has ended, or ends.
  const asked = await runSteps(vmm, "find the disk of a machine", [askForTopDisk], stepsTimeoutMs).catch(() => undefined);
  if (!asked || topDiskOf(asked.results[0]) !== next.id) return;
  vmm.disk = next.id;
  // Where there is no room for it, the next server asks as well.
  await recordMachine(vmm).catch(() => undefined);
}
