import { randomBytes } from "node:crypto";
import { link, lstat, mkdir, open, readdir, readlink, rename, rm, symlink } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import { allOf } from "../../all-of.ts";
import type { SealedFile } from "../../driver.ts";
import { storageError } from "../../storage-error.ts";
import { syncFolder } from "../../sync-folder.ts";
import { incompatible } from "../host/facts.ts";
import { requireIntact, sealFiles } from "../host/seal.ts";
import { copySparse } from "./copy-sparse.ts";
import { type Backing, writeBacking, writeOverlay } from "./qcow2.ts";

/** A longer chain is worth a collapse in the background: each file costs a machine two descriptors, and a read that finds nothing a look. */
export const collapseAbove = 8;
/** From here on a fork waits for the collapse that it would otherwise call off, so that a machine that only ever forks has no chain without end. */
export const chainLengthMax = 32;
/** Of a folder that somebody has tampered with; none that we make comes near. */
const linksMax = 4 * chainLengthMax;

const idPattern = /^[0-9a-f]{12}$/;
const fileSuffix = ".qcow2";
/** A link that says what lies below. The header of an overlay says so too, but a machine can write there. */
const belowSuffix = ".below";
const emptyPrefix = "empty-";
const emptySuffix = ".ext4";
const partialMark = ".partial-";

export interface Disk {
  /** 12 hexadecimal digits. Sandboxes and snapshots hold the id of their uppermost overlay. */
  readonly id: string;
  readonly path: string;
  /** Every file of it, lowest first: the empty disk, then overlays, this one last. */
  readonly chain: readonly string[];
}

/** Stays until disposed of, whether or not anybody is known to hold it yet. */
export interface NewDisk extends Disk, Disposable {}

/** A file for what a machine is going to write that lies over nothing yet, and is no disk before it is placed. Stays until disposed of. */
export interface LooseOverlay extends Disposable {
  readonly id: string;
  readonly path: string;
}

export interface EmptyDisk {
  /** A file system with nothing in it. */
  readonly path: string;
  readonly bytes: number;
  readonly hash: string;
}

/**
 * What machines have written, as overlays over the empty disk, in one folder: `<id>.qcow2`, and `<id>.below`, a link that names the file below. Only
 * a running machine's uppermost overlay is written to, by its VMM. An overlay with others over it never changes again.
 *
 * The empty disk lies here as well, since overlays stay good for only as long as it does, whatever set-up has made since.
 */
export class Disks {
  readonly #dir: string;
  readonly #bytes: number;
  /** Its name in the folder. */
  readonly #empty: string;
  /** By id: how often it is in use by somebody who may not yet be known to hold it. */
  readonly #uses = new Map<string, number>();
  /** By id, the name of the file below, as it was last written or seen. */
  readonly #seenBelow = new Map<string, string>();
  /** Over when nothing is being removed: whoever wants a disk meanwhile waits, since what it stands on may be what goes. */
  #removing: Promise<void> = Promise.resolve();

  private constructor(dir: string, empty: string, bytes: number) {
    this.#dir = dir;
    this.#empty = empty;
    this.#bytes = bytes;
  }

  /** @throws quota_exceeded when the disk is full */
  static async open({ dir, emptyDisk }: { dir: string; emptyDisk: EmptyDisk }): Promise<Disks> {
    const empty = `${emptyPrefix}${emptyDisk.hash.replace(/^sha256:/, "").slice(0, 12)}${emptySuffix}`;
    await mkdir(dir, { recursive: true, mode: 0o700 });
    await whenStored(dir, () => adoptEmptyDisk(emptyDisk.path, path.join(dir, empty)));
    return new Disks(dir, empty, emptyDisk.bytes);
  }

  /**
   * An overlay with nothing in it yet.
   *
   * @param backing - id of the disk that it lies over, which must not be written to once this is in use. Null: the empty disk
   * @throws not_found when that one is gone, quota_exceeded when the disk is full
   */
  async create(backing: string | null): Promise<NewDisk> {
    const id = randomBytes(6).toString("hex");
    if (backing !== null) this.#hold(requireId(backing));
    this.#hold(id);
    try {
      await this.#removing;
      const file = this.#pathOf(`${id}${fileSuffix}`);
      const works = [
        whenStored(this.#dir, () => this.#write(id, backing)),
        backing === null ? [this.#pathOf(this.#empty)] : this.chainOf(backing),
      ] as const;
      const [, below] = await allOf(works).catch(async (reason) => {
        await this.#remove(id);
        throw reason;
      });
      return { id, path: file, chain: [...below, file], [Symbol.dispose]: once(() => this.#release(id)) };
    } catch (error) {
      this.#release(id);
      throw error;
    } finally {
      // From now on it is held by standing below the new one.
      if (backing !== null) this.#release(backing);
    }
  }

  /** One with nothing in it, made before it is known what it will lie over. @throws quota_exceeded when the disk is full */
  async createLoose(): Promise<LooseOverlay> {
    const id = randomBytes(6).toString("hex");
    this.#hold(id);
    try {
      await this.#removing;
      const file = this.#pathOf(`${id}${fileSuffix}`);
      await whenStored(this.#dir, () => this.#writeFile(id, undefined));
      return { id, path: file, [Symbol.dispose]: once(() => this.#release(id)) };
    } catch (error) {
      this.#release(id);
      throw error;
    }
  }

  /**
   * Makes a disk of a loose overlay, which nobody has written to; it is disposed of as the disk from then on.
   *
   * @param backing - as of `create`
   * @throws as `create`; the overlay is loose still
   */
  async place(overlay: LooseOverlay, backing: string): Promise<NewDisk> {
    const { id, path: file } = overlay;
    this.#hold(requireId(backing));
    try {
      await this.#removing;
      const named: Backing = { name: `${backing}${fileSuffix}`, format: "qcow2" };
      const link = this.#pathOf(`${id}${belowSuffix}`);
      const works = [
        this.chainOf(backing),
        writeBacking(file, { diskBytes: this.#bytes, backing: named }),
        symlink(named.name, link),
      ] as const;
      const [below] = await whenStored(this.#dir, () => allOf(works)).catch(async (reason) => {
        await rm(link, { force: true });
        throw reason;
      });
      this.#seenBelow.set(id, named.name);
      return { id, path: file, chain: [...below, file], [Symbol.dispose]: () => overlay[Symbol.dispose]() };
    } finally {
      // From now on it is held by standing below the new one.
      this.#release(backing);
    }
  }

  /**
   * Lowest first, as it was written or last seen: a fork asks often, and nobody else changes it.
   *
   * @throws not_found when it never was seen, and it, or one below it, is not there
   */
  async chainOf(id: string): Promise<readonly string[]> {
    return this.#seenChain(requireId(id))?.map((name) => this.#pathOf(name)) ?? this.#walk(id);
  }

  /** Names, lowest first. */
  #seenChain(id: string): readonly string[] | undefined {
    const names = [`${id}${fileSuffix}`];
    for (
      let below = this.#seenBelow.get(id);
      below !== undefined && names.length <= linksMax;
      below = this.#seenBelow.get(idOf(below) ?? "")
    )
      names.unshift(below);
    return names[0]?.startsWith(emptyPrefix) ? names : undefined;
  }

  /** Looked at all at once. @throws not_found when it, or one below it, is not there */
  async #lookAt(id: string): Promise<readonly string[]> {
    const names = this.#seenChain(requireId(id));
    if (!names) return this.#walk(id);
    const isAsSeen = async (name: string, index: number) => {
      const [found, below] = await Promise.all([
        lstat(this.#pathOf(name)),
        index > 0 ? readlink(this.#pathOf(`${idOf(name)}${belowSuffix}`)) : undefined,
      ]);
      return found.isFile() && below === names[index - 1];
    };
    const seen = await Promise.all(names.map(isAsSeen)).catch(() => [false]);
    return seen.every(Boolean) ? names.map((name) => this.#pathOf(name)) : this.#walk(id);
  }

  async #walk(id: string): Promise<readonly string[]> {
    const upwards: string[] = [];
    let name = `${id}${fileSuffix}`;
    while (!name.startsWith(emptyPrefix)) {
      upwards.unshift(this.#pathOf(name));
      if (upwards.length > linksMax) throw new MitosError("internal", { cause: `the chain of disk ${id} has no end` });
      await this.#requireFile(name, id);
      name = await this.#below(idOf(name) as string);
    }
    await this.#requireFile(name, id);
    return [this.#pathOf(name), ...upwards];
  }

  /** To be told when a machine's overlay holds all that lay between it and the empty disk: it stands on that one from now on. */
  async collapsed(id: string): Promise<Disk> {
    this.#hold(requireId(id));
    try {
      await this.#removing;
      const [empty] = (await this.chainOf(id)) as [string];
      await whenStored(this.#dir, async () => {
        const partial = this.#pathOf(`${id}${belowSuffix}${partialMark}${randomBytes(4).toString("hex")}`);
        await symlink(path.basename(empty), partial);
        await rename(partial, this.#pathOf(`${id}${belowSuffix}`));
        this.#seenBelow.set(id, path.basename(empty));
      });
      const file = this.#pathOf(`${id}${fileSuffix}`);
      return { id, path: file, chain: [empty, file] };
    } finally {
      this.#release(id);
    }
  }

  /**
   * What the files of a disk are that nobody writes to any more, by name. The empty disk is not among them: whoever changes that changes all.
   *
   * @param durable - they outlive the host's power from now on, and one changed bit is noticed
   * @returns also what they take of the disk together, in bytes
   * @throws quota_exceeded
   */
  async seal(id: string, { durable }: { durable: boolean }): Promise<{ files: Record<string, SealedFile>; bytes: number }> {
    const [empty, ...overlays] = (await this.chainOf(id)).map((file) => path.basename(file)) as [string, ...string[]];
    return whenStored(this.#dir, async () => {
      const sealed = await sealFiles(this.#dir, { durable, names: overlays });
      if (!durable) return sealed;
      await using handle = await open(this.#pathOf(empty), "r");
      await handle.datasync();
      await syncFolder(this.#dir);
      return sealed;
    });
  }

  /**
   * @param content - whether checksums are compared as well, for which everything is read
   * @throws snapshot_incompatible when it is not what was sealed any more
   */
  async requireIntact(id: string, sealed: Readonly<Record<string, SealedFile>>, { content }: { content: boolean }): Promise<void> {
    const whole = this.#lookAt(id).catch((reason: unknown) => {
      throw incompatible("what it has written is gone", reason);
    });
    const [, chain] = await Promise.all([requireIntact({ dir: this.#dir, files: sealed }, { content }), whole]);
    const overlays = chain.slice(1).map((file) => path.basename(file));
    if (overlays.join() !== Object.keys(sealed).join()) throw incompatible(`disk ${id} does not stand on what it stood on`);
  }

  /**
   * Removes disks that nobody stands on, and what a server that was killed has left half-made.
   *
   * @param keep - ids that machines and snapshots hold. Asked for when it is known who has just made one, so that none falls between the two
   */
  async removeUnused(keep: () => Promise<ReadonlySet<string>>): Promise<void> {
    const removal = this.#removing.then(async () => {
      // Before anything is asked: whoever is in use now may be held by a machine before `keep` is. Who comes later waits for this removal.
      const held = new Set(this.#uses.keys());
      const names = await readdir(this.#dir);
      for (const id of await keep()) held.add(id);
      const needed = await this.#closure(held);
      needed.add(this.#empty);
      const ids = new Set(names.map(idOf).filter((id) => id !== undefined));
      for (const id of ids) if (!needed.has(id)) await this.#remove(id);
      for (const name of names) {
        const idle = name.startsWith(emptyPrefix) ? !needed.has(name) : name.includes(partialMark) && !held.has(idOf(name) as string);
        if (idle) await rm(this.#pathOf(name), { force: true });
      }
    });
    this.#removing = removal.catch(() => {});
    await removal;
  }

  async #write(id: string, backing: string | null): Promise<void> {
    const below: Backing = backing === null ? { name: this.#empty, format: "raw" } : { name: `${backing}${fileSuffix}`, format: "qcow2" };
    await symlink(below.name, this.#pathOf(`${id}${belowSuffix}`));
    await this.#writeFile(id, below);
    this.#seenBelow.set(id, below.name);
  }

  async #writeFile(id: string, backing: Backing | undefined): Promise<void> {
    try {
      await writeOverlay(this.#pathOf(`${id}${fileSuffix}`), { diskBytes: this.#bytes, ...(backing && { backing }) });
    } catch (error) {
      await this.#remove(id);
      throw error;
    }
  }

  /** Ids, and names of empty disks, that these stand on, themselves included. One that is gone needs nothing. */
  async #closure(ids: ReadonlySet<string>): Promise<Set<string>> {
    const needed = new Set<string>();
    for (const id of ids) {
      let next: string | undefined = id;
      while (next !== undefined && !needed.has(next)) {
        needed.add(next);
        const below: string | undefined = idPattern.test(next) ? await this.#below(next).catch(() => undefined) : undefined;
        next = below === undefined ? undefined : (idOf(below) ?? below);
      }
    }
    return needed;
  }

  async #below(id: string): Promise<string> {
    const name = await readlink(this.#pathOf(`${id}${belowSuffix}`)).catch((reason: unknown) => {
      throw gone(id, reason);
    });
    if (idOf(name) === undefined && !(name.startsWith(emptyPrefix) && path.basename(name) === name))
      throw new MitosError("internal", { cause: `what disk ${id} lies over is no disk: ${name}` });
    this.#seenBelow.set(id, name);
    return name;
  }

  async #requireFile(name: string, id: string): Promise<void> {
    const found = await lstat(this.#pathOf(name)).catch((reason: unknown) => {
      throw gone(id, reason);
    });
    if (!found.isFile()) throw gone(id, new Error(`${name} is no file`));
  }

  /** The link last: while it is there, the next removal finds what this one has left. */
  async #remove(id: string): Promise<void> {
    this.#seenBelow.delete(id);
    await rm(this.#pathOf(`${id}${fileSuffix}`), { force: true });
    await rm(this.#pathOf(`${id}${belowSuffix}`), { force: true });
  }

  #pathOf(name: string): string {
    return path.join(this.#dir, name);
  }

  #hold(id: string): void {
    this.#uses.set(id, (this.#uses.get(id) ?? 0) + 1);
  }

  #release(id: string): void {
    const left = (this.#uses.get(id) ?? 1) - 1;
    if (left > 0) this.#uses.set(id, left);
    else this.#uses.delete(id);
  }
}

/** Of a file in the folder, also one that is just being renamed; undefined for any other name. */
function idOf(name: string): string | undefined {
  const [id = "", ...rest] = name.split(".");
  return rest.length > 0 && idPattern.test(id) ? id : undefined;
}

function requireId(id: string): string {
  if (!idPattern.test(id)) throw new MitosError("invalid_input", { cause: `no id of a disk: ${id}` });
  return id;
}

function gone(id: string, reason: unknown): MitosError {
  return new MitosError("not_found", { message: "the disk is gone", cause: `disk ${id}: ${String(reason)}`, reason });
}

/** Beside its place and renamed: an empty disk that exists is whole. A hard link where one can be made, else a copy with its holes. */
async function adoptEmptyDisk(from: string, to: string): Promise<void> {
  if (await lstat(to).catch(() => undefined)) return;
  const partial = `${to}${partialMark}${randomBytes(4).toString("hex")}`;
  try {
    await link(from, partial).catch(() => copySparse(from, partial));
    await rename(partial, to);
  } finally {
    await rm(partial, { force: true });
  }
}

async function whenStored<T>(dir: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw storageError(error, dir) ?? error;
  }
}

function once(work: () => void): () => void {
  let done = false;
  return () => {
    if (done) return;
    done = true;
    work();
  };
}
