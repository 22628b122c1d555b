import { createHash, randomBytes } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { rm } from "node:fs/promises";
import path from "node:path";
import { pipeline } from "node:stream/promises";
import { createGzip } from "node:zlib";
import { MitosError } from "@mitos/protocol";
import type { BuildEvent, Log } from "../actions.ts";
import type { Clock } from "../clock.ts";
import type { Digest } from "../layers/layer.ts";
import type { LayerStore } from "../layers/store.ts";
import { isDiskFull, storageError } from "../storage-error.ts";
import type { Image, ImageConfig, LayerOrigin } from "./image.ts";
import { LayerProgress } from "./layer-events.ts";
import { type Descriptor, ociConfig, ociLayerGzip, ociLayerType, ociManifest } from "./manifest.ts";
import { architecture, type Puller } from "./pull.ts";
import { formatRepository, parseRepository, type Reference, type Repository } from "./reference.ts";
import { digestOf, type Registry } from "./registry.ts";
import { canceled } from "./registry-error.ts";

/** What an image is put together from. */
export interface PushedImage {
  readonly layers: Image["layers"];
  readonly config: ImageConfig;
  /** What made the layers, of the uppermost ones where it has fewer entries; the rest of more entries made none. */
  readonly history?: readonly string[] | undefined;
}

/** A layer as the registry has it now. */
interface PushedLayer {
  readonly blob: Descriptor;
  readonly diffId: Digest;
}

interface Context {
  readonly registry: Registry;
  readonly target: Reference;
  readonly puller: Puller;
  readonly layers: LayerStore;
  readonly clock: Clock;
  readonly log: Log;
  /** For what has to lie in a file, because its digest comes before its content. */
  readonly dir: string;
  readonly signal: AbortSignal;
  readonly emit: (event: BuildEvent) => void;
}

/**
 * Pushes layers, lowest first, then the config, then the manifest under the reference's tag: a registry never has an image whose parts are not
 * there. The same image gives the same digest.
 *
 * @throws unauthorized, unavailable, build_failed, not_found (a layer that is not here), quota_exceeded (disk), canceled
 */
export async function push(image: PushedImage, tag: string, context: Context): Promise<Digest> {
  const { registry, target, signal } = context;
  const pushed: PushedLayer[] = [];
  for (const layer of image.layers) pushed.push(await pushLayer(layer, context));
  const config = encode(configuration(image, pushed));
  const configBlob = { mediaType: ociConfig, digest: digestOf(config), bytes: config.length };
  if (!(await registry.hasBlob(target.path, configBlob.digest, signal))) {
    await registry.uploadBlob(target.path, configBlob, (start, end) => one(config.subarray(start, end)), signal);
  }
  const manifest = {
    schemaVersion: 2,
    mediaType: ociManifest,
    config: asDescriptor(configBlob),
    layers: pushed.map(({ blob }) => asDescriptor(blob)),
  };
  return await registry.putManifest(target.path, tag, ociManifest, encode(manifest), signal);
}

/** In its original form where that is to be had, so that registries keep it once. */
async function pushLayer({ id, origin }: Image["layers"][number], context: Context): Promise<PushedLayer> {
  const progress = new LayerProgress(context.clock, { digest: id, totalBytes: origin?.bytes ?? 0 }, context.emit);
  progress.enter("waiting", 0);
  const original = origin && (await pushOriginal(origin, context, progress));
  if (original) return { blob: original, diffId: id };
  return await pushPacked(id, context);
}

/** @returns undefined when it cannot be had any more */
async function pushOriginal(origin: LayerOrigin, context: Context, progress: LayerProgress): Promise<Descriptor | undefined> {
  const { registry, target, signal } = context;
  const blob = { mediaType: ociLayerType(origin.mediaType), digest: origin.digest, bytes: origin.bytes };
  const from = parseRepository(origin.repository);
  if (
    (await registry.hasBlob(target.path, blob.digest, signal)) ||
    (from?.host === target.host && from.path !== target.path && (await registry.mountBlob(target.path, blob.digest, from.path, signal)))
  ) {
    progress.enter("shared", blob.bytes);
    return blob;
  }
  if (!from) return undefined;
  const file = temporaryFile(context);
  try {
    if (!(await fetchOriginal(from, blob, file, context, progress))) return undefined;
    await upload(blob, file, context, progress);
    return blob;
  } finally {
    await rm(file, { force: true });
  }
}

/** False when its registry does not give it any more: the layer is here in another form. */
async function fetchOriginal(
  from: Repository,
  blob: Descriptor,
  file: string,
  { puller, signal, log }: Context,
  progress: LayerProgress,
): Promise<boolean> {
  try {
    await puller.fetch(from, blob, file, signal, progress);
    return true;
  } catch (error) {
    if (!(error instanceof MitosError) || error.code === "canceled" || isDiskFull(error)) throw error;
    log.info(
      { layer: blob.digest, from: formatRepository(from), code: error.code, cause: error.detail.cause },
      "a layer is packed anew for a push",
    );
    return false;
  }
}

/** The layer as it lies here. Its tar may differ from the one that it was unpacked from, and then has another digest. */
async function pushPacked(id: Digest, context: Context): Promise<PushedLayer> {
  const file = temporaryFile(context);
  try {
    const { diffId, blob } = await compress(context.layers.pack(id), file, context.signal);
    const progress = new LayerProgress(context.clock, { digest: id, totalBytes: blob.bytes }, context.emit);
    if (await context.registry.hasBlob(context.target.path, blob.digest, context.signal)) progress.enter("shared", blob.bytes);
    else await upload(blob, file, context, progress);
    return { diffId, blob };
  } finally {
    await rm(file, { force: true });
  }
}

async function compress(tar: AsyncIterable<Uint8Array>, file: string, signal: AbortSignal): Promise<PushedLayer> {
  const [unpacked, packed] = [createHash("sha256"), createHash("sha256")];
  let bytes = 0;
  try {
    await pipeline(
      tar,
      hashing((chunk) => unpacked.update(chunk)),
      // No name and no time in its header: the same tar gives the same bytes.
      createGzip(),
      hashing((chunk) => {
        packed.update(chunk);
        bytes += chunk.length;
      }),
      createWriteStream(file, { flags: "wx", mode: 0o600 }),
      { signal },
    );
  } catch (error) {
    if (signal.aborted) throw canceled();
    throw storageError(error, file) ?? error;
  }
  return {
    diffId: `sha256:${unpacked.digest("hex")}`,
    blob: { mediaType: ociLayerGzip, digest: `sha256:${packed.digest("hex")}`, bytes },
  };
}

function hashing(update: (chunk: Uint8Array) => void) {
  return async function* (chunks: AsyncIterable<Uint8Array>) {
    for await (const chunk of chunks) {
      update(chunk);
      yield chunk;
    }
  };
}

async function upload(blob: Descriptor, file: string, { registry, target, signal }: Context, progress: LayerProgress): Promise<void> {
  progress.enter("uploading", 0);
  await registry.uploadBlob(target.path, blob, (start, end) => partOf(file, start, end, progress), signal);
  progress.enter("done", blob.bytes);
}

async function* partOf(file: string, start: number, end: number, progress: LayerProgress): AsyncGenerator<Uint8Array> {
  let at = start;
  for await (const chunk of createReadStream(file, { start, end: end - 1 })) {
    yield chunk;
    at += chunk.length;
    progress.reach(at);
  }
}

async function* one(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}

function configuration({ config, history = [] }: PushedImage, layers: readonly PushedLayer[]): object {
  const { env, workdir, user, entrypoint, command, labels } = config;
  const unnamed = Math.max(0, layers.length - history.length);
  return {
    architecture,
    os: "linux",
    config: {
      ...(user === "" ? {} : { User: user }),
      Env: Object.entries(env).map(([name, value]) => `${name}=${value}`),
      ...(entrypoint.length > 0 ? { Entrypoint: entrypoint } : {}),
      ...(command.length > 0 ? { Cmd: command } : {}),
      ...(workdir === "" ? {} : { WorkingDir: workdir }),
      ...(Object.keys(labels).length > 0 ? { Labels: labels } : {}),
    },
    rootfs: { type: "layers", diff_ids: layers.map(({ diffId }) => diffId) },
    history: [
      ...Array.from({ length: unnamed }, () => ({})),
      ...history.map((by, at) => ({ created_by: by, ...(unnamed + at < layers.length ? {} : { empty_layer: true }) })),
    ],
  };
}

function asDescriptor({ mediaType, digest, bytes }: Descriptor): object {
  return { mediaType, digest, size: bytes };
}

function encode(value: object): Buffer {
  return Buffer.from(JSON.stringify(value));
}

function temporaryFile({ dir }: Context): string {
  return path.join(dir, `${temporaryPrefix}${randomBytes(8).toString("hex")}`);
}

/** Of files that no other push goes on with. */
export const temporaryPrefix = "push-";
