import { createHash, randomBytes } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, readFile, rename, rm, stat, utimes, writeFile } from "node:fs/promises";
import path from "node:path";
import { createInterface } from "node:readline";
import type { OwnerEntry, RootSource } from "../../driver.ts";
import { findLayersTool } from "../../layers/find.ts";
import type { Layer } from "../../layers/layer.ts";
import { runTool } from "../../layers/tool.ts";
import { removeTree } from "../../remove-tree.ts";
import type { Guest } from "../host/parts.ts";
import { Shared } from "../host/shared.ts";
import { ownLayers } from "./own-layers.ts";
import { type MachineRoot, openHostRoot, ownersFileOf, removeOldRoots } from "./root.ts";

export interface RootUse extends Disposable {
  readonly root: MachineRoot;
}

/**
 * The roots of this data directory. The host's one is made when it is opened; one of layers when it is first asked for: folders of its own, and in
 * them hard links to the layers' files. No machine writes to a root, so any number of them, and of their snapshots, have it at once.
 */
export class Roots {
  readonly host: MachineRoot;
  readonly #dir: string;
  readonly #guest: Guest;
  /** By folder: in use are those of which something is just becoming a machine. */
  readonly #shared = new Shared<MachineRoot>();
  /** What all roots of layers have in common, as far as it decides their content. */
  readonly #common: string;
  #ownLayers: Promise<{ readonly lower: string; readonly upper: string }> | undefined;

  private constructor(dir: string, guest: Guest, host: MachineRoot) {
    this.#dir = dir;
    this.#guest = guest;
    this.host = host;
    const { lower, upper } = ownLayers(Buffer.from(guest.hash));
    this.#common = createHash("sha256").update(lower).update(upper).digest("hex");
  }

  static async open(dir: string, guest: Guest, node: string | undefined): Promise<Roots> {
    return new Roots(dir, guest, await openHostRoot(dir, guest, node));
  }

  /** A root to start a machine with; it stays until this is disposed of. @throws quota_exceeded when the disk is full; not_supported without mitos-layers */
  async use(source: RootSource): Promise<RootUse> {
    if (source.kind === "host") return { root: this.host, [Symbol.dispose]: () => {} };
    const dir = this.#dirOf(source.layers);
    const use = await this.#shared.use(dir, () => this.#open(dir, source.layers));
    return { root: use.value, [Symbol.dispose]: () => use[Symbol.dispose]() };
  }

  /** What could not be set on the host. */
  async ownersOf(source: RootSource): Promise<readonly OwnerEntry[]> {
    if (source.kind === "host") return [];
    using use = await this.use(source);
    const owners: OwnerEntry[] = [];
    for await (const line of createInterface({ input: createReadStream(ownersFileOf(use.root.dir)) }))
      owners.push(JSON.parse(line) as OwnerEntry);
    return owners;
  }

  /**
   * @param keep - folders of machines and snapshots. Asked for when it is known who is becoming a machine, so that none falls between the two
   * @param sources - of templates. Given: every other root of layers goes. Absent, as when a server starts and does not know them: only the oldest
   */
  async removeUnused(keep: () => Promise<ReadonlySet<string>>, sources?: readonly RootSource[]): Promise<void> {
    await this.#shared.remove(async (inUse) => {
      const dirs = new Set([this.host.dir, this.#ownDir, ...inUse]);
      for (const source of sources ?? []) if (source.kind === "layers") dirs.add(this.#dirOf(source.layers));
      for (const dir of await keep()) dirs.add(dir);
      await removeOldRoots(this.#dir, dirs, { layersToo: sources !== undefined });
    });
  }

  #dirOf(layers: readonly Layer[]): string {
    const hash = createHash("sha256").update(this.#common);
    for (const { id } of layers) hash.update(`\0${id}`);
    return path.join(this.#dir, `root-${hash.digest("hex").slice(0, 16)}`);
  }

  async #open(dir: string, layers: readonly Layer[]): Promise<MachineRoot> {
    if (await stat(dir).catch(() => undefined)) {
      const now = new Date();
      await utimes(dir, now, now);
    } else {
      const { lower, upper } = await this.#openOwnLayers();
      await this.#merge(dir, [lower, ...layers.map((layer) => layer.dir), upper]);
    }
    return { dir, binds: [] };
  }

  /** A root that exists is whole, its list of owners too: both are made beside their places and renamed, the list first. */
  async #merge(dir: string, layers: readonly string[]): Promise<void> {
    const partial = `${dir}.partial-${randomBytes(4).toString("hex")}`;
    try {
      await mkdir(partial, { mode: 0o755 });
      await this.#tool(["merge", "--into", partial, ...layers.flatMap((layer) => ["--layer", layer])]);
      await writeFile(ownersFileOf(partial), "", { flag: "a" }); // the tool writes none where none is missing
      await rename(ownersFileOf(partial), ownersFileOf(dir));
      await rename(partial, dir);
    } catch (error) {
      await Promise.all([removeTree(partial), rm(ownersFileOf(partial), { force: true })]);
      throw error;
    }
  }

  async #openOwnLayers(): Promise<{ readonly lower: string; readonly upper: string }> {
    this.#ownLayers ??= this.#unpackOwnLayers();
    try {
      return await this.#ownLayers;
    } catch (error) {
      this.#ownLayers = undefined;
      throw error;
    }
  }

  async #unpackOwnLayers(): Promise<{ readonly lower: string; readonly upper: string }> {
    const dir = this.#ownDir;
    const dirs = { lower: path.join(dir, "lower"), upper: path.join(dir, "upper") };
    if (await stat(dir).catch(() => undefined)) return dirs;
    const partial = `${dir}.partial-${randomBytes(4).toString("hex")}`;
    const { lower, upper } = ownLayers(await readFile(this.#guest.path));
    try {
      for (const [name, tar] of [["lower", lower] as const, ["upper", upper] as const]) {
        await mkdir(path.join(partial, name), { recursive: true });
        await this.#tool(["unpack", "--into", path.join(partial, name)], tar);
      }
      await rename(partial, dir);
      return dirs;
    } catch (error) {
      await removeTree(partial);
      throw error;
    }
  }

  get #ownDir(): string {
    return path.join(this.#dir, `own-${this.#common.slice(0, 16)}`);
  }

  async #tool(args: readonly string[], input?: Uint8Array): Promise<void> {
    await runTool(await findLayersTool(undefined), args, { input: input && chunksOf(input) });
  }
}

async function* chunksOf(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
