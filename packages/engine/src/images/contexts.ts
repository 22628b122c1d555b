import { createHash, randomBytes } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, open, readdir, rename, rm, utimes } from "node:fs/promises";
import path from "node:path";
import { limits, MitosError } from "@mitos/protocol";
import type { Digest } from "../layers/layer.ts";
import { storageError } from "../storage-error.ts";
import { type CacheFile, filesIn } from "./cache-file.ts";
import { hexOf, isDigest } from "./manifest.ts";
import { canceled } from "./registry-error.ts";

const blockBytes = 512;
/** Beside whole ones, which are named by their digest alone. */
const unfinished = ".unfinished-";

/** The files of copy steps: tars, each under its digest. */
export class Contexts {
  readonly #dir: string;

  private constructor(dir: string) {
    this.#dir = dir;
  }

  /** Removes what an earlier server has left unfinished. */
  static async open(dir: string): Promise<Contexts> {
    await mkdir(dir, { recursive: true, mode: 0o700 });
    for (const name of await readdir(dir)) if (name.startsWith(unfinished)) await rm(path.join(dir, name), { force: true });
    return new Contexts(dir);
  }

  /** @throws invalid_input, body_too_large, quota_exceeded (disk), canceled. Nothing is left of what is refused. */
  async put(digest: Digest, tar: AsyncIterable<Uint8Array>, signal?: AbortSignal): Promise<void> {
    const file = this.#fileOf(digest);
    const beside = path.join(this.#dir, `${unfinished}${randomBytes(8).toString("hex")}`);
    try {
      await receive(beside, digest, tar, signal);
      await rename(beside, file);
    } catch (error) {
      await rm(beside, { force: true });
      throw storageError(error, this.#dir) ?? error;
    }
  }

  /** One that is asked for counts as used. */
  async has(digest: Digest): Promise<boolean> {
    const now = new Date();
    return await utimes(this.#fileOf(digest), now, now).then(
      () => true,
      () => false,
    );
  }

  /** @throws not_found */
  async *read(digest: Digest): AsyncGenerator<Uint8Array> {
    if (!(await this.has(digest))) {
      throw new MitosError("not_found", {
        message: "the files of a copy step are not here",
        cause: digest,
        remediation: "Send them with PUT /v1/contexts/{digest} before the template; the SDK and the command line do so.",
      });
    }
    yield* createReadStream(this.#fileOf(digest));
  }

  async files(): Promise<CacheFile[]> {
    return (await filesIn(this.#dir)).filter(({ file }) => !path.basename(file).startsWith(unfinished));
  }

  #fileOf(digest: Digest): string {
    if (!isDigest(digest)) throw new MitosError("invalid_input", { cause: "a context's digest is sha256: and 64 hexadecimal digits" });
    return path.join(this.#dir, hexOf(digest));
  }
}

async function receive(file: string, digest: Digest, tar: AsyncIterable<Uint8Array>, signal: AbortSignal | undefined): Promise<void> {
  const hash = createHash("sha256");
  let bytes = 0;
  let head = Buffer.alloc(0);
  await using handle = await open(file, "wx", 0o600);
  for await (const chunk of tar) {
    if (signal?.aborted) throw canceled();
    bytes += chunk.length;
    if (bytes > limits.contextBytesMax) {
      throw new MitosError("body_too_large", {
        message: "the files of a copy step are too many",
        cause: `more than ${limits.contextBytesMax} bytes`,
        remediation: "Copy less, leave out with .dockerignore what is not needed, or fetch large files in a run step.",
      });
    }
    if (head.length < blockBytes) {
      head = Buffer.concat([head, chunk.subarray(0, blockBytes - head.length)]);
      // Before all of it is taken.
      if (head.length === blockBytes && !beginsTar(head)) throw noTar();
    }
    hash.update(chunk);
    for (let at = 0; at < chunk.length; ) at += (await handle.write(chunk, at)).bytesWritten;
  }
  if (head.length < blockBytes || bytes % blockBytes !== 0) throw noTar();
  const found = `sha256:${hash.digest("hex")}`;
  if (found !== digest) {
    throw new MitosError("invalid_input", {
      message: "the content has another digest",
      cause: `${digest} was named, ${found} came`,
      remediation: "Send the bytes whose SHA-256 the path names.",
    });
  }
  // It is on record as whole by its name, which must not survive a power cut that its content does not.
  await handle.sync();
}

function noTar(): MitosError {
  return new MitosError("invalid_input", { cause: "the body is no uncompressed tar" });
}

/** An end (all zero), or a header whose checksum is right: the sum of its bytes, those of the checksum counted as spaces. */
function beginsTar(block: Buffer): boolean {
  if (block.every((byte) => byte === 0)) return true;
  const [start, end] = [148, 156];
  const stored = /^\s*([0-7]{1,7})[\s\0]*$/.exec(block.toString("latin1", start, end))?.[1];
  const sum = block.reduce((total, byte, at) => total + (at >= start && at < end ? 0x20 : byte), 0);
  return stored !== undefined && Number.parseInt(stored, 8) === sum;
}
