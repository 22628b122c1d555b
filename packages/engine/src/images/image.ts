import type { Digest } from "../layers/layer.ts";

/** What an image's configuration says about running it. Other members are ignored. */
export interface ImageConfig {
  readonly env: Readonly<Record<string, string>>;
  /** Absolute; empty = none. */
  readonly workdir: string;
  /** A name or number, with or without `:group`; empty = root. */
  readonly user: string;
  readonly entrypoint: readonly string[];
  readonly command: readonly string[];
  readonly labels: Readonly<Record<string, string>>;
}

/** Where a layer's compressed form can be had again, so that it is pushed as it came. */
export interface LayerOrigin {
  /** As in a manifest. */
  readonly mediaType: string;
  readonly digest: Digest;
  readonly bytes: number;
  /** `host/path`, without tag. */
  readonly repository: string;
}

/** An image whose layers are all unpacked here. */
export interface Image {
  /** In full: `docker.io/library/python:3.12-slim`. */
  readonly reference: string;
  /** Of the manifest for this processor. */
  readonly digest: Digest;
  readonly config: ImageConfig;
  /** Lowest first. */
  readonly layers: readonly { readonly id: Digest; readonly origin: LayerOrigin | null }[];
}
