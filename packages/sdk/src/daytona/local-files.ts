/**
 * Files of the machine on which the program runs: uploads and downloads that name a local path. Loaded only for those, so that the rest of
 * the module needs no Node.
 */

import { createReadStream, createWriteStream } from "node:fs";
import { stat } from "node:fs/promises";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { ReadableStream as NodeReadableStream } from "node:stream/web";
import { invalidArgument } from "./errors.ts";

/** @throws DaytonaInvalidArgumentError when there is no such file */
export async function readLocalFile(path: string): Promise<AsyncIterable<Uint8Array>> {
  const info = await stat(path).catch(() => undefined);
  if (!info?.isFile()) throw invalidArgument(`${path} is not a local file`, "Pass the path of a file, or its bytes.");
  return createReadStream(path);
}

export async function writeLocalFile(path: string, content: ReadableStream<Uint8Array>, signal: AbortSignal | undefined): Promise<void> {
  const options = signal ? { signal } : {};
  await pipeline(Readable.fromWeb(content as NodeReadableStream<Uint8Array>), createWriteStream(path), options);
}
