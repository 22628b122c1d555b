/** Frames of the link (docs/link.md): ten bytes of header, then at most 65,536 bytes of payload. */

import { LinkViolation } from "./violation.ts";

export const headerBytes = 10;
export const payloadBytesMax = 65_536;
export const flagMore = 1;

export const frameType = {
  hello: 0x01,
  helloAck: 0x02,
  quiesce: 0x03,
  quiesced: 0x04,
  resume: 0x05,
  adopt: 0x06,
  adopted: 0x07,
  ping: 0x08,
  pong: 0x09,
  open: 0x10,
  data: 0x11,
  end: 0x12,
  reset: 0x13,
  credit: 0x14,
  shimRequest: 0x80,
  shimReply: 0x81,
  shimEvent: 0x82,
} as const;

const knownTypes = new Set<number>(Object.values(frameType));

export interface Frame {
  readonly type: number;
  readonly flags: number;
  readonly channel: number;
  readonly payload: Uint8Array;
  /** What follows `payload` in the same frame. Apart, so that large contents need not be copied behind a few bytes of their message. */
  readonly body?: Uint8Array | undefined;
}

export type FrameListener = (type: number, flags: number, channel: number, payload: Uint8Array) => void;

export const noPayload: Uint8Array = new Uint8Array(0);

/** A body from this size is not copied. */
const bodyBytesMin = 8192;

/** Writes a frame at `offset` and returns the offset after it. The caller has made room and kept the payload within its limit. */
export function writeFrame(into: Uint8Array, offset: number, frame: Frame): number {
  const end = writeHead(into, offset, frame);
  if (!frame.body) return end;
  into.set(frame.body, end);
  return end + frame.body.byteLength;
}

/** The frame without its body. */
function writeHead(into: Uint8Array, offset: number, frame: Frame): number {
  const { payload, channel } = frame;
  const length = lengthOf(frame);
  into[offset] = length >>> 24;
  into[offset + 1] = length >>> 16;
  into[offset + 2] = length >>> 8;
  into[offset + 3] = length;
  into[offset + 4] = frame.type;
  into[offset + 5] = frame.flags;
  into[offset + 6] = channel >>> 24;
  into[offset + 7] = channel >>> 16;
  into[offset + 8] = channel >>> 8;
  into[offset + 9] = channel;
  into.set(payload, offset + headerBytes);
  return offset + headerBytes + payload.byteLength;
}

/** Of the payload. */
export function lengthOf({ payload, body }: Frame): number {
  return payload.byteLength + (body?.byteLength ?? 0);
}

/** All frames for one write: small ones in one piece, large bodies as they are. Those must not change until they are written. */
export function framePieces(frames: readonly Frame[]): Uint8Array[] {
  const pieces: Uint8Array[] = [];
  let small: Frame[] = [];
  const flush = () => {
    if (small.length > 0) pieces.push(encodeFrames(small));
    small = [];
  };
  for (const frame of frames) {
    const { body } = frame;
    if (body && body.byteLength >= bodyBytesMin) {
      // The header counts the body, which follows by itself.
      const head = Buffer.allocUnsafe(headerBytes + frame.payload.byteLength);
      flush();
      writeHead(head, 0, frame);
      pieces.push(head, body);
    } else {
      small.push(frame);
    }
  }
  flush();
  return pieces;
}

/** All frames in one piece, so that they travel in one write. */
export function encodeFrames(frames: readonly Frame[]): Uint8Array {
  let total = 0;
  for (const frame of frames) total += headerBytes + lengthOf(frame);
  const bytes = Buffer.allocUnsafe(total);
  let offset = 0;
  for (const frame of frames) offset = writeFrame(bytes, offset, frame);
  return bytes;
}

/** Cuts chunks of bytes into whole frames. Payloads are copies: the chunk may be used again, and nothing keeps it. Holds at most one payload. */
export class FrameReader {
  readonly #onFrame: FrameListener;
  readonly #header = new Uint8Array(headerBytes);
  #headerFilled = 0;
  #payload: Uint8Array | undefined;
  #payloadFilled = 0;
  #type = 0;
  #flags = 0;
  #channel = 0;

  constructor(onFrame: FrameListener) {
    this.#onFrame = onFrame;
  }

  /** Whether the bytes so far end in the middle of a frame. */
  get partial(): boolean {
    return this.#headerFilled > 0 || this.#payload !== undefined;
  }

  /** @throws LinkViolation for a header that breaks a rule; the reader must not be used after it */
  push(chunk: Uint8Array): void {
    let at = 0;
    while (at < chunk.byteLength) {
      if (this.#payload) {
        at += this.#fillPayload(this.#payload, chunk, at);
        continue;
      }
      let header: Uint8Array = chunk;
      let headerAt = at;
      if (this.#headerFilled > 0 || chunk.byteLength - at < headerBytes) {
        const part = chunk.subarray(at, at + headerBytes - this.#headerFilled);
        this.#header.set(part, this.#headerFilled);
        this.#headerFilled += part.byteLength;
        at += part.byteLength;
        if (this.#headerFilled < headerBytes) return;
        this.#headerFilled = 0;
        header = this.#header;
        headerAt = 0;
      } else {
        at += headerBytes;
      }
      const length = this.#parse(header, headerAt);
      if (length === 0) this.#onFrame(this.#type, this.#flags, this.#channel, noPayload);
      else {
        this.#payload = Buffer.allocUnsafeSlow(length);
        this.#payloadFilled = 0;
      }
    }
  }

  #fillPayload(payload: Uint8Array, chunk: Uint8Array, at: number): number {
    const part = chunk.subarray(at, at + payload.byteLength - this.#payloadFilled);
    payload.set(part, this.#payloadFilled);
    this.#payloadFilled += part.byteLength;
    if (this.#payloadFilled === payload.byteLength) {
      this.#payload = undefined;
      this.#onFrame(this.#type, this.#flags, this.#channel, payload);
    }
    return part.byteLength;
  }

  /** @returns the length of the payload. */
  #parse(header: Uint8Array, at: number): number {
    const length = uint32At(header, at);
    const type = header[at + 4] as number;
    const flags = header[at + 5] as number;
    if (length > payloadBytesMax) throw new LinkViolation(`a payload of ${length} bytes`);
    if (!knownTypes.has(type)) throw new LinkViolation(`an unknown frame type 0x${type.toString(16)}`);
    if ((flags & ~flagMore) !== 0) throw new LinkViolation(`unknown flags 0x${flags.toString(16)}`);
    this.#type = type;
    this.#flags = flags;
    this.#channel = uint32At(header, at + 6);
    return length;
  }
}

export function uint32At(bytes: Uint8Array, at: number): number {
  return (
    (((bytes[at] as number) << 24) | ((bytes[at + 1] as number) << 16) | ((bytes[at + 2] as number) << 8) | (bytes[at + 3] as number)) >>> 0
  );
}

export function uint32Bytes(value: number): Uint8Array {
  return Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value);
}
