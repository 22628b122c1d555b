import { stat } from "node:fs/promises";
import { allOf } from "../../all-of.ts";
import type { MachineResources, SealedFile, Snapshot, SnapshotRequirements } from "../../driver.ts";
import { readDetails as readOwnDetails } from "../host/details.ts";
import { type Facts, incompatible, requireSameFacts } from "../host/facts.ts";
import { requireIntact } from "../host/seal.ts";
import type { Host } from "./host.ts";

const detailsBytesMax = 64 * 1024;

/** What of a machine lies in a snapshot's own folder: devices, and the memory that differs from its base. */
export const stateFile = "state";

/** What a snapshot stands on in the data directory. */
export interface Details {
  readonly version: 1;
  readonly requirements: SnapshotRequirements;
  readonly resources: MachineResources;
  readonly image: string;
  readonly base: string;
  readonly disk: string;
  /** Its files. */
  readonly diskFiles: Readonly<Record<string, SealedFile>>;
}

/** @throws snapshot_incompatible */
export function readDetails(snapshot: Snapshot): Promise<Details> {
  return readOwnDetails(snapshot, { bytesMax: detailsBytesMax, isOurs: ({ diskFiles }) => typeof diskFiles === "object" });
}

export interface Opened {
  readonly details: Details;
  /** Whether all that it stands on is there, as it was. Rejects with snapshot_incompatible and what does not hold any more. */
  readonly intact: Promise<void>;
}

/**
 * What a snapshot says of itself, while the rest is looked at still: of one that this server has saved, it is known.
 *
 * @param content - whether the saved files are read and compared as well, as far as they have checksums
 * @throws snapshot_incompatible
 */
export async function openSaved(host: Host, snapshot: Snapshot, facts: Facts, { content }: { content: boolean }): Promise<Opened> {
  requireSameFacts(snapshot, facts, "QEMU");
  const known = host.saved.get(snapshot.dir);
  if (!known) await requireIntact(snapshot, { content });
  const details = known ?? (await readDetails(snapshot));
  const intact = allOf([
    known && requireIntact(snapshot, { content }),
    requireImage(host, details),
    host.bases.requireIntact(details.base),
    host.disks.requireIntact(details.disk, details.diskFiles, { content }),
  ]).then(() => undefined);
  // Whoever asks for it is told. It may be known before.
  intact.catch(() => undefined);
  return { details, intact };
}

async function requireImage({ images }: Host, { image }: Details): Promise<void> {
  if (!(await stat(images.pathOf(image)).catch(() => undefined))) throw incompatible(`its root image ${image} is gone`);
}
