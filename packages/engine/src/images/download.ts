import { createHash, type Hash } from "node:crypto";
import { createReadStream } from "node:fs";
import { type FileHandle, open, rm, stat } from "node:fs/promises";
import type { Clock } from "../clock.ts";
import { storageError } from "../storage-error.ts";
import { ConnectionLost } from "./http.ts";
import type { Descriptor } from "./manifest.ts";
import type { Registry } from "./registry.ts";
import { asImageError, unusableImage } from "./registry-error.ts";
import { withRetries } from "./retries.ts";

export interface DownloadOptions {
  readonly clock: Clock;
  readonly signal?: AbortSignal | undefined;
  /** How much of the blob is there, in bytes. */
  readonly onBytes?: ((doneBytes: number) => void) | undefined;
}

/** Bytes that make a broken connection worth as many attempts again: a large blob may come over a bad line. */
const progressBytes = 1024 * 1024;

/**
 * Brings a blob into a file, whole and verified when this resolves. What the file has already is kept and gone on from; what an interrupted
 * download has got stays there for the next one. One at a time for a file.
 *
 * @throws not_found, unauthorized, unavailable, build_failed (other content than its digest says), quota_exceeded (disk), canceled
 */
export async function download(registry: Registry, path: string, blob: Descriptor, file: string, options: DownloadOptions): Promise<void> {
  const what = `${registry.endpoint.host}/${path}@${blob.digest}`;
  try {
    await using target = await PartialFile.open(file, blob.bytes);
    let isResumed = target.bytes > 0;
    options.onBytes?.(target.bytes);
    for (;;) {
      await withRetries(async ({ progress }) => {
        const before = target.bytes;
        try {
          if (target.bytes < blob.bytes) await fetchRest(registry, path, blob, target, options);
        } finally {
          if (target.bytes - before >= progressBytes) progress();
        }
        if (target.bytes < blob.bytes) throw new ConnectionLost(`${registry.endpoint.host} ends a blob early`);
      }, options);
      if (target.digest() === blob.digest) return;
      await target.clear();
      // What was there before may have been damaged on the disk: once more from the beginning.
      if (!isResumed) throw unusableImage(`${what}: ${registry.endpoint.host} sends content with another digest`);
      isResumed = false;
    }
  } catch (error) {
    throw storageError(error, file) ?? asImageError(error, what);
  }
}

async function fetchRest(
  registry: Registry,
  path: string,
  blob: Descriptor,
  target: PartialFile,
  { signal, onBytes }: DownloadOptions,
): Promise<void> {
  const response = await registry.openBlob(path, blob.digest, target.bytes, signal);
  if (response.status !== 206 || !continuesAt(response.headers["content-range"], target.bytes)) {
    // From the beginning, or not at all: then the next attempt asks for all of it.
    await target.clear();
    if (response.status !== 200) {
      response.drop();
      throw new ConnectionLost(`${registry.endpoint.host} sends another part of a blob than the one that was asked for`);
    }
  }
  for await (const chunk of response.chunks) {
    if (target.bytes + chunk.length > blob.bytes) {
      await target.clear();
      throw unusableImage(`${registry.endpoint.host}/${path}@${blob.digest}: it has more than the ${blob.bytes} bytes of its manifest`);
    }
    await target.append(chunk);
    onBytes?.(target.bytes);
  }
}

function continuesAt(contentRange: string | undefined, at: number): boolean {
  return Number(/^bytes (\d+)-/.exec(contentRange ?? "")?.[1] ?? Number.NaN) === at;
}

/** A file that grows, with the digest of what it has. */
class PartialFile implements AsyncDisposable {
  readonly #handle: FileHandle;
  #hash: Hash;
  bytes: number;

  private constructor(handle: FileHandle, hash: Hash, bytes: number) {
    this.#handle = handle;
    this.#hash = hash;
    this.bytes = bytes;
  }

  static async open(file: string, bytesMax: number): Promise<PartialFile> {
    const hash = createHash("sha256");
    const there = await stat(file).catch(() => undefined);
    let bytes = 0;
    if (there && (!there.isFile() || there.size > bytesMax)) await rm(file, { recursive: true, force: true });
    else if (there) {
      for await (const chunk of createReadStream(file)) {
        hash.update(chunk);
        bytes += chunk.length;
      }
    }
    const handle = await open(file, "a", 0o600);
    return new PartialFile(handle, hash, bytes);
  }

  async append(chunk: Uint8Array): Promise<void> {
    for (let at = 0; at < chunk.length; ) at += (await this.#handle.write(chunk, at)).bytesWritten;
    this.#hash.update(chunk);
    this.bytes += chunk.length;
  }

  async clear(): Promise<void> {
    await this.#handle.truncate(0);
    this.#hash = createHash("sha256");
    this.bytes = 0;
  }

  /** Of what is there. */
  digest(): string {
    return `sha256:${this.#hash.copy().digest("hex")}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close();
  }
}
