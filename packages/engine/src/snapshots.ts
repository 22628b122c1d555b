import { createHash, randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { lstat, mkdir, readdir, readlink, realpath, rm, symlink } from "node:fs/promises";
import path from "node:path";
import type { Log, SnapshotKind } from "./actions.ts";
import type { Snapshot } from "./driver.ts";
import { freeBytes } from "./free-bytes.ts";
import { isDiskFull } from "./storage-error.ts";

const sharedMemoryRoot = "/dev/shm";
/** In a folder on tmpfs: leads to the data directory that it belongs to. */
const ownerLink = "owner";
/** Left free on tmpfs for everybody else on this host. */
const fastReserveBytes = 64 * 1024 * 1024;
/** Left to a machine whose snapshot counts as its memory: its programs go on, and so does what they take. */
const machineReserveBytes = 32 * 1024 * 1024;

/** A snapshot that several restores may read at once: it is removed when it is discarded and the last reader is done. */
export class SharedSnapshot {
  readonly snapshot: Snapshot;
  #readers = 0;
  #discarded = false;
  readonly #removed = Promise.withResolvers<void>();

  constructor(snapshot: Snapshot) {
    this.snapshot = snapshot;
  }

  get isDiscarded(): boolean {
    return this.#discarded;
  }

  /** Keeps the folder until the answer is called. Of one that is discarded, the folder may be gone. */
  borrow(): () => void {
    if (this.#discarded) throw new Error(`broken invariant: the snapshot in ${this.snapshot.dir} is used after it was discarded`);
    this.#readers += 1;
    let returned = false;
    return () => {
      if (returned) return;
      returned = true;
      this.#readers -= 1;
      this.#removeIfUnused();
    };
  }

  /** Resolves when the folder is gone, which waits for the readers. Idempotent. */
  discard(): Promise<void> {
    this.#discarded = true;
    this.#removeIfUnused();
    return this.#removed.promise;
  }

  #removeIfUnused(): void {
    if (!this.#discarded || this.#readers > 0) return;
    rm(this.snapshot.dir, { recursive: true, force: true }).then(this.#removed.resolve, this.#removed.resolve);
  }
}

/** Where snapshots lie: on the disk of the data directory, or on tmpfs when speed matters, it may be lost and there is room. */
export class SnapshotPlaces {
  readonly #diskRoot: string;
  readonly #fastRoot: string | null;
  readonly #log: Log;

  private constructor(diskRoot: string, fastRoot: string | null, log: Log) {
    this.#diskRoot = diskRoot;
    this.#fastRoot = fastRoot;
    this.#log = log;
  }

  static async open(dataDir: string, log: Log): Promise<SnapshotPlaces> {
    const diskRoot = path.join(await realpath(dataDir), "snapshots");
    await mkdir(diskRoot, { recursive: true, mode: 0o700 });
    return new SnapshotPlaces(diskRoot, await openFastRoot(diskRoot, log), log);
  }

  /**
   * Lets `save` fill a folder that does not exist yet: on tmpfs where it may and there is room, and on the disk when tmpfs turns out to be full
   * after all. A save that failed has left nothing and its machine runs on.
   *
   * @param expectedBytes - how large it may get; beyond the room on tmpfs it goes to the disk at once
   * @param machineRoomBytes - how much of it on tmpfs the machine may have (`Driver.snapshotRoom`). Default: any
   * @throws quota_exceeded when the disk is full as well, and what `save` throws
   */
  async save(
    kind: SnapshotKind,
    { expectedBytes, machineRoomBytes = Number.POSITIVE_INFINITY }: { expectedBytes: number; machineRoomBytes?: number | undefined },
    save: (dir: string) => Promise<Snapshot>,
  ): Promise<Snapshot> {
    const name = `${kind}-${randomBytes(8).toString("hex")}`;
    // A pause must outlive a restart of the host.
    const isFast = kind !== "pause" && expectedBytes + machineReserveBytes <= machineRoomBytes;
    if (isFast && this.#fastRoot !== null && (await hasRoom(this.#fastRoot, expectedBytes))) {
      try {
        return await save(path.join(this.#fastRoot, name));
      } catch (error) {
        if (!isDiskFull(error)) throw error;
        this.#log.warn({ dir: this.#fastRoot, error: String(error) }, "tmpfs is full: a snapshot goes to the disk, which is slower");
      }
    }
    return save(path.join(this.#diskRoot, name));
  }

  /** Removes every folder that is not in `keep`: half-made snapshots, and those whose owner has gone. */
  async sweep(keep: ReadonlySet<string>): Promise<number> {
    let removed = 0;
    for (const root of [this.#diskRoot, this.#fastRoot]) {
      if (root === null) continue;
      for (const name of await readdir(root)) {
        const dir = path.join(root, name);
        if (keep.has(dir) || name === ownerLink) continue;
        await rm(dir, { recursive: true, force: true });
        removed += 1;
      }
    }
    return removed;
  }

  /**
   * @param keep - whether what lies on tmpfs waits for the next server. Else the memory is given back; templates are built anew from
   *   their records when they are used again
   */
  async close(keep: boolean): Promise<void> {
    if (this.#fastRoot === null) return;
    const names = keep ? await readdir(this.#fastRoot) : [];
    if (names.every((name) => name === ownerLink)) await rm(this.#fastRoot, { recursive: true, force: true });
  }
}

export function fastRootOf(diskRoot: string): string {
  const uid = process.getuid?.() ?? 0;
  return path.join(sharedMemoryRoot, `mitos-${uid}-${createHash("sha256").update(diskRoot).digest("hex").slice(0, 16)}`);
}

/** tmpfs is shared with every user of the host: a folder that somebody else prepared under our name is not used. */
async function openFastRoot(diskRoot: string, log: Log): Promise<string | null> {
  const uid = process.getuid?.() ?? 0;
  const dir = fastRootOf(diskRoot);
  try {
    await mkdir(dir, { mode: 0o700 }).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST") throw error;
    });
    const found = await lstat(dir);
    if (!found.isDirectory() || found.uid !== uid || (found.mode & 0o077) !== 0) throw new Error("it belongs to somebody else");
    await rm(`${dir}/${ownerLink}`, { force: true });
    await symlink(diskRoot, `${dir}/${ownerLink}`);
    await sweepOrphanedRoots(uid);
    return dir;
  } catch (error) {
    log.warn({ dir, error: String(error) }, "no snapshots on tmpfs: forks and creates are slower");
    return null;
  }
}

/** A data directory that was deleted leaves its folder on tmpfs behind, which takes memory until somebody looks. */
async function sweepOrphanedRoots(uid: number): Promise<void> {
  const roots = (await readdir(sharedMemoryRoot)).filter((name) => new RegExp(`^mitos-${uid}-[0-9a-f]{16}$`).test(name));
  for (const name of roots) {
    const root = path.join(sharedMemoryRoot, name);
    try {
      const owner = await readlink(path.join(root, ownerLink));
      if ((await lstat(root)).uid === uid && !existsSync(owner)) await rm(root, { recursive: true, force: true });
    } catch {
      // Not one of ours, or gone already.
    }
  }
}

async function hasRoom(dir: string, expectedBytes: number): Promise<boolean> {
  return (await freeBytes(dir)) >= expectedBytes * 1.25 + fastReserveBytes;
}
