import type { DiskUsage } from "./actions.ts";
import type { Core } from "./core.ts";
import { type RootSource, type Snapshot, storedBytes } from "./driver.ts";
import type { Digest } from "./layers/layer.ts";

/** What unused layers and caches together may have, unless the operator says otherwise. */
export const cacheBytesMaxDefault = 20 * 1024 ** 3;
/** Results of steps that are remembered, the last used ones. */
const stepsMax = 50_000;
/** For what is not to go by its age. */
const anyAgeMs = Number.MAX_SAFE_INTEGER;

/**
 * Removes what nothing needs: layers that no template, machine or snapshot is made of, downloads, contexts, logs and the merged roots of machines.
 * By itself after builds and deletions and at the start, the oldest first, as far as it is more than `cacheBytesMax`.
 */
export class Collector {
  readonly cacheBytesMax: number;
  readonly #core: () => Core;
  #last: Promise<unknown> = Promise.resolve();
  #isDue = false;

  constructor(core: () => Core, cacheBytesMax: number) {
    this.#core = core;
    this.cacheBytesMax = cacheBytesMax;
  }

  /** Once more, after what goes on now. Calls meanwhile are one. */
  soon(): void {
    if (this.#isDue) return;
    this.#isDue = true;
    const run = this.#inTurn(() => {
      this.#isDue = false;
      return this.#collectOverflow();
    });
    run.catch((error: unknown) => this.#core().log.warn({ error: String(error) }, "what is not needed any more could not be removed"));
  }

  /** Everything that was not used for so long. @returns removed bytes */
  prune(olderThanMs: number): Promise<number> {
    return this.#inTurn(() => this.#collect({ olderThanMs }));
  }

  /** Resolves when nothing is being removed. */
  async settled(): Promise<void> {
    await this.#last.catch(() => undefined);
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const run = this.#last.then(work, work);
    this.#last = run.catch(() => undefined);
    return run;
  }

  async #collectOverflow(): Promise<void> {
    const { layers, images, log } = this.#core();
    const usage = await layers.usage();
    const usedBytes = usage.reduce((sum, { bytes, inUse }) => sum + (inUse ? bytes : 0), 0);
    const unusedBytes = usage.reduce((sum, { bytes }) => sum + bytes, 0) - usedBytes;
    const cachedBytes = await images.cacheBytes();
    const total = unusedBytes + cachedBytes;
    // Each gives of what it has: the two do not know each other's ages.
    const share = total > this.cacheBytesMax ? this.cacheBytesMax / total : null;
    const removedBytes = await this.#collect({
      olderThanMs: anyAgeMs,
      ...(share === null
        ? {}
        : { layerBytesMax: usedBytes + Math.floor(unusedBytes * share), imageBytesMax: Math.floor(cachedBytes * share) }),
    });
    if (removedBytes > 0) log.info({ removedBytes }, "removed what was not needed any more");
  }

  async #collect(bounds: { olderThanMs: number; layerBytesMax?: number; imageBytesMax?: number }): Promise<number> {
    const core = this.#core();
    const { olderThanMs, layerBytesMax, imageBytesMax } = bounds;
    const keep = layersInUse(core);
    // First: their links keep the layers' files on the disk.
    // What a build has just saved is on no record yet; the last one to end comes by here again.
    const isBuilding = [...core.templates.values()].some(({ building }) => building !== null);
    if (!isBuilding) await core.driver.collectRoots({ roots: rootsInUse(core), snapshots: [...knownSnapshots(core)] });
    const ofImages = await core.images.collect({
      keepLayers: keep,
      olderThanMs,
      ...(imageBytesMax === undefined ? {} : { bytesMax: imageBytesMax }),
    });
    const ofLayers = await core.layers.collect(keep, { olderThanMs, ...(layerBytesMax === undefined ? {} : { bytesMax: layerBytesMax }) });
    const ofLogs = await core.buildLogs.collect(new Set(core.templates.keys()), olderThanMs);
    collectSteps(core, olderThanMs);
    return ofImages + ofLayers + ofLogs;
  }
}

/** Results go with their layer; those without one by age. */
function collectSteps({ stepStore, layers, clock }: Core, olderThanMs: number): void {
  const usedBeforeMs = clock.nowMs() - olderThanMs;
  const steps = stepStore.all();
  const tooMany = steps.length - stepsMax;
  for (const [index, { key, layer, lastUsedAtMs }] of steps.entries()) {
    const isGone = layer === null ? lastUsedAtMs <= usedBeforeMs : !layers.has(layer);
    if (isGone || index < tooMany) stepStore.delete(key);
  }
}

/** Those of templates, and of sandboxes that are alive or paused. What is being built holds its own. */
function layersInUse(core: Core): ReadonlySet<Digest> {
  const keep = new Set<Digest>();
  for (const { built } of core.templates.values()) for (const { id } of built?.record.root.layers ?? []) keep.add(id);
  for (const { record } of core.sandboxes.all()) if (record.end === null) for (const id of record.layers ?? []) keep.add(id);
  return keep;
}

/** By their layers, beside those of machines and snapshots: one that is being paused or restored is for a moment neither. */
function rootsInUse(core: Core): readonly RootSource[] {
  const ofSandboxes = [...core.sandboxes.all()].flatMap(({ record }) => (record.end === null && record.layers ? [record.layers] : []));
  return ofSandboxes.map((ids) => ({ kind: "layers", layers: ids.flatMap((id) => core.layers.get(id) ?? []) }));
}

export function* knownSnapshots(core: Core): Iterable<Snapshot> {
  for (const { built } of core.templates.values()) if (built) yield built.record.snapshot;
  for (const { saved } of core.sandboxes.all()) if (saved) yield saved.snapshot;
}

export async function diskUsage(core: Core): Promise<DiskUsage> {
  const layers = await core.layers.usage();
  const bytesOf = new Map(layers.map(({ id, bytes }) => [id, bytes]));
  const sum = (ids: Iterable<Digest>): number => [...ids].reduce((total, id) => total + (bytesOf.get(id) ?? 0), 0);
  const built = [...core.templates].flatMap(([id, entry]) => (entry.built ? [{ id, ...entry.built }] : []));
  const templatesOf = new Map<Digest, number>();
  for (const { record } of built) for (const id of idsOf(record.root)) templatesOf.set(id, (templatesOf.get(id) ?? 0) + 1);
  return {
    templates: built.map(({ id, record }) => {
      const ids = idsOf(record.root);
      return {
        id,
        snapshotBytes: storedBytes(record.snapshot),
        rootBytes: sum(ids),
        ownBytes: sum([...ids].filter((layer) => templatesOf.get(layer) === 1)),
      };
    }),
    layers: {
      count: layers.length,
      bytes: sum(bytesOf.keys()),
      unusedBytes: layers.reduce((total, { bytes, inUse }) => total + (inUse ? 0 : bytes), 0),
    },
    caches: { bytes: (await core.images.cacheBytes()) + (await core.buildLogs.bytes()) },
    snapshots: { bytes: [...core.sandboxes.all()].reduce((total, { saved }) => total + (saved?.snapshot.bytes ?? 0), 0) },
    cacheBytesMax: core.collector.cacheBytesMax,
  };
}

/** A layer may be in an image more than once. */
function idsOf({ layers }: { readonly layers: readonly { readonly id: Digest }[] | null }): ReadonlySet<Digest> {
  return new Set((layers ?? []).map(({ id }) => id));
}
