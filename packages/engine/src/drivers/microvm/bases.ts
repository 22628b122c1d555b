import { randomBytes } from "node:crypto";
import { chmod, chown, mkdir, open, readdir, readFile, realpath, rm, stat, writeFile } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import { storageError } from "../../storage-error.ts";
import { syncFolder } from "../../sync-folder.ts";
import { incompatible } from "../host/facts.ts";
import { Shared, type SharedUse } from "../host/shared.ts";

const idPattern = /^[0-9a-f]{12}$/;
const frozenMode = 0o444;

/** A memory file in use: it stays until this is disposed of. */
export interface BaseUse extends Disposable {
  readonly id: string;
  readonly path: string;
}

/**
 * The memory files of a data directory. A machine that boots has one of its own and writes to it; when it is saved that file is frozen, and every
 * machine that goes on from there, in whatever generation, maps it and keeps what it changes for itself.
 */
export class Bases {
  readonly #dir: string;
  readonly #shared = new Shared<string>();

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
    const id = randomBytes(6).toString("hex");
    const use = await this.#shared.use(id, () => this.#make(id, bytes, owner));
    return asUse(id, use);
  }

  /** @throws snapshot_incompatible when it is gone */
  async use(id: string): Promise<BaseUse> {
    const use = await this.#shared.use(id, async () => {
      const file = this.pathOf(id);
      if (await stat(file).catch(() => undefined)) return file;
      throw incompatible(`the memory that it goes on from, ${id}, is gone`);
    });
    return asUse(id, use);
  }

  pathOf(id: string): string {
    if (!idPattern.test(id)) throw new MitosError("internal", { cause: `${JSON.stringify(id)} is not the name of a memory file` });
    return path.join(this.#dir, `${id}.memory`);
  }

  /** From now on it never changes. Its machine has ended. */
  async freeze(id: string): Promise<void> {
    await chmod(this.pathOf(id), frozenMode);
    await writeFile(this.#sealOf(id), JSON.stringify(await this.#seal(id)), { mode: 0o600 });
  }

  /** @throws snapshot_incompatible when it is gone, cut off or was written to since it was frozen */
  async requireIntact(id: string): Promise<void> {
    const [sealed, found] = await Promise.all([
      readFile(this.#sealOf(id), "utf8").catch(() => undefined),
      this.#seal(id).catch(() => undefined),
    ]);
    if (!found) throw incompatible(`the memory that it goes on from, ${id}, is gone`);
    if (sealed !== JSON.stringify(found)) throw incompatible(`the memory that it goes on from, ${id}, was changed`);
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

  async #seal(id: string): Promise<{ bytes: number; mtimeNs: string }> {
    const { size, mtimeNs } = await stat(this.pathOf(id), { bigint: true });
    return { bytes: Number(size), mtimeNs: String(mtimeNs) };
  }

  async #make(id: string, bytes: number, owner: { readonly uid: number; readonly gid: number } | undefined): Promise<string> {
    const target = this.pathOf(id);
    try {
      await using file = await open(target, "wx", 0o600);
      await file.truncate(bytes);
      if (owner) await chown(target, owner.uid, owner.gid);
      return target;
    } catch (error) {
      await rm(target, { force: true });
      throw storageError(error) ?? error;
    }
  }
}

function asUse(id: string, use: SharedUse<string>): BaseUse {
  return { id, path: use.value, [Symbol.dispose]: () => use[Symbol.dispose]() };
}
