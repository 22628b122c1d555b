/** gzip, with what a message becomes counted while it is inflated: it may be a thousand times what has been received. */

import { AsyncLocalStorage } from "node:async_hooks";
import { createGunzip } from "node:zlib";
import { Code, ConnectError } from "@connectrpc/connect";
import type { Compression } from "@connectrpc/connect/protocol";
import { compressionGzip } from "@connectrpc/connect-node";
import { MitosError } from "@mitos/protocol";
import { toConnectError } from "../errors.ts";
import type { HeldBody } from "../http/held-bodies.ts";

const pieceBytes = 256 * 1024;

/** What the messages of one request have become. */
export class Inflated {
  readonly #held: HeldBody;
  #bytes = 0;

  constructor(held: HeldBody) {
    this.#held = held;
  }

  /** @throws quota_exceeded; canceled */
  add(bytes: number): void {
    this.#bytes += this.#held.add(bytes);
  }

  /** What was counted since this was last asked. */
  take(): number {
    const bytes = this.#bytes;
    this.#bytes = 0;
    return bytes;
  }

  /** What is inflated in the course of `serve` is this request's. */
  during<T>(serve: () => Promise<T>): Promise<T> {
    return current.run(this, serve);
  }
}

const current = new AsyncLocalStorage<Inflated>();

export const heldGzip: Compression = {
  name: compressionGzip.name,
  compress: (bytes) => compressionGzip.compress(bytes),
  async decompress(bytes, readMaxBytes) {
    const inflated = current.getStore();
    if (!inflated) throw new Error("broken invariant: a message without its request");
    if (bytes.byteLength === 0) return new Uint8Array();
    const pieces: Buffer[] = [];
    let length = 0;
    const gunzip = createGunzip({ chunkSize: pieceBytes });
    gunzip.end(bytes);
    try {
      for await (const piece of gunzip as AsyncIterable<Buffer>) {
        length += piece.length;
        if (length > readMaxBytes)
          throw new ConnectError(`the message inflates to more than ${readMaxBytes} bytes`, Code.ResourceExhausted);
        inflated.add(piece.length);
        pieces.push(piece);
      }
    } catch (error) {
      if (error instanceof MitosError || error instanceof ConnectError) throw toConnectError(error);
      throw new ConnectError("decompression failed", Code.InvalidArgument, undefined, undefined, error);
    }
    const message = new Uint8Array(length);
    let at = 0;
    for (const piece of pieces) {
      message.set(piece, at);
      at += piece.length;
    }
    return message;
  },
};
