import { mkdir, readdir, rm } from "node:fs/promises";
import path from "node:path";
import type { DatabaseSync } from "node:sqlite";
import { MitosError } from "@mitos/protocol";
import type { BuildEvent, ImageOptions, ImageSummary, Log } from "../actions.ts";
import type { Clock } from "../clock.ts";
import type { Digest } from "../layers/layer.ts";
import type { LayerStore } from "../layers/store.ts";
import { type ImageRecord, ImageRecords } from "../store/images.ts";
import { type CacheFile, filesIn, removeOld } from "./cache-file.ts";
import { Contexts } from "./contexts.ts";
import type { Image } from "./image.ts";
import { LayerProgress } from "./layer-events.ts";
import { type PullEvent, Puller } from "./pull.ts";
import { type PushedImage, push, temporaryPrefix } from "./push.ts";
import { formatReference, parseReference, type Reference } from "./reference.ts";
import { Registries } from "./registries.ts";
import { canceled } from "./registry-error.ts";
import { SharedWork } from "./shared-work.ts";

interface Options extends ImageOptions {
  readonly dataDir: string;
  readonly db: DatabaseSync;
  readonly layers: LayerStore;
  readonly log: Log;
  readonly clock: Clock;
}

interface Caller {
  readonly signal?: AbortSignal | undefined;
  readonly onEvent?: ((event: BuildEvent) => void) | undefined;
}

interface PullOptions extends Caller {
  readonly pull?: boolean | undefined;
  readonly hold?: ((layers: readonly Digest[]) => void) | undefined;
}

/**
 * Images of registries: what their names mean, their layers in the layer store, and the way back. Under `<dataDir>/images`:
 *
 * - `partial/`: downloads that are under way or were interrupted; a layer's goes when it is unpacked
 * - `contexts/`: the files of copy steps, each under its digest
 */
export class ImageStore {
  /** Whether the operator has configured a registry: short names are only then asked for. */
  readonly hasOwnRegistry: boolean;
  readonly #options: Options;
  readonly #registries: Registries;
  readonly #records: ImageRecords;
  readonly #contexts: Contexts;
  readonly #puller: Puller;
  readonly #pulls: SharedWork<Image, PullEvent>;
  readonly #partial: string;

  private constructor(options: Options, registries: Registries, contexts: Contexts, partial: string) {
    this.#options = options;
    this.hasOwnRegistry = options.registry !== undefined;
    this.#registries = registries;
    this.#contexts = contexts;
    this.#partial = partial;
    this.#records = new ImageRecords(options.db);
    this.#puller = new Puller(registries, options.layers, options.clock, partial);
    this.#pulls = new SharedWork((event) => (event.kind === "layer" ? event.digest : event.kind));
  }

  /** Keeps partial downloads of earlier servers, which are gone on with. @throws invalid_input for options that are no hosts */
  static async open(options: Options): Promise<ImageStore> {
    const registries = new Registries(options, options.clock, options.log);
    const dir = path.join(options.dataDir, "images");
    const partial = path.join(dir, "partial");
    await mkdir(partial, { recursive: true, mode: 0o700 });
    for (const name of await readdir(partial)) if (name.startsWith(temporaryPrefix)) await rm(path.join(partial, name), { force: true });
    return new ImageStore(options, registries, await Contexts.open(path.join(dir, "contexts")), partial);
  }

  /** `python:3.12-slim` → `docker.io/library/python:3.12-slim`, by the configured registry. @throws invalid_input */
  normalize(reference: string): string {
    return formatReference(this.#parse(reference));
  }

  /** Asks the registry for the digest of the manifest for this processor. @throws not_found, unauthorized, unavailable, build_failed, canceled */
  async resolve(reference: string, { signal }: { signal?: AbortSignal | undefined } = {}): Promise<{ reference: string; digest: Digest }> {
    const parsed = this.#parse(reference);
    const full = formatReference(parsed);
    const { digest } = (await this.#unchanged(parsed, signal))?.image ?? (await this.#puller.resolve(parsed, signal));
    return { reference: full, digest };
  }

  /**
   * All layers of the image are present and unpacked afterwards. Concurrent pulls of one image are one, and so are those of one layer.
   *
   * @param options - `pull`: asks the registry again what the tag means; else a known one is taken as it is. `hold`: is told which layers the
   *   image is made of before the first of them comes, so that none is removed again before all have come and the caller has used them
   * @throws invalid_input, not_found, unauthorized, unavailable, build_failed (no usable image), quota_exceeded (disk), canceled
   */
  async pull(reference: string, { pull = false, hold = () => {}, signal: given, onEvent = () => {} }: PullOptions = {}): Promise<Image> {
    const parsed = this.#parse(reference);
    const full = formatReference(parsed);
    const tell = (event: PullEvent): void => (event.kind === "layers" ? hold(event.ids) : onEvent(event));
    if (given?.aborted) throw canceled();
    // A digest means the same for ever.
    const known = pull && parsed.digest === null ? undefined : this.#knownRecord(full);
    if (known) return this.#use(known, tell);
    return await this.#pulls.run(full, { signal: given, onEvent: tell }, async (signal, emit) => {
      const unchanged = await this.#unchanged(parsed, signal);
      if (unchanged) return this.#use(unchanged, emit);
      const resolved = await this.#puller.resolve(parsed, signal);
      const image = await this.#puller.pull(parsed, resolved, signal, emit);
      const nowMs = this.#options.clock.nowMs();
      this.#records.put({ image, namedDigest: resolved.namedDigest, pulledAtMs: nowMs, lastUsedAtMs: nowMs });
      return image;
    });
  }

  /** An image that was pulled and whose layers are all here. @throws invalid_input */
  known(reference: string): Image | undefined {
    return this.#knownRecord(this.normalize(reference))?.image;
  }

  /**
   * Puts an image together from layers of the store, each in its original form where that can be had, and pushes it.
   *
   * @throws invalid_input for a reference with a digest, unauthorized, unavailable, build_failed, not_found (a layer), quota_exceeded, canceled
   */
  async push(image: PushedImage, reference: string, { signal, onEvent }: Caller = {}): Promise<{ reference: string; digest: Digest }> {
    const target = this.#parse(reference);
    if (target.digest !== null || target.tag === null) {
      throw new MitosError("invalid_input", {
        cause: `${formatReference(target)} has a digest, which is what a push results in`,
        remediation: "Name a tag.",
      });
    }
    const { layers, clock, log } = this.#options;
    using _ = layers.use([...new Set(image.layers.map(({ id }) => id))]);
    const digest = await push(image, target.tag, {
      registry: this.#registries.get(target.host),
      target,
      puller: this.#puller,
      layers,
      clock,
      log,
      dir: this.#partial,
      signal: signal ?? new AbortController().signal,
      emit: onEvent ?? (() => {}),
    });
    return { reference: formatReference(target), digest };
  }

  /** Those whose layers are all here. */
  list(): readonly ImageSummary[] {
    return this.#records.all().flatMap(({ image, pulledAtMs, lastUsedAtMs }) => {
      const layers = image.layers.map(({ id }) => this.#options.layers.get(id));
      if (layers.includes(undefined)) return [];
      const rootBytes = layers.reduce((sum, layer) => sum + (layer?.bytes ?? 0), 0);
      return [{ reference: image.reference, digest: image.digest, layers: layers.length, rootBytes, pulledAtMs, lastUsedAtMs }];
    });
  }

  /**
   * Keeps the files of a copy step: an uncompressed tar with this digest.
   *
   * @throws invalid_input when the digest is another or it is no tar, body_too_large, quota_exceeded (disk), canceled
   */
  async putContext(digest: Digest, tar: AsyncIterable<Uint8Array>, signal?: AbortSignal): Promise<void> {
    await this.#contexts.put(digest, tar, signal);
  }

  /** @throws invalid_input */
  async hasContext(digest: Digest): Promise<boolean> {
    return await this.#contexts.has(digest);
  }

  /** @throws not_found, when it is read */
  openContext(digest: Digest): AsyncIterable<Uint8Array> {
    return this.#contexts.read(digest);
  }

  /** Of partial downloads and contexts. */
  async cacheBytes(): Promise<number> {
    return (await this.#cacheFiles()).reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /**
   * Removes partial downloads and contexts that were not used for a time, and the oldest ones beyond `bytesMax`; and forgets images that were not
   * used for as long or have lost layers, unless all of their layers are kept anyway. Layers are the layer store's to remove.
   *
   * @returns removed bytes
   */
  async collect(options: { keepLayers: ReadonlySet<Digest>; olderThanMs: number; bytesMax?: number | undefined }): Promise<number> {
    const { keepLayers, olderThanMs, bytesMax = Number.POSITIVE_INFINITY } = options;
    const usedBeforeMs = this.#options.clock.nowMs() - olderThanMs;
    for (const { image, lastUsedAtMs } of this.#records.all()) {
      if (image.layers.every(({ id }) => keepLayers.has(id))) continue;
      if (lastUsedAtMs <= usedBeforeMs || !this.#hasAll(image)) this.#records.delete(image.reference);
    }
    const isInUse = (file: string) => this.#puller.filesInUse.has(file) || path.basename(file).startsWith(temporaryPrefix);
    const idle = (await this.#cacheFiles()).filter(({ file }) => !isInUse(file));
    return await removeOld(idle, { usedBeforeMs, bytesMax, isInUse });
  }

  #parse(reference: string): Reference {
    return parseReference(reference, this.#registries.home);
  }

  #knownRecord(full: string): ImageRecord | undefined {
    const record = this.#records.get(full);
    return record && this.#hasAll(record.image) ? record : undefined;
  }

  /** The known image of a reference, when that still means it. */
  async #unchanged(reference: Reference, signal: AbortSignal | undefined): Promise<ImageRecord | undefined> {
    const record = this.#knownRecord(formatReference(reference));
    if (!record || reference.digest !== null) return record;
    const isSame = await this.#puller.stillMeans(reference, record.namedDigest, signal);
    // It may have lost layers while the registry was asked.
    return isSame && this.#hasAll(record.image) ? record : undefined;
  }

  #hasAll({ layers }: Image): boolean {
    return layers.every(({ id }) => this.#options.layers.has(id));
  }

  /** With the layers here. */
  #use(record: ImageRecord, emit: (event: PullEvent) => void): Image {
    const { clock } = this.#options;
    emit({ kind: "layers", ids: [...new Set(record.image.layers.map(({ id }) => id))] });
    this.#records.put({ ...record, lastUsedAtMs: clock.nowMs() });
    for (const { id, origin } of record.image.layers) {
      const bytes = origin?.bytes ?? 0;
      new LayerProgress(clock, { digest: id, totalBytes: bytes }, emit).enter("shared", bytes);
    }
    return record.image;
  }

  async #cacheFiles(): Promise<CacheFile[]> {
    return [...(await filesIn(this.#partial)), ...(await this.#contexts.files())];
  }
}
