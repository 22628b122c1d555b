/** `sha256:` and 64 hexadecimal digits. */
export type Digest = `sha256:${string}`;

/**
 * One unpacked layer: a folder `<dataDir>/layers/<hex of its id>` that is whole when it exists and never changes, with
 *
 * - `tree/`: its files, links and folders (of mode 0700) as they lie in a root; no whiteouts, no devices, no sockets or pipes
 * - `index`: what `tree/` alone cannot say, one JSON object a line, a folder before what it holds: names, kinds, modes, owners, times, extended
 *   attributes, hard links, whiteouts and opaque folders
 *
 * Both are written and read by the `mitos-layers` program only.
 */
export interface Layer {
  /** Digest of the uncompressed tar that it was unpacked from: the `diff_id` of an image's configuration. */
  readonly id: Digest;
  readonly dir: string;
  /** Content of its regular files. */
  readonly bytes: number;
  readonly entries: number;
}

/** Layers in use: none of them is removed before this is disposed of. */
export interface LayerUse extends Disposable {
  /** Lowest first. */
  readonly layers: readonly Layer[];
}
