/** The server's end of a shim's socket (docs/shim.md): link frames for the machine, requests and events for the shim itself. */

import { connect, type Socket } from "node:net";
import { limits, MitosError } from "@mitos/protocol";
import type { FrameTransport } from "../driver.ts";
import { encodeFrames, type Frame, type FrameListener, FrameReader, flagMore, frameType, payloadBytesMax } from "./frame.ts";
import { LinkViolation } from "./violation.ts";

const connectTimeoutMs = 5_000;
const replyBytesMax = 4 * 1024 * 1024;
const requestsMax = 256;
/** What every connection reads into: a read and what is done with its bytes are one step, so no two need it at once. */
const readBuffer = Buffer.allocUnsafeSlow(512 * 1024);

export type JsonObject = Readonly<Record<string, unknown>>;

export interface ShimConnection {
  /** The machine's frames. Its `pause` also holds back replies and events, which come on the same socket. */
  readonly transport: FrameTransport;
  /**
   * Asks the shim for something and gives its reply.
   * @throws unavailable when the connection is lost, internal with the shim's own text when it answers `ok: false`
   */
  request(op: string, fields?: JsonObject): Promise<JsonObject>;
  /** Called with each event of the shim. Events that came before the first listener are kept for it (at most 64). */
  onEvent(listener: (event: JsonObject) => void): void;
  /** Resolves with the reason when the connection has ended, for whatever reason. Never rejects. */
  readonly closed: Promise<Error | undefined>;
  close(): void;
}

/** Connects to the `shim.sock` of a machine. A shim serves one connection: an earlier one is replaced. */
export async function connectShim(path: string): Promise<ShimConnection> {
  let received: ((bytes: Uint8Array) => void) | undefined;
  const take = (length: number, buffer: Uint8Array): boolean => {
    received?.(buffer.subarray(0, length));
    return true;
  };
  const socket = connect({ path, onread: { buffer: readBuffer, callback: take } });
  socket.setTimeout(connectTimeoutMs);
  await new Promise<void>((resolve, reject) => {
    socket.once("connect", resolve);
    socket.once("error", (reason) => reject(new MitosError("unavailable", { cause: "the machine's shim cannot be reached", reason })));
    socket.once("timeout", () => {
      socket.destroy();
      reject(new MitosError("unavailable", { cause: "the machine's shim does not accept a connection" }));
    });
  });
  socket.setTimeout(0);
  socket.removeAllListeners("timeout");
  return shimConnection(socket, (listener) => {
    received = listener;
  });
}

/**
 * The same over a connected socket.
 *
 * @param onBytes - calls its listener with all that comes, which is the listener's during the call. Default: the socket's `data`
 */
export function shimConnection(
  socket: Socket,
  onBytes: (listener: (bytes: Uint8Array) => void) => void = (listener) => socket.on("data", listener),
): ShimConnection {
  const shim = new Shim(socket, onBytes);
  return {
    transport: shim.transport,
    request: (op, fields = {}) => shim.request(op, fields),
    onEvent: (listener) => shim.onEvent(listener),
    closed: shim.closed,
    close: () => shim.end(undefined),
  };
}

interface PendingRequest {
  readonly op: string;
  resolve(reply: JsonObject): void;
  reject(error: MitosError): void;
}

class Shim {
  readonly #socket: Socket;
  readonly transport: FrameTransport;
  readonly closed: Promise<Error | undefined>;
  readonly #settleClosed: (error: Error | undefined) => void;
  #ended = false;
  #endError: Error | undefined;
  #frameListener: FrameListener | undefined;
  readonly #closeListeners: ((error: Error | undefined) => void)[] = [];
  readonly #pending = new Map<number, PendingRequest>();
  #lastRequest = 0;
  /** Parts of a reply or event that is continued, by type and channel. */
  readonly #parts = new Map<string, Uint8Array[]>();
  #partBytes = 0;
  #eventListener: ((event: JsonObject) => void) | undefined;
  readonly #earlyEvents: JsonObject[] = [];
  #drain: { promise: Promise<void>; resolve(): void } | undefined;

  constructor(socket: Socket, onBytes: (listener: (bytes: Uint8Array) => void) => void) {
    this.#socket = socket;
    const { promise, resolve } = Promise.withResolvers<Error | undefined>();
    this.closed = promise;
    this.#settleClosed = resolve;
    this.transport = {
      send: (...pieces) => this.#send(...pieces),
      onFrame: (listener) => this.#listen(listener),
      onClose: (listener) => {
        if (this.#ended) listener(this.#endError);
        else this.#closeListeners.push(listener);
      },
      pause: () => void socket.pause(),
      resume: () => void socket.resume(),
    };
    const reader = new FrameReader((type, flags, channel, payload) => this.#receive(type, flags, channel, payload));
    onBytes((chunk) => {
      try {
        if (!this.#ended) reader.push(chunk);
      } catch (error) {
        this.end(error instanceof Error ? error : new Error(String(error)));
      }
    });
    socket.on("drain", () => this.#settleDrain());
    socket.on("error", (error) => this.end(error));
    socket.on("end", () => this.end(reader.partial ? new Error("the shim's connection ended inside a frame") : undefined));
    socket.on("close", () => this.end(undefined));
  }

  request(op: string, fields: JsonObject): Promise<JsonObject> {
    if (this.#ended) return Promise.reject(this.#lost());
    if (this.#pending.size >= requestsMax) {
      return Promise.reject(new MitosError("unavailable", { cause: "too many requests to one shim are under way" }));
    }
    this.#lastRequest += 1;
    const channel = this.#lastRequest;
    const { promise, resolve, reject } = Promise.withResolvers<JsonObject>();
    this.#pending.set(channel, { op, resolve, reject });
    const frames = cut(frameType.shimRequest, channel, Buffer.from(JSON.stringify({ ...fields, op })));
    this.#send(encodeFrames(frames)).catch(() => undefined); // the end of the connection rejects what is pending
    return promise;
  }

  onEvent(listener: (event: JsonObject) => void): void {
    this.#eventListener = listener;
    for (const event of this.#earlyEvents.splice(0)) listener(event);
  }

  end(error: Error | undefined): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#endError = error;
    this.#socket.destroy();
    this.#settleDrain();
    for (const pending of this.#pending.values()) pending.reject(this.#lost());
    this.#pending.clear();
    this.#parts.clear();
    for (const listener of this.#closeListeners.splice(0)) listener(error);
    this.#settleClosed(error);
  }

  #listen(listener: FrameListener): void {
    if (this.#frameListener) throw new Error("onFrame is set once");
    this.#frameListener = listener;
  }

  #send(...pieces: Uint8Array[]): Promise<void> {
    if (this.#ended) return Promise.reject(this.#endError ?? new Error("the shim's connection has ended"));
    let mayGoOn = true;
    this.#socket.cork();
    for (const piece of pieces) mayGoOn = this.#socket.write(piece);
    this.#socket.uncork();
    if (mayGoOn) return Promise.resolve();
    this.#drain ??= Promise.withResolvers<void>();
    return this.#drain.promise;
  }

  #settleDrain(): void {
    this.#drain?.resolve();
    this.#drain = undefined;
  }

  #receive(type: number, flags: number, channel: number, payload: Uint8Array): void {
    if (this.#ended) return;
    if (type < frameType.shimRequest) {
      // Before a link session listens, frames of an earlier one may still arrive: they are nobody's.
      this.#frameListener?.(type, flags, channel, payload);
      return;
    }
    if (type === frameType.shimRequest) throw new LinkViolation("a REQUEST from the shim");
    const whole = this.#assemble(type, flags, channel, payload);
    if (!whole) return;
    const message = parseObject(whole);
    if (type === frameType.shimEvent) this.#event(message);
    else this.#reply(channel, message);
  }

  #assemble(type: number, flags: number, channel: number, payload: Uint8Array): Uint8Array | undefined {
    const key = `${type}:${channel}`;
    const parts = this.#parts.get(key);
    if (!parts && (flags & flagMore) === 0) return payload;
    this.#partBytes += payload.byteLength;
    if (this.#partBytes > replyBytesMax || (parts?.length ?? 0) > replyBytesMax / 64) throw new LinkViolation("a shim message too large");
    if (!parts && this.#parts.size >= requestsMax) throw new LinkViolation("too many unfinished shim messages");
    const all = parts ?? [];
    all.push(payload);
    this.#parts.set(key, all);
    if ((flags & flagMore) !== 0) return undefined;
    this.#parts.delete(key);
    const whole = Buffer.concat(all);
    this.#partBytes -= whole.byteLength;
    return whole;
  }

  #reply(channel: number, reply: JsonObject): void {
    const pending = this.#pending.get(channel);
    if (!pending) return;
    this.#pending.delete(channel);
    if (reply.ok === true) pending.resolve(reply);
    else {
      const text = typeof reply.error === "string" ? reply.error.slice(0, 4096) : "it gave no reason";
      pending.reject(new MitosError("internal", { cause: `the shim refused ${pending.op}: ${text}` }));
    }
  }

  #event(event: JsonObject): void {
    if (this.#eventListener) this.#eventListener(event);
    else if (this.#earlyEvents.length < 64) this.#earlyEvents.push(event);
  }

  #lost(): MitosError {
    return new MitosError("unavailable", { cause: "the connection to the machine's shim was lost", reason: this.#endError });
  }
}

function cut(type: number, channel: number, payload: Uint8Array): Frame[] {
  if (payload.byteLength > limits.jsonBodyBytesMax) throw new MitosError("body_too_large", { cause: "a request to a shim" });
  const frames: Frame[] = [];
  for (let at = 0; at === 0 || at < payload.byteLength; at += payloadBytesMax) {
    const more = at + payloadBytesMax < payload.byteLength;
    frames.push({ type, flags: more ? flagMore : 0, channel, payload: payload.subarray(at, at + payloadBytesMax) });
  }
  return frames;
}

function parseObject(bytes: Uint8Array): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("utf8"));
  } catch {
    throw new LinkViolation("a shim message that is not JSON");
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new LinkViolation("a shim message that is no object");
  return value as JsonObject;
}
