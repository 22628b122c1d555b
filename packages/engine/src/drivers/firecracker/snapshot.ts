import { randomBytes } from "node:crypto";
import { mkdir, rm, stat } from "node:fs/promises";
import path from "node:path";
import type { Snapshot, SnapshotOptions, SnapshotRequirements } from "../../driver.ts";
import { diskFull } from "../../storage-error.ts";
import { commitSnapshot, readDetails as readOwnDetails, saysDiskFull } from "../host/details.ts";
import { type Facts, incompatible, requireSameFacts } from "../host/facts.ts";
import { requireIntact } from "../host/seal.ts";
import { pauseCalls, resumeCalls, saveCalls } from "./calls.ts";
import { cloneFile } from "./disk.ts";
import type { Host } from "./host.ts";
import type { FirecrackerMachine } from "./machine.ts";

const detailsBytesMax = 64 * 1024;

/** In a snapshot's folder. Each snapshot has files of its own: children map the memory for as long as they live, so it never changes. */
export function filesOf(dir: string): { state: string; memory: string; disk: string } {
  return { state: path.join(dir, "state"), memory: path.join(dir, "memory"), disk: path.join(dir, "disk.ext4") };
}

/** What is neither the VMM's nor the guest's. */
interface Details {
  readonly version: 1;
  readonly requirements: SnapshotRequirements;
  readonly rootKey: string;
  /** A machine of it has exactly this much. */
  readonly memSizeMiB: number;
  readonly vcpuCount: number;
}

/** Saves a machine beside `dir` and renames it into place, so a folder that exists is whole. The machine runs on, on a new link. */
export async function saveMachine(
  machine: FirecrackerMachine,
  dir: string,
  { facts, durable, quiet }: Pick<SnapshotOptions, "durable" | "quiet"> & { facts: Facts },
): Promise<Snapshot> {
  const { shape } = machine.vmm;
  const partial = `${dir}.partial-${randomBytes(4).toString("hex")}`;
  const requirements: SnapshotRequirements = { ...facts, hostFiles: {} };
  const frozen = machine.frozen;
  try {
    await mkdir(partial, { mode: 0o700 });
    if (frozen) await machine.thaw();
    await quiet?.begin();
    await capture(machine, partial);
    await quiet?.end();
    const { vcpuCount, memSizeMiB } = shape.resources;
    const details: Details = { version: 1, requirements, rootKey: shape.rootKey, vcpuCount, memSizeMiB };
    const { files, bytes } = await commitSnapshot(partial, dir, details, { durable });
    return { dir, bytes, requirements, files };
  } catch (error) {
    const full = saysDiskFull(error) ? diskFull(path.dirname(dir), error) : undefined;
    await rm(partial, { recursive: true, force: true });
    throw full ?? error;
  } finally {
    if (frozen) await machine.freeze();
  }
}

/** While the guest stands still: its state, its memory, and its disk as both know it. */
async function capture(machine: FirecrackerMachine, dir: string): Promise<void> {
  const { place } = machine.vmm;
  const { state, memory, disk } = filesOf(dir);
  await machine.call(pauseCalls);
  try {
    await machine.call(saveCalls({ state: place.outlet(state), memory: place.outlet(memory) }));
    await Promise.all([place.collect(state), place.collect(memory), cloneFile(place.disk, disk)]);
  } finally {
    await machine.call(resumeCalls);
    await machine.connectLink();
  }
}

/** @throws snapshot_incompatible */
export function readDetails(snapshot: Snapshot): Promise<Details> {
  return readOwnDetails(snapshot, { bytesMax: detailsBytesMax, isOurs: ({ rootKey }) => /^[\w.-]{1,128}$/.test(rootKey) });
}

/**
 * @param content - whether the saved files are read and compared as well, as far as they have checksums
 * @throws snapshot_incompatible with what does not hold any more
 */
export async function requireCompatible(host: Host, snapshot: Snapshot, facts: Facts, { content }: { content: boolean }): Promise<void> {
  requireSameFacts(snapshot, facts, "Firecracker");
  await requireIntact(snapshot, { content });
  const { rootKey } = await readDetails(snapshot);
  const image = host.images.pathOf(rootKey);
  if (!(await stat(image).catch(() => undefined))) throw incompatible(`its root file system ${image} is gone`);
}
