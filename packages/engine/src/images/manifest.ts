import { limits } from "@mitos/protocol";
import type { Digest } from "../layers/layer.ts";
import type { ImageConfig } from "./image.ts";
import { unusableImage } from "./registry-error.ts";

/** What registries send, read strictly: every member that is used has its type, its form and its bounds, or the image is refused. No I/O. */

export interface Descriptor {
  readonly mediaType: string;
  readonly digest: Digest;
  readonly bytes: number;
}

export interface Manifest {
  readonly config: Descriptor;
  /** Compressed, lowest first. */
  readonly layers: readonly Descriptor[];
}

/** Manifests for several processors. */
export interface Index {
  readonly manifests: readonly (Descriptor & { readonly platform: Platform | undefined })[];
}

export interface Platform {
  readonly os: string;
  readonly architecture: string;
  readonly variant: string;
}

export interface Configuration {
  readonly platform: Platform;
  readonly config: ImageConfig;
  /** Of the unpacked layers, lowest first. */
  readonly diffIds: readonly Digest[];
}

export const ociManifest = "application/vnd.oci.image.manifest.v1+json";
export const ociConfig = "application/vnd.oci.image.config.v1+json";
export const ociLayerGzip = "application/vnd.oci.image.layer.v1.tar+gzip";
const ociIndex = "application/vnd.oci.image.index.v1+json";
const dockerManifest = "application/vnd.docker.distribution.manifest.v2+json";
const dockerList = "application/vnd.docker.distribution.manifest.list.v2+json";
const dockerConfigType = "application/vnd.docker.container.image.v1+json";

export const acceptedManifests = [ociIndex, ociManifest, dockerList, dockerManifest].join(", ");

/** The same bytes under their OCI name. */
const layerTypes: Readonly<Record<string, string>> = {
  "application/vnd.oci.image.layer.v1.tar": "application/vnd.oci.image.layer.v1.tar",
  [ociLayerGzip]: ociLayerGzip,
  "application/vnd.oci.image.layer.v1.tar+zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
  "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.oci.image.layer.v1.tar",
  "application/vnd.docker.image.rootfs.diff.tar.gzip": ociLayerGzip,
  "application/vnd.docker.image.rootfs.diff.tar.zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
};

export const manifestBytesMax = 4 * 1024 * 1024;
export const configBytesMax = 8 * 1024 * 1024;
/** Docker itself stops at 127. */
const layersMax = 256;
const indexEntriesMax = 1000;
/** Of one layer, compressed. */
const layerBytesMax = 32 * 1024 ** 3;
const listEntriesMax = 1024;

/** @param contentType - of the answer; counts where the manifest does not say itself what it is. @throws build_failed */
export function parseManifest(bytes: Uint8Array, contentType: string, what: string): { index: Index } | { manifest: Manifest } {
  const value = parseObject(bytes, `${what}: its manifest`);
  const mediaType = typeof value.mediaType === "string" ? value.mediaType : (contentType.split(";")[0]?.trim().toLowerCase() ?? "");
  if (value.schemaVersion === 1 || mediaType.startsWith("application/vnd.docker.distribution.manifest.v1")) {
    throw unusableImage(
      `${what}: its manifest is of schema 1`,
      "Push the image again with a current tool: schema 1 has no checksums that can be relied on.",
    );
  }
  if (value.schemaVersion !== 2) throw unusableImage(`${what}: its manifest has no schemaVersion 2`);
  // One that can be read both ways means one thing to who signs it and another to who runs it.
  if (value.manifests !== undefined && (value.layers !== undefined || value.config !== undefined)) {
    throw unusableImage(`${what}: its manifest is an index and an image at once`);
  }
  if (mediaType === ociIndex || mediaType === dockerList || (mediaType === "" && value.manifests !== undefined))
    return { index: parseIndex(value, what) };
  if (mediaType === ociManifest || mediaType === dockerManifest || mediaType === "") return { manifest: parseImage(value, what) };
  throw unusableImage(`${what}: its manifest is of the kind ${quote(mediaType)}`, "Name an image of a container.");
}

function parseIndex(value: Members, what: string): Index {
  const manifests = list(value.manifests, indexEntriesMax, `${what}: its index's manifests`).map((entry, at) => {
    const where = `${what}: manifest ${at} of its index`;
    const members = object(entry, where);
    const { platform } = members;
    return {
      ...descriptor(members, manifestBytesMax, where),
      platform: platform === undefined ? undefined : parsePlatform(object(platform, where), where),
    };
  });
  return { manifests };
}

function parseImage(value: Members, what: string): Manifest {
  const config = descriptor(object(value.config, `${what}: its config`), configBytesMax, `${what}: its config`);
  if (config.mediaType !== ociConfig && config.mediaType !== dockerConfigType) {
    throw unusableImage(`${what} is no container's image but ${quote(config.mediaType)}`, "Name an image of a container.");
  }
  const layers = list(value.layers, layersMax, `${what}: its layers`).map((entry, at) => {
    const where = `${what}: its layer ${at}`;
    const layer = descriptor(object(entry, where), layerBytesMax, where);
    if (/\.foreign\.|\.nondistributable\./.test(layer.mediaType)) {
      throw unusableImage(
        `${where} may not be distributed by registries (${quote(layer.mediaType)})`,
        "Use an image all of whose layers are in its registry.",
      );
    }
    if (layerTypes[layer.mediaType] === undefined) throw unusableImage(`${where} is of the kind ${quote(layer.mediaType)}`);
    return layer;
  });
  return { config, layers };
}

/** @throws build_failed */
export function parseConfiguration(bytes: Uint8Array, what: string): Configuration {
  const where = `${what}: its config`;
  const value = parseObject(bytes, where);
  const rootfs = object(value.rootfs, `${where}'s rootfs`);
  if (rootfs.type !== "layers") throw unusableImage(`${where}'s rootfs is not made of layers`);
  const settings = value.config === undefined || value.config === null ? {} : object(value.config, where);
  return {
    platform: parsePlatform(value, where),
    diffIds: list(rootfs.diff_ids ?? [], layersMax, `${where}'s diff_ids`).map((id) => digest(id, where)),
    config: {
      env: environment(settings.Env, `${where}'s Env`),
      workdir: workdir(settings.WorkingDir, `${where}'s WorkingDir`),
      user: text(settings.User, 256, `${where}'s User`),
      entrypoint: strings(settings.Entrypoint, `${where}'s Entrypoint`),
      command: strings(settings.Cmd, `${where}'s Cmd`),
      labels: labels(settings.Labels, `${where}'s Labels`),
    },
  };
}

/** The one manifest for a machine's processor. @param architecture - as Node names it @throws not_found */
export function choosePlatform({ manifests }: Index, architecture: string): Descriptor | undefined {
  const [only] = manifests;
  if (manifests.length === 1 && only?.platform === undefined) return only;
  const fitting = manifests.filter(({ platform }) => platform?.os === "linux" && platform.architecture === architecture);
  for (const variant of variantsOf[architecture] ?? [""]) {
    const found = fitting.find(({ platform }) => platform?.variant === variant);
    if (found) return found;
  }
  return undefined;
}

/** Of a single manifest's configuration. */
export function fits({ os, architecture, variant }: Platform, wanted: string): boolean {
  return os === "linux" && architecture === wanted && (variantsOf[wanted] ?? [""]).includes(variant);
}

/** In order of preference: every processor of the kind runs them. */
const variantsOf: Readonly<Record<string, readonly string[]>> = { amd64: ["", "v1"], arm64: ["v8", "", "v8.0"] };

export function ociLayerType(mediaType: string): string {
  return layerTypes[mediaType] ?? mediaType;
}

export function isDigest(value: unknown): value is Digest {
  return typeof value === "string" && /^sha256:[0-9a-f]{64}$/.test(value);
}

export function hexOf(digest: Digest): string {
  return digest.slice("sha256:".length);
}

type Members = Readonly<Record<string, unknown>>;

/** Without the parser's message, which quotes what it has read. */
function parseObject(bytes: Uint8Array, where: string): Members {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    throw unusableImage(`${where} is not JSON`);
  }
  return object(value, where);
}

function object(value: unknown, where: string): Members {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw unusableImage(`${where} is not an object`);
  return value as Members;
}

function list(value: unknown, countMax: number, where: string): readonly unknown[] {
  if (!Array.isArray(value)) throw unusableImage(`${where} are not a list`);
  if (value.length > countMax) throw unusableImage(`${where} are ${value.length}: more than ${countMax}`);
  return value;
}

function descriptor({ mediaType, digest: id, size }: Members, bytesMax: number, where: string): Descriptor {
  if (typeof mediaType !== "string" || mediaType.length > 255) throw unusableImage(`${where} has no mediaType`);
  if (typeof size !== "number" || !Number.isSafeInteger(size) || size < 0) throw unusableImage(`${where} has no size`);
  if (size > bytesMax) throw unusableImage(`${where} has ${size} bytes: more than ${bytesMax}`);
  return { mediaType, digest: digest(id, where), bytes: size };
}

function digest(value: unknown, where: string): Digest {
  if (!isDigest(value)) throw unusableImage(`${where} has no sha256 digest`);
  return value;
}

function parsePlatform({ os, architecture, variant }: Members, where: string): Platform {
  return { os: text(os, 64, where), architecture: text(architecture, 64, where), variant: text(variant, 64, where) };
}

function text(value: unknown, lengthMax: number, where: string): string {
  if (value === undefined || value === null) return "";
  if (typeof value !== "string" || value.length > lengthMax || value.includes("\0"))
    throw unusableImage(`${where} is not a text of at most ${lengthMax}`);
  return value;
}

function strings(value: unknown, where: string): string[] {
  if (value === undefined || value === null) return [];
  return list(value, listEntriesMax, where).map((entry) => {
    if (typeof entry !== "string") throw unusableImage(`${where} has an entry that is not a text`);
    return text(entry, limits.commandBytesMax, where);
  });
}

function workdir(value: unknown, where: string): string {
  const dir = text(value, limits.pathBytesMax, where);
  return dir === "" || dir.startsWith("/") ? dir : `/${dir}`;
}

/** `NAME=value` each; the last of a name counts. What has no name is left out, as other engines do. */
function environment(value: unknown, where: string): Record<string, string> {
  const entries = strings(value, where).flatMap((entry) => {
    const at = entry.indexOf("=");
    return at > 0 ? [[entry.slice(0, at), entry.slice(at + 1)] as const] : [];
  });
  if (entries.reduce((bytes, [name, text]) => bytes + Buffer.byteLength(name) + Buffer.byteLength(text), 0) > limits.envBytesMax) {
    throw unusableImage(`${where} has more than ${limits.envBytesMax} bytes`);
  }
  return fromEntries(entries);
}

function labels(value: unknown, where: string): Record<string, string> {
  if (value === undefined || value === null) return {};
  const entries = list(Object.entries(object(value, where)), listEntriesMax, where) as [string, unknown][];
  return fromEntries(entries.map(([name, label]) => [name, text(label, configBytesMax, where)] as const));
}

/** Also where a name is `__proto__`. */
function fromEntries(entries: readonly (readonly [string, string])[]): Record<string, string> {
  return Object.fromEntries(entries);
}

/** Of a text that somebody else has chosen. */
function quote(text: string): string {
  return JSON.stringify(text.slice(0, 100));
}
