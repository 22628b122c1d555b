import { randomBytes } from "node:crypto";
import { mkdir, rm, stat } from "node:fs/promises";
import path from "node:path";
import type { Snapshot, SnapshotOptions, SnapshotRequirements } from "../../driver.ts";
import { diskFull } from "../../storage-error.ts";
import { commitSnapshot, readDetails, saysDiskFull } from "../host/details.ts";
import { type Facts, incompatible, requireSameFacts } from "../host/facts.ts";
import { requireIntact } from "../host/seal.ts";
import { fingerprint, hostFilesOf, requireSameFiles } from "./fingerprint.ts";
import type { GvisorMachine } from "./machine.ts";
import type { MachineRoot } from "./root.ts";
import type { RunscCommands } from "./runsc.ts";

const saveTimeoutMs = 30_000;
const saveTimeoutPerGiBMs = 60_000;
const detailsBytesMax = 16 * 1024 * 1024;

interface Details {
  readonly version: 1;
  readonly requirements: SnapshotRequirements;
  readonly root: MachineRoot;
}

/** Saves a machine beside `dir` and renames it into place, so a folder that exists is whole. The machine runs on. */
export async function saveMachine(
  machine: GvisorMachine,
  dir: string,
  { facts, runsc, durable, quiet }: Pick<SnapshotOptions, "durable" | "quiet"> & { facts: Facts; runsc: RunscCommands },
): Promise<Snapshot> {
  const { container } = machine;
  const { root, resources } = container.shape;
  const partial = `${dir}.partial-${randomBytes(4).toString("hex")}`;
  const frozen = machine.frozen;
  try {
    await mkdir(partial, { mode: 0o700 });
    if (frozen) await machine.thaw();
    await quiet?.begin();
    const timeoutMs = saveTimeoutMs + Math.ceil(resources.memSizeMiB / 1024) * saveTimeoutPerGiBMs;
    await machine.run("save a machine", runsc.checkpoint(partial, container.id), timeoutMs);
    // Afterwards: saving empties the sentry's cache of files that nobody uses, and what is closed from now on stays in it for a while.
    const hostFiles = await fingerprint(await hostFilesOf(container.sentryPid, root));
    await quiet?.end();
    const requirements: SnapshotRequirements = { ...facts, hostFiles };
    const details: Details = { version: 1, requirements, root };
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

/** The root that a snapshot's machine had, and that its restored ones must have too. @throws snapshot_incompatible */
export async function readRoot(snapshot: Snapshot): Promise<MachineRoot> {
  const isOurs = ({ root }: Details) => typeof root?.dir === "string";
  return (await readDetails<Details>(snapshot, { bytesMax: detailsBytesMax, isOurs })).root;
}

/**
 * @param content - whether the saved files are read and compared as well, as far as they have checksums
 * @throws snapshot_incompatible with what does not hold any more
 */
export async function requireCompatible(snapshot: Snapshot, facts: Facts, { content }: { content: boolean }): Promise<void> {
  requireSameFacts(snapshot, facts, "runsc");
  await requireIntact(snapshot, { content });
  const root = await readRoot(snapshot);
  if (!(await stat(root.dir).catch(() => undefined))) throw incompatible(`its root file system ${root.dir} is gone`);
  await requireSameFiles(snapshot.requirements.hostFiles);
}
