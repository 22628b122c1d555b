import { createReadStream } from "node:fs";
import { rm } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import type { BuildEvent } from "../actions.ts";
import type { Clock } from "../clock.ts";
import { freeBytes } from "../free-bytes.ts";
import type { Digest, Layer } from "../layers/layer.ts";
import type { LayerStore } from "../layers/store.ts";
import { Semaphore } from "../mutex.ts";
import { diskFull } from "../storage-error.ts";
import { download } from "./download.ts";
import type { Image } from "./image.ts";
import { type LayerEvent, LayerProgress } from "./layer-events.ts";
import { choosePlatform, type Descriptor, fits, hexOf, type Manifest, parseConfiguration, parseManifest } from "./manifest.ts";
import { formatReference, formatRepository, type Reference } from "./reference.ts";
import type { Registries } from "./registries.ts";
import { canceled, unknownImage, unusableImage } from "./registry-error.ts";
import { SharedWork } from "./shared-work.ts";

/** At once from one registry. */
const downloadsMax = 3;
/** An index may name indexes. */
const indexDepthMax = 3;

/** What is told of a pull: how far it has come, and once which layers the image is made of, before the first of them is brought. */
export type PullEvent = BuildEvent | { readonly kind: "layers"; readonly ids: readonly Digest[] };

/** What a reference means for this processor. */
export interface Resolved {
  readonly manifest: Manifest;
  readonly digest: Digest;
  /** Of the index, where the reference names one. */
  readonly namedDigest: Digest;
}

interface Part {
  readonly blob: Descriptor;
  readonly diffId: Digest;
}

export class Puller {
  readonly #registries: Registries;
  readonly #layers: LayerStore;
  readonly #clock: Clock;
  readonly #dir: string;
  /** Of a layer, whichever images want it. */
  readonly #works = new SharedWork<Layer, LayerEvent>(({ digest }) => digest);
  readonly #downloads = new Map<string, Semaphore>();
  /** Files that something is being written to or read from. */
  readonly filesInUse = new Set<string>();

  /** @param dir - of partial downloads */
  constructor(registries: Registries, layers: LayerStore, clock: Clock, dir: string) {
    this.#registries = registries;
    this.#layers = layers;
    this.#clock = clock;
    this.#dir = dir;
  }

  /** @throws not_found (also: not for this processor), unauthorized, unavailable, build_failed, canceled */
  async resolve(reference: Reference, signal?: AbortSignal): Promise<Resolved> {
    const what = formatReference(reference);
    return await this.#registries.fromFirst(reference.host, async (registry) => {
      let asked: string = reference.digest ?? reference.tag ?? "latest";
      let namedDigest: Digest | undefined;
      for (let depth = 0; depth < indexDepthMax; depth++) {
        const { bytes, digest, contentType } = await registry.manifest(reference.path, asked, signal);
        namedDigest ??= digest;
        const parsed = parseManifest(bytes, contentType, what);
        if ("manifest" in parsed) return { manifest: parsed.manifest, digest, namedDigest };
        const chosen = choosePlatform(parsed.index, architecture);
        if (!chosen) throw notForThisProcessor(what);
        asked = chosen.digest;
      }
      throw unusableImage(`${what}: its indexes lead to indexes`);
    });
  }

  /** Whether a tag still means what it did, as far as its registry says so without being asked for the manifest: registries count those. */
  async stillMeans({ host, path, tag }: Reference, namedDigest: Digest, signal?: AbortSignal): Promise<boolean> {
    return tag !== null && (await this.#registries.fromFirst(host, (registry) => registry.digestOf(path, tag, signal))) === namedDigest;
  }

  /**
   * Layers present and unpacked afterwards; what failed may be gone on with later. They are held until this resolves, those that are here and those
   * that come: whoever wants them for longer holds them as soon as it is told which they are.
   */
  async pull(reference: Reference, resolved: Resolved, signal: AbortSignal, emit: (event: PullEvent) => void): Promise<Image> {
    const what = formatReference(reference);
    const { manifest, digest } = resolved;
    const configBytes = await this.#registries.fromFirst(reference.host, (registry) =>
      registry.smallBlob(reference.path, manifest.config, signal),
    );
    const { platform, config, diffIds } = parseConfiguration(configBytes, what);
    if (!fits(platform, architecture)) throw notForThisProcessor(what);
    if (diffIds.length !== manifest.layers.length)
      throw unusableImage(`${what}: it has ${manifest.layers.length} layers and names ${diffIds.length}`);
    const parts = manifest.layers.map((blob, at) => ({ blob, diffId: diffIds[at]! }));
    const ids = [...new Set(diffIds)];
    using _ = this.#layers.hold(ids);
    emit({ kind: "layers", ids });
    await this.#bringAll(reference, parts, signal, emit);
    const repository = formatRepository(reference);
    return {
      reference: what,
      digest,
      config,
      layers: parts.map(({ blob, diffId }) => ({ id: diffId, origin: { ...blob, repository } })),
    };
  }

  async #bringAll(reference: Reference, parts: readonly Part[], signal: AbortSignal, emit: (event: BuildEvent) => void): Promise<void> {
    const here = parts.filter(({ diffId }) => this.#layers.has(diffId));
    for (const { blob, diffId } of here)
      new LayerProgress(this.#clock, { digest: diffId, totalBytes: blob.bytes }, emit).enter("shared", blob.bytes);
    const missing = new Map(parts.filter((part) => !here.includes(part)).map((part) => [part.diffId, part]));
    await this.#requireRoom([...missing.values()]);
    // The first failure ends the others: their partial files stay.
    const stop = new AbortController();
    const signals = AbortSignal.any([signal, stop.signal]);
    const outcomes = await Promise.allSettled(
      [...missing.values()].map(async (part) => {
        try {
          await this.#bring(reference, part, signals, emit);
        } catch (error) {
          stop.abort();
          throw error;
        }
      }),
    );
    if (signal.aborted) throw canceled();
    const failures = outcomes.filter((outcome) => outcome.status === "rejected").map(({ reason }) => reason);
    const [failure] = failures.sort((a, b) => Number(a?.code === "canceled") - Number(b?.code === "canceled"));
    if (failure !== undefined) throw failure;
  }

  /** Downloads and unpacks a layer, once for all who want it. */
  async #bring(reference: Reference, part: Part, signal: AbortSignal, emit: (event: BuildEvent) => void): Promise<void> {
    const { blob, diffId } = part;
    // Both digests: a hostile image may name somebody else's blob for a layer that it is not.
    const name = `${hexOf(blob.digest)}.${hexOf(diffId).slice(0, 16)}`;
    await this.#works.run(name, { signal, onEvent: emit }, async (all, tell) => {
      const file = path.join(this.#dir, name);
      const progress = new LayerProgress(this.#clock, { digest: diffId, totalBytes: blob.bytes }, tell);
      progress.enter("waiting", 0);
      this.filesInUse.add(file);
      try {
        await this.fetch(reference, blob, file, all, progress);
        progress.enter("unpacking");
        const layer = await this.#unpack(file, part, all);
        progress.enter("done", blob.bytes);
        return layer;
      } catch (error) {
        // It is what its registry has, and no layer: fetching it again would not help, and keeping it neither.
        if (error instanceof MitosError && error.code === "build_failed") await rm(file, { force: true });
        throw error;
      } finally {
        this.filesInUse.delete(file);
      }
    });
  }

  async #unpack(file: string, { blob, diffId }: Part, signal: AbortSignal): Promise<Layer> {
    try {
      const layer = await this.#layers.add(contentOf(file), { expected: diffId, signal });
      await rm(file, { force: true });
      return layer;
    } catch (error) {
      if (!(error instanceof MitosError) || error.code !== "build_failed") throw error;
      throw new MitosError("build_failed", { ...error.detail, cause: `layer ${blob.digest}: ${error.detail.cause}`, reason: error });
    }
  }

  /** Brings a blob into a file, from a mirror or its registry. */
  async fetch(
    from: { host: string; path: string },
    blob: Descriptor,
    file: string,
    signal: AbortSignal,
    progress: LayerProgress,
  ): Promise<void> {
    const slots = this.#downloads.get(from.host) ?? new Semaphore(downloadsMax);
    this.#downloads.set(from.host, slots);
    const waited = Promise.withResolvers<never>();
    const giveUp = () => waited.reject(canceled());
    signal.addEventListener("abort", giveUp, { once: true });
    const fetched = slots.run(async () => {
      // From here on it is the download that stops.
      signal.removeEventListener("abort", giveUp);
      if (signal.aborted) throw canceled();
      progress.enter("downloading");
      await this.#registries.fromFirst(from.host, (registry) =>
        download(registry, from.path, blob, file, { clock: this.#clock, signal, onBytes: (bytes) => progress.reach(bytes) }),
      );
    });
    await Promise.race([fetched, waited.promise]);
  }

  /** Before anything is downloaded that cannot fit. */
  async #requireRoom(parts: readonly Part[]): Promise<void> {
    const free = await freeBytes(this.#dir);
    const bytes = parts.reduce((sum, { blob }) => sum + blob.bytes, 0);
    if (bytes > free) throw diskFull(`the data directory has ${free} bytes left for an image of ${bytes}: it`, undefined);
  }
}

export const architecture = process.arch === "x64" ? "amd64" : process.arch;

/** Opened when it is read. */
async function* contentOf(file: string): AsyncGenerator<Uint8Array> {
  yield* createReadStream(file);
}

function notForThisProcessor(what: string) {
  return unknownImage(`${what} has no linux/${architecture}`);
}
