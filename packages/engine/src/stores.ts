import type { ImageStore } from "./images/store.ts";
import type { LayerStore } from "./layers/store.ts";

/** What the engine needs of the store of layers; tests of the engine bring one in memory. */
export type Layers = Pick<LayerStore, "has" | "get" | "addChanges" | "addCopy" | "use" | "hold" | "usage" | "collect">;

/** What the engine needs of the store of images. */
export type Images = Pick<
  ImageStore,
  | "normalize"
  | "hasOwnRegistry"
  | "resolve"
  | "pull"
  | "push"
  | "list"
  | "putContext"
  | "hasContext"
  | "openContext"
  | "cacheBytes"
  | "collect"
>;
