import { Duplex } from "node:stream";
import type { Runtime, Tunnel } from "@mitos/engine";

const bufferedBytesMax = 64 * 1024;

/**
 * Connects to a port inside a sandbox; the stream is what a socket to it would be. Destroying it closes the connection; so does the signal.
 *
 * @throws unavailable when nothing listens there; by the sandbox's state
 */
export async function openTunnelSocket(runtime: Runtime, port: number, signal: AbortSignal): Promise<TunnelSocket> {
  const tunnel = await runtime.tunnel(port, signal);
  return new TunnelSocket(tunnel, signal);
}

/** Back-pressure and half-close are the tunnel's: nothing is read ahead, and a write is done when the link has taken it. No byte is copied. */
export class TunnelSocket extends Duplex {
  readonly #tunnel: Tunnel;
  readonly #incoming: AsyncIterator<Uint8Array>;
  readonly #stopListening: () => void;

  constructor(tunnel: Tunnel, signal: AbortSignal) {
    super({ allowHalfOpen: true, readableHighWaterMark: bufferedBytesMax, writableHighWaterMark: bufferedBytesMax, decodeStrings: true });
    this.#tunnel = tunnel;
    this.#incoming = tunnel[Symbol.asyncIterator]();
    const onAbort = () => this.destroy(signal.reason);
    this.#stopListening = () => signal.removeEventListener("abort", onAbort);
    if (signal.aborted) onAbort();
    else signal.addEventListener("abort", onAbort, { once: true });
  }

  override _read(): void {
    this.#incoming.next().then(
      ({ done, value }) => {
        // An empty piece would end the reading: push says "go on" only for bytes.
        if (!done && value.byteLength === 0) this._read();
        else this.push(done ? null : value);
      },
      (error: Error) => this.destroy(error),
    );
  }

  override _write(chunk: Uint8Array, _encoding: string, callback: (error?: Error | null) => void): void {
    this.#tunnel.send(chunk).then(() => callback(), callback);
  }

  override _final(callback: (error?: Error | null) => void): void {
    this.#tunnel.end().then(() => callback(), callback);
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    this.#stopListening();
    this.#tunnel.abort();
    callback(error);
  }
}
