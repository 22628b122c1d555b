import { createHash, randomBytes } from "node:crypto";
import { constants } from "node:fs";
import { copyFile, link, mkdir, open, readdir, realpath, rename, rm, stat, utimes } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import type { RootSource } from "../../driver.ts";
import { writeImage } from "../../layers/image.ts";
import { storageError } from "../../storage-error.ts";
import { Shared } from "../host/shared.ts";

/** Says how `mitos-layers` lays out an image: one that an earlier version has made differently is not taken for the same. */
const imageVersion = 1;
const keyPattern = /^(host|layers)-[0-9a-f]{16}$/;
const filePattern = /^((?:host|layers)-[0-9a-f]{16})\.erofs(\.partial-[0-9a-f]+)?$/;
/** While the templates are not known, this many of the images that nothing is known to need stay: most of them will be asked for again. */
const imagesKept = 16;

export interface HostRoot {
  readonly path: string;
  /** Of its content. */
  readonly hash: string;
}

/** A root image that stays until this is disposed of. */
export interface ImageUse extends Disposable {
  readonly path: string;
  /** What a machine and its snapshots remember it by. */
  readonly key: string;
}

/**
 * The root images of a data directory: read-only file systems that any number of machines have as their first disk. One of layers is made when it is
 * first asked for. That for templates without an image was made by the setup; it gets a second name here, so that snapshots keep it when the setup makes
 * another.
 */
export class Images {
  readonly #dir: string;
  readonly #hostRoot: HostRoot;
  readonly #tool: string | undefined;
  readonly #shared = new Shared<string>();

  private constructor(dir: string, hostRoot: HostRoot, tool: string | undefined) {
    this.#dir = dir;
    this.#hostRoot = hostRoot;
    this.#tool = tool;
  }

  /** @param options.tool - path of `mitos-layers`; looked for when it is first needed */
  static async open({ dir, hostRoot, tool }: { dir: string; hostRoot: HostRoot; tool?: string | undefined }): Promise<Images> {
    await mkdir(dir, { recursive: true, mode: 0o700 });
    return new Images(await realpath(dir), hostRoot, tool);
  }

  /**
   * The image of a root, made when it is not there.
   *
   * @param source - its layers must be in use until this settles
   * @throws quota_exceeded (the disk), not_supported without mitos-layers, build_failed (more than 64 GiB)
   */
  async use(source: RootSource): Promise<ImageUse> {
    const key = this.#keyOf(source);
    const use = await this.#shared.use(key, () => this.#open(key, source));
    return { key, path: use.value, [Symbol.dispose]: () => use[Symbol.dispose]() };
  }

  /** One that was made before, which a snapshot or a machine of an earlier server has. @throws snapshot_incompatible when it is gone */
  async useKnown(key: string): Promise<ImageUse> {
    const file = this.pathOf(key);
    const held = await this.#shared.hold(key);
    if (await stat(file).catch(() => undefined)) return { key, path: file, [Symbol.dispose]: () => held[Symbol.dispose]() };
    held[Symbol.dispose]();
    throw new MitosError("snapshot_incompatible", { cause: `its root image ${key} is gone` });
  }

  /** Where an image is, or would be. */
  pathOf(key: string): string {
    if (!keyPattern.test(key)) throw new MitosError("internal", { cause: `${JSON.stringify(key)} is not the name of a root image` });
    return path.join(this.#dir, `${key}.erofs`);
  }

  /**
   * Removes what a killed server has left half-made, and images that nothing needs any more.
   *
   * @param keep - keys of machines and snapshots. Asked for when it is known who is becoming a machine, so that none falls between the two
   * @param sources - of templates. Given: every other image goes. Absent, as when a server starts and does not know them: only the oldest
   */
  async removeUnused(keep: () => Promise<ReadonlySet<string>>, sources?: readonly RootSource[]): Promise<void> {
    await this.#shared.remove(async (inUse) => {
      const needed = new Set([this.#keyOf({ kind: "host" }), ...inUse, ...(sources ?? []).map((source) => this.#keyOf(source))]);
      for (const key of await keep()) needed.add(key);
      const unneeded: { file: string; usedMs: number }[] = [];
      for (const name of await readdir(this.#dir)) {
        const file = path.join(this.#dir, name);
        const [, key = "", partial] = filePattern.exec(name) ?? [];
        if (partial && !inUse.has(key)) await rm(file, { force: true });
        else if (key && !partial && !needed.has(key)) unneeded.push({ file, usedMs: (await stat(file)).mtimeMs });
      }
      unneeded.sort((a, b) => b.usedMs - a.usedMs);
      for (const { file } of unneeded.slice(sources ? 0 : imagesKept)) await rm(file);
    });
  }

  #keyOf(source: RootSource): string {
    const hash = createHash("sha256").update(String(imageVersion));
    for (const part of source.kind === "host" ? [this.#hostRoot.hash] : source.layers.map(({ id }) => id)) hash.update(`\0${part}`);
    return `${source.kind}-${hash.digest("hex").slice(0, 16)}`;
  }

  async #open(key: string, source: RootSource): Promise<string> {
    const file = this.pathOf(key);
    try {
      if (await stat(file).catch(() => undefined)) await touch(file);
      else if (source.kind === "host") await this.#takeHostRoot(file);
      else await writeImage(source.layers, file, { tool: this.#tool });
      return file;
    } catch (error) {
      throw storageError(error) ?? error;
    }
  }

  /** A second name costs nothing; another file system, or a file of somebody else that must not get one, a copy. */
  async #takeHostRoot(file: string): Promise<void> {
    const refused = await link(this.#hostRoot.path, file).then(
      () => undefined,
      (error: NodeJS.ErrnoException) => error,
    );
    if (!refused || refused.code === "EEXIST") return;
    if (!["EXDEV", "EPERM", "EMLINK"].includes(refused.code ?? "")) throw refused;
    const partial = `${file}.partial-${randomBytes(4).toString("hex")}`;
    try {
      await copyFile(this.#hostRoot.path, partial, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE);
      await using copy = await open(partial, "r");
      await copy.chmod(0o444);
      await copy.sync();
      await rename(partial, file);
    } catch (error) {
      await rm(partial, { force: true });
      throw error;
    }
  }
}

/** When it was last wanted. */
async function touch(file: string): Promise<void> {
  const now = new Date();
  // Of a file of somebody else it cannot be said; it only decides what goes first.
  await utimes(file, now, now).catch(() => {});
}
