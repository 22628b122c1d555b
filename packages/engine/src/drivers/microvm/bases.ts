import { randomBytes } from "node:crypto";
import { chmod, chown, mkdir, open, readdir, readFile, realpath, rm, stat, writeFile } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import { storageError } from "../../storage-error.ts";
import { syncFolder } from "../../sync-folder.ts";
import { incompatible } from "../host/facts.ts";
import { Shared } from "../host/shared.ts";

const idPattern = /^[0-9a-f]{12}$/;
const frozenMode = 0o444;

/** A memory file in use: it stays until this is disposed of. */
export interface BaseUse extends Disposable {
  readonly id: string;
  readonly path: string;
  /** Where in the file the memory begins, in bytes. */
  readonly offset: number;
}

/** What a file is known by as long as it is frozen. */
interface Seal {
  readonly bytes: number;
  readonly mtimeNs: string;
  /** Absent = 0. */
  readonly offset?: number;
}

/**
 * The memory files of a data directory. A machine that boots has one of its own and writes to it; when it is saved that file is frozen, and every
 * machine that goes on from there, in whatever generation, maps it and keeps what it changes for itself. So it is with the file into which the monitor of
 * a machine that has written much has copied all of its memory (`new-base.ts`).
 */
export class Bases {
  readonly #dir: string;
  /** By id: where in its file the memory begins. */
  readonly #shared = new Shared<number>();

  private constructor(dir: string) {
    this.#dir = dir;
  }

  static async open(dir: string): Promise<Bases> {
    await mkdir(dir, { recursive: true, mode: 0o700 });
    return new Bases(await realpath(dir));
  }

  /**
   * A new, empty, sparse file.
   *
   * @param owner - user and group id of the one who writes to it
   * @throws quota_exceeded when the disk is full
   */
  async create(bytes: number, owner: { readonly uid: number; readonly gid: number } | undefined): Promise<BaseUse> {
    const id = newId();
    return this.#use(id, async () => {
      await this.#make(id, bytes, owner);
      return 0;
    });
  }

  /** A name for a file that somebody else makes. Whoever gives it up removes the file. */
  async name(): Promise<BaseUse> {
    return this.#use(newId(), async () => 0);
  }

  /** @throws snapshot_incompatible when it is gone */
  async use(id: string): Promise<BaseUse> {
    return this.#use(id, async () => {
      if (!(await stat(this.pathOf(id)).catch(() => undefined))) throw gone(id);
      // One that its machine still writes to has none.
      return (await this.#sealed(id))?.offset ?? 0;
    });
  }

  pathOf(id: string): string {
    if (!idPattern.test(id)) throw new MitosError("internal", { cause: `${JSON.stringify(id)} is not the name of a memory file` });
    return path.join(this.#dir, `${id}.memory`);
  }

  /**
   * From now on it never changes: nobody writes to it any more.
   *
   * @param offset - where its memory begins, in bytes
   * @throws quota_exceeded when the disk is full
   */
  async freeze(id: string, offset = 0): Promise<void> {
    try {
      await chmod(this.pathOf(id), frozenMode);
      const seal: Seal = { ...(await this.#seal(id)), ...(offset > 0 ? { offset } : {}) };
      await writeFile(this.#sealOf(id), JSON.stringify(seal), { mode: 0o600 });
    } catch (error) {
      throw storageError(error) ?? error;
    }
  }

  /** Nobody has ever gone on from it. */
  async remove(id: string): Promise<void> {
    for (const file of [this.pathOf(id), this.#sealOf(id)]) await rm(file, { force: true });
  }

  /** @throws snapshot_incompatible when it is gone, cut off or was written to since it was frozen */
  async requireIntact(id: string): Promise<void> {
    const [sealed, found] = await Promise.all([this.#sealed(id), this.#seal(id).catch(() => undefined)]);
    if (!found) throw gone(id);
    if (sealed?.bytes !== found.bytes || sealed.mtimeNs !== found.mtimeNs) {
      throw incompatible(`the memory that it goes on from, ${id}, was changed`);
    }
  }

  /** What it takes of the disk. */
  async bytesOf(id: string): Promise<number> {
    return (await stat(this.pathOf(id))).blocks * 512;
  }

  /** It outlives the host's power from now on. @throws quota_exceeded */
  async sync(id: string): Promise<void> {
    try {
      await using file = await open(this.pathOf(id), "r");
      await file.datasync();
      await syncFolder(this.#dir);
    } catch (error) {
      throw storageError(error) ?? error;
    }
  }

  /** @param keep - ids of machines and snapshots. Asked for when it is known who is becoming a machine, so that none falls between the two */
  async removeUnused(keep: () => Promise<ReadonlySet<string>>): Promise<void> {
    await this.#shared.remove(async (inUse) => {
      const needed = new Set([...inUse, ...(await keep())]);
      for (const name of await readdir(this.#dir)) {
        if (!needed.has(name.split(".", 1)[0] as string)) await rm(path.join(this.#dir, name), { force: true });
      }
    });
  }

  #sealOf(id: string): string {
    return path.join(this.#dir, `${id}.seal`);
  }

  async #use(id: string, offset: () => Promise<number>): Promise<BaseUse> {
    const use = await this.#shared.use(id, offset);
    return { id, path: this.pathOf(id), offset: use.value, [Symbol.dispose]: () => use[Symbol.dispose]() };
  }

  async #seal(id: string): Promise<Seal> {
    const { size, mtimeNs } = await stat(this.pathOf(id), { bigint: true });
    return { bytes: Number(size), mtimeNs: String(mtimeNs) };
  }

  /** Undefined for one that is not frozen, or whose seal is damaged. */
  async #sealed(id: string): Promise<Seal | undefined> {
    const text = await readFile(this.#sealOf(id), "utf8").catch(() => "");
    try {
      return JSON.parse(text) as Seal;
    } catch {
      return undefined;
    }
  }

  async #make(id: string, bytes: number, owner: { readonly uid: number; readonly gid: number } | undefined): Promise<void> {
    const target = this.pathOf(id);
    try {
      await using file = await open(target, "wx", 0o600);
      await file.truncate(bytes);
      if (owner) await chown(target, owner.uid, owner.gid);
    } catch (error) {
      await rm(target, { force: true });
      throw storageError(error) ?? error;
    }
  }
}

function newId(): string {
  return randomBytes(6).toString("hex");
}

function gone(id: string): MitosError {
  return incompatible(`the memory that it goes on from, ${id}, is gone`);
}
