import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import path from "node:path";
import { gunzipSync, gzipSync, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { type TarEntry, tarOfEntries } from "./tar.ts";

/** What a registry keeps: bytes under their digest. */
export interface Blob {
  readonly mediaType: string;
  readonly digest: `sha256:${string}`;
  readonly bytes: Uint8Array;
}

export interface LayerBlob extends Blob {
  /** Digest of the tar before it was compressed. */
  readonly diffId: `sha256:${string}`;
}

export interface OciImage {
  readonly manifest: Blob;
  readonly config: Blob;
  /** Lowest first. */
  readonly layers: readonly LayerBlob[];
}

/** Images for several processors behind one name. */
export interface OciIndex {
  readonly index: Blob;
  readonly images: readonly OciImage[];
}

export type Compression = "none" | "gzip" | "zstd";

/** The `config` member of an image's configuration, with the names that it has there. */
export interface RunConfig {
  readonly Env?: readonly string[];
  readonly User?: string;
  readonly WorkingDir?: string;
  readonly Entrypoint?: readonly string[];
  readonly Cmd?: readonly string[];
  readonly Labels?: Readonly<Record<string, string>>;
}

export const mediaTypes = {
  index: "application/vnd.oci.image.index.v1+json",
  manifest: "application/vnd.oci.image.manifest.v1+json",
  config: "application/vnd.oci.image.config.v1+json",
  layer: {
    none: "application/vnd.oci.image.layer.v1.tar",
    gzip: "application/vnd.oci.image.layer.v1.tar+gzip",
    zstd: "application/vnd.oci.image.layer.v1.tar+zstd",
  },
} as const;

/** This processor, as images name it. */
export const ourArchitecture = process.arch === "arm64" ? "arm64" : "amd64";
/** One that images are made for and that is not this one. */
export const foreignArchitecture = process.arch === "arm64" ? "amd64" : "arm64";

export function sha256(bytes: Uint8Array): `sha256:${string}` {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

export function blobOf(mediaType: string, bytes: Uint8Array): Blob {
  return { mediaType, digest: sha256(bytes), bytes };
}

/** @param content - its entries, or the tar itself */
export function layerOf(content: Iterable<TarEntry> | Buffer, compression: Compression = "gzip"): LayerBlob {
  const tar = Buffer.isBuffer(content) ? content : tarOfEntries(content);
  const bytes = { none: () => tar, gzip: () => gzipSync(tar), zstd: () => zstdCompressSync(tar) }[compression]();
  return { ...blobOf(mediaTypes.layer[compression], bytes), diffId: sha256(tar) };
}

/** The same layer, compressed otherwise: another blob with the same content. */
export function recompressed(layer: LayerBlob, compression: Compression): LayerBlob {
  return layerOf(uncompressed(layer), compression);
}

export function uncompressed({ mediaType, bytes }: Blob): Buffer {
  if (mediaType.endsWith("gzip")) return gunzipSync(bytes);
  if (mediaType.endsWith("zstd")) return zstdDecompressSync(bytes);
  return Buffer.from(bytes);
}

/** @param options.diffIds - instead of the layers' own, where they are to be wrong */
export function imageOf(
  layers: readonly LayerBlob[],
  run: RunConfig = {},
  {
    architecture = ourArchitecture,
    diffIds = layers.map(({ diffId }) => diffId),
  }: { architecture?: string; diffIds?: readonly string[] } = {},
): OciImage {
  const config = json(mediaTypes.config, {
    architecture,
    os: "linux",
    config: run,
    rootfs: { type: "layers", diff_ids: diffIds },
    history: layers.map((_, index) => ({ created_by: `layer ${index}` })),
  });
  return withManifest(
    { schemaVersion: 2, mediaType: mediaTypes.manifest, config: descriptor(config), layers: layers.map(descriptor) },
    config,
    layers,
  );
}

/** An image with a manifest that says anything. */
export function withManifest(manifest: object, config: Blob, layers: readonly LayerBlob[]): OciImage {
  return { manifest: json(mediaTypes.manifest, manifest), config, layers };
}

export function indexOf(images: readonly { readonly image: OciImage; readonly architecture: string }[]): OciIndex {
  const manifests = images.map(({ image, architecture }) => ({ ...descriptor(image.manifest), platform: { os: "linux", architecture } }));
  return {
    index: json(mediaTypes.index, { schemaVersion: 2, mediaType: mediaTypes.index, manifests }),
    images: images.map(({ image }) => image),
  };
}

/** As manifests and indexes name a blob. */
export function descriptor({ mediaType, digest, bytes }: Blob): { mediaType: string; digest: string; size: number } {
  return { mediaType, digest, size: bytes.length };
}

export function json(mediaType: string, value: object): Blob {
  return blobOf(mediaType, Buffer.from(JSON.stringify(value)));
}

/** What is behind a tag of an OCI layout on disk. */
export function readLayout(folder: string, tag: string): OciImage {
  const read = (digest: string) => readFileSync(path.join(folder, "blobs", digest.replace(":", "/")));
  const { manifests } = JSON.parse(readFileSync(path.join(folder, "index.json"), "utf8"));
  const entry = manifests.find(
    ({ annotations }: { annotations?: Record<string, string> }) => annotations?.["org.opencontainers.image.ref.name"] === tag,
  );
  if (!entry) throw new Error(`no ${tag} in ${folder}`);
  const manifest = blobOf(mediaTypes.manifest, read(entry.digest));
  const parsed = JSON.parse(Buffer.from(manifest.bytes).toString());
  const config = blobOf(parsed.config.mediaType, read(parsed.config.digest));
  const diffIds: `sha256:${string}`[] = JSON.parse(Buffer.from(config.bytes).toString()).rootfs.diff_ids;
  const layers = parsed.layers.map((layer: { mediaType: string; digest: string }, index: number) => ({
    ...blobOf(layer.mediaType, read(layer.digest)),
    diffId: diffIds[index]!,
  }));
  return { manifest, config, layers };
}
