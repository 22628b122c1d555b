import { randomBytes } from "node:crypto";
import { renameSync, utimesSync } from "node:fs";
import { mkdir, open, readdir, realpath, rm, stat } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import type { Log } from "../actions.ts";
import { orAborted } from "../or-aborted.ts";
import { storageError } from "../storage-error.ts";
import { syncFolder } from "../sync-folder.ts";
import { findLayersTool } from "./find.ts";
import type { Digest, Layer, LayerUse } from "./layer.ts";
import { canceled, readTool, runTool, type ToolOptions } from "./tool.ts";

/** Not a layer yet, or no layer any more: removed when the store is opened. */
const makingPrefix = ".making-";
const removingPrefix = ".removing-";
/** More than the last line of an index can have. */
const footerBytesMax = 1024;

/** What the tool answers, which is also the last line of a layer's index. */
interface Footer {
  readonly diff_id: Digest;
  readonly entries: number;
  readonly bytes: number;
  /** Devices, pipes and names that a layer cannot carry. */
  readonly skipped: number;
}

interface Held {
  readonly layer: Layer;
  lastUsedAtMs: number;
}

/**
 * The layers of this server: each unpacked once, below `<dataDir>/layers`, named by the digest of its tar, shared by everything that is made
 * of it, and never changed.
 */
export class LayerStore {
  readonly #root: string;
  readonly #log: Log;
  readonly #tool: string | undefined;
  readonly #held = new Map<Digest, Held>();
  /** How many hold each, of layers that are here and of those that are to come. */
  readonly #holders = new Map<Digest, number>();
  /** Of those that say beforehand what they add. */
  readonly #adding = new Map<Digest, Promise<Layer>>();

  private constructor(root: string, log: Log, tool: string | undefined) {
    this.#root = root;
    this.#log = log;
    this.#tool = tool;
  }

  /** Opens the layers of a data directory and removes what a crash has left half-made. The tool is looked for when it is first needed. */
  static async open(options: { dataDir: string; log: Log; tool?: string }): Promise<LayerStore> {
    const root = path.join(await realpath(options.dataDir), "layers");
    await mkdir(root, { recursive: true, mode: 0o700 });
    const store = new LayerStore(root, options.log, options.tool);
    await Promise.all((await readdir(root)).map((name) => store.#takeOver(name)));
    return store;
  }

  has(id: Digest): boolean {
    return this.#held.has(id);
  }

  get(id: Digest): Layer | undefined {
    return this.#held.get(id)?.layer;
  }

  /**
   * Unpacks a tar, plain or compressed by gzip or zstd. One that is here already is not read. Equal ones at the same time are unpacked once: who
   * came later waits, and takes its own tar only when the first one fails.
   *
   * @param options.expected - digest of the uncompressed tar
   * @param options.onBytes - told how many more bytes of the tar as it came were taken
   * @throws build_failed (hostile, corrupt, too large, or not the expected one), quota_exceeded (the disk), canceled, what `tar` throws
   */
  async add(
    tar: AsyncIterable<Uint8Array>,
    options: { expected?: Digest; signal?: AbortSignal; onBytes?: (bytes: number) => void } = {},
  ): Promise<Layer> {
    const { expected, signal, onBytes } = options;
    const unpack = () => this.#make("unpack", [], { input: tar, signal, onBytes }, expected);
    if (expected === undefined) return unpack();
    for (;;) {
      throwIfAborted(signal);
      const known = this.#held.get(expected);
      if (known) {
        touch(known);
        return known.layer;
      }
      const under = this.#adding.get(expected);
      if (!under) break;
      // Whatever it ends with.
      await orAborted(Promise.allSettled([under]), signal, () => canceled(signal?.reason));
    }
    const adding = unpack().finally(() => this.#adding.delete(expected));
    this.#adding.set(expected, adding);
    return adding;
  }

  /**
   * What a machine has changed in a root of these layers, as the agent's `Changes` sends it.
   *
   * @param base - lowest first
   * @throws as `add`
   */
  async addChanges(changes: AsyncIterable<Uint8Array>, base: readonly Layer[], options: { signal?: AbortSignal } = {}): Promise<Layer> {
    using _ = this.use(base.map(({ id }) => id));
    return await this.#make("changes", indexArguments(base), { input: changes, signal: options.signal });
  }

  /**
   * The files of a context, at a place of a root made of these layers. They go into `dest` when it ends with a slash, is a folder already, or
   * the context is a folder; a single file becomes `dest`.
   *
   * @param tar - names relative to what was copied: a folder's content at the top and an entry for the folder itself, a single file by its name
   * @param base - lowest first
   * @param options.dest - absolute; symbolic links on the way are followed inside the root, missing folders are made
   * @throws as `add`
   */
  async addCopy(
    tar: AsyncIterable<Uint8Array>,
    base: readonly Layer[],
    options: { dest: string; uid: number; gid: number; signal?: AbortSignal },
  ): Promise<Layer> {
    const { dest, uid, gid, signal } = options;
    using _ = this.use(base.map(({ id }) => id));
    const args = ["--dest", dest, "--uid", String(uid), "--gid", String(gid), ...indexArguments(base)];
    return await this.#make("copy", args, { input: tar, signal });
  }

  /** Tar of a layer, uncompressed: the same bytes for the same layer, but not those that it was unpacked from. @throws not_found */
  async *pack(id: Digest): AsyncIterable<Uint8Array> {
    using use = this.use([id]);
    for (const layer of use.layers) yield* readTool(await this.#findTool(), ["pack", "--layer", layer.dir]);
  }

  /**
   * They and their folders stay until the answer is disposed of.
   *
   * @param ids - lowest first
   * @throws not_found
   */
  use(ids: readonly Digest[]): LayerUse {
    const used = ids.map((id) => {
      const held = this.#held.get(id);
      if (!held)
        throw new MitosError("not_found", {
          message: "a layer is not here any more",
          cause: id,
          remediation: "Pull the image or build the template again.",
        });
      return held;
    });
    return { layers: used.map(({ layer }) => layer), ...this.hold(ids) };
  }

  /** The same for layers of which some are not here yet: they stay from the moment in which they come. */
  hold(ids: readonly Digest[]): Disposable {
    const touchAll = () => {
      for (const id of ids) {
        const held = this.#held.get(id);
        if (held) touch(held);
      }
    };
    for (const id of ids) this.#holders.set(id, (this.#holders.get(id) ?? 0) + 1);
    touchAll();
    let isHeld = true;
    return {
      [Symbol.dispose]: () => {
        if (!isHeld) return;
        isHeld = false;
        for (const id of ids) {
          const others = (this.#holders.get(id) ?? 0) - 1;
          if (others > 0) this.#holders.set(id, others);
          else this.#holders.delete(id);
        }
        touchAll();
      },
    };
  }

  usage(): Promise<readonly { id: Digest; bytes: number; lastUsedAtMs: number; inUse: boolean }[]> {
    const all = [...this.#held.values()];
    return Promise.resolve(
      all.map(({ layer: { id, bytes }, lastUsedAtMs }) => ({ id, bytes, lastUsedAtMs, inUse: this.#holders.has(id) })),
    );
  }

  /**
   * Removes layers that nobody needs: those that were not used for a while, and then, longest unused first, as many as it takes to stay below
   * `bytesMax`. Roots that were made of them keep their files.
   *
   * @param keep - of templates and snapshots; what is in use stays as well
   * @returns removed bytes
   */
  async collect(keep: ReadonlySet<Digest>, options: { olderThanMs: number; bytesMax?: number }): Promise<number> {
    const { olderThanMs, bytesMax = Number.POSITIVE_INFINITY } = options;
    const candidates = [...this.#held.values()].filter(({ layer }) => !keep.has(layer.id)).sort((a, b) => a.lastUsedAtMs - b.lastUsedAtMs);
    let total = [...this.#held.values()].reduce((sum, { layer }) => sum + layer.bytes, 0);
    let removedBytes = 0;
    for (const held of candidates) {
      const { layer, lastUsedAtMs } = held;
      // Looked at again one by one: it may be in use by now, or gone.
      if (this.#holders.has(layer.id) || this.#held.get(layer.id) !== held) continue;
      if (lastUsedAtMs > Date.now() - olderThanMs && total <= bytesMax) continue;
      await this.#remove(layer);
      total -= layer.bytes;
      removedBytes += layer.bytes;
    }
    return removedBytes;
  }

  /** From the first step on nobody can get it; the rename makes that true for a server that crashes here as well. */
  #remove({ id, dir }: Layer): Promise<void> {
    const removing = path.join(this.#root, `${removingPrefix}${randomBytes(8).toString("hex")}`);
    this.#held.delete(id);
    renameSync(dir, removing);
    return rm(removing, { recursive: true, force: true });
  }

  async #make(command: "unpack" | "changes" | "copy", args: readonly string[], run: ToolOptions, expected?: Digest): Promise<Layer> {
    throwIfAborted(run.signal);
    const tool = await this.#findTool();
    const making = path.join(this.#root, `${makingPrefix}${randomBytes(8).toString("hex")}`);
    try {
      await mkdir(making, { mode: 0o700 });
      const answer = JSON.parse(await runTool(tool, [command, "--into", making, ...args], run)) as Footer;
      if (expected !== undefined && answer.diff_id !== expected) throw otherDigest(expected, answer.diff_id);
      return await this.#keep(making, answer);
    } catch (error) {
      throw storageError(error, "the data directory") ?? error;
    } finally {
      await rm(making, { recursive: true, force: true }).catch((error: unknown) =>
        this.#log.warn({ error }, "a layer's folder was left behind"),
      );
    }
  }

  async #keep(made: string, footer: Footer): Promise<Layer> {
    const id = footer.diff_id;
    const known = this.#held.get(id);
    if (known) {
      touch(known);
      return known.layer;
    }
    const dir = this.#dirOf(id);
    const held = { layer: { id, dir, bytes: footer.bytes, entries: footer.entries }, lastUsedAtMs: Date.now() };
    // At once, so that of two with the same content the second one finds the first.
    renameSync(made, dir);
    this.#held.set(id, held);
    await syncFolder(this.#root);
    return held.layer;
  }

  async #takeOver(name: string): Promise<void> {
    const dir = path.join(this.#root, name);
    const footer = /^[0-9a-f]{64}$/.test(name) ? await readFooter(path.join(dir, "index")) : undefined;
    if (footer?.diff_id !== `sha256:${name}`) {
      this.#log.info({ name }, "removing a layer that was not finished");
      await rm(dir, { recursive: true, force: true });
      return;
    }
    const { mtimeMs } = await stat(dir);
    const layer = { id: footer.diff_id, dir, bytes: footer.bytes, entries: footer.entries };
    this.#held.set(layer.id, { layer, lastUsedAtMs: mtimeMs });
  }

  #dirOf(id: Digest): string {
    return path.join(this.#root, id.slice("sha256:".length));
  }

  #findTool(): Promise<string> {
    return findLayersTool(this.#tool);
  }
}

function indexArguments(base: readonly Layer[]): string[] {
  return base.flatMap(({ dir }) => ["--base", path.join(dir, "index")]);
}

/** A layer's time of last use is the time of its folder, so that it outlives the server. */
function touch(held: Held): void {
  const now = new Date();
  held.lastUsedAtMs = now.getTime();
  try {
    utimesSync(held.layer.dir, now, now);
  } catch {
    // It only decides what is removed first.
  }
}

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw canceled(signal.reason);
}

function otherDigest(expected: Digest, found: Digest): MitosError {
  return new MitosError("build_failed", {
    message: "a layer is not the one that the image names",
    cause: `its content has the digest ${found}, the image says ${expected}`,
    context: { reason: "corrupt", entry: "" },
    remediation: "Pull the image again; if it stays so, the registry or its mirror serves something else than was pushed.",
  });
}

/** The last line of an index; undefined when it was not finished. */
async function readFooter(index: string): Promise<Footer | undefined> {
  try {
    await using file = await open(index, "r");
    const { size } = await file.stat();
    const length = Math.min(size, footerBytesMax);
    const { buffer } = await file.read(Buffer.alloc(length), 0, length, size - length);
    const text = buffer.toString("utf8");
    if (!text.endsWith("\n")) return undefined;
    const footer = JSON.parse(text.trimEnd().split("\n").at(-1) ?? "") as Partial<Footer>;
    return typeof footer.diff_id === "string" ? (footer as Footer) : undefined;
  } catch (error) {
    const { code } = error as { code?: string };
    // Anything else is no reason to throw layers away.
    if (error instanceof SyntaxError || code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw error;
  }
}
