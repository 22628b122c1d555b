import type { BuildEvent, ImageSummary } from "./actions.ts";
import type { Image, ImageConfig } from "./images/image.ts";
import type { Digest, Layer, LayerUse } from "./layers/layer.ts";

/** What the engine needs of the store of layers; tests of the engine bring one in memory. */
export interface Layers {
  has(id: Digest): boolean;
  get(id: Digest): Layer | undefined;
  addChanges(changes: AsyncIterable<Uint8Array>, base: readonly Layer[], options?: { signal?: AbortSignal }): Promise<Layer>;
  addCopy(
    tar: AsyncIterable<Uint8Array>,
    base: readonly Layer[],
    options: { dest: string; uid: number; gid: number; signal?: AbortSignal },
  ): Promise<Layer>;
  use(ids: readonly Digest[]): LayerUse;
  usage(): Promise<readonly { id: Digest; bytes: number; lastUsedAtMs: number; inUse: boolean }[]>;
  collect(keep: ReadonlySet<Digest>, options: { olderThanMs: number; bytesMax?: number }): Promise<number>;
}

/** What the engine needs of the store of images. */
export interface Images {
  normalize(reference: string): string;
  readonly hasOwnRegistry: boolean;
  resolve(reference: string, options?: { signal?: AbortSignal }): Promise<{ reference: string; digest: Digest }>;
  pull(reference: string, options?: { signal?: AbortSignal; pull?: boolean; onEvent?: (event: BuildEvent) => void }): Promise<Image>;
  known(reference: string): Image | undefined;
  push(
    image: { layers: Image["layers"]; config: ImageConfig; history?: readonly string[] },
    reference: string,
    options?: { signal?: AbortSignal; onEvent?: (event: BuildEvent) => void },
  ): Promise<{ reference: string; digest: Digest }>;
  list(): readonly ImageSummary[];
  putContext(digest: Digest, tar: AsyncIterable<Uint8Array>, signal?: AbortSignal): Promise<void>;
  hasContext(digest: Digest): Promise<boolean>;
  openContext(digest: Digest): AsyncIterable<Uint8Array>;
  cacheBytes(): Promise<number>;
  collect(options: { keepLayers: ReadonlySet<Digest>; olderThanMs: number; bytesMax?: number }): Promise<number>;
}
