/** For tests: a guest that follows docs/link.md over a pipe in memory, written apart from the client so that one checks the other. */

import { setImmediate as nextTurn } from "node:timers/promises";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { guest } from "@mitos/protocol/proto";
import type { FrameTransport } from "../driver.ts";
import { encodeFrames, type Frame, FrameReader, frameType, noPayload, uint32At, uint32Bytes } from "./frame.ts";

const windowBytes = 262_144;

export class FakeCall {
  readonly number: number;
  readonly method: string;
  /** Undefined = the first message comes as DATA. */
  readonly first: Uint8Array;
  readonly guest: FakeGuest;
  credit = windowBytes;
  received: Uint8Array[] = [];
  receivedEnd: boolean;
  resetBy: guest.Status | undefined;
  /** False = CREDIT is only given by hand. */
  autoCredit = true;
  #partial: Uint8Array[] = [];
  #wake: (() => void)[] = [];

  constructor(owner: FakeGuest, number: number, method: string, first: Uint8Array, end: boolean) {
    this.guest = owner;
    this.number = number;
    this.method = method;
    this.first = first;
    this.receivedEnd = end;
  }

  /** The next message of the host; undefined after its END. */
  async receive(): Promise<Uint8Array | undefined> {
    await this.until(() => this.received.length > 0 || this.receivedEnd);
    return this.received.shift();
  }

  async send(message: Uint8Array): Promise<void> {
    let at = 0;
    do {
      await this.until(() => (this.credit > 0 || message.byteLength === 0) && !this.guest.quiet);
      const length = Math.min(message.byteLength - at, this.credit, 65_536);
      const more = at + length < message.byteLength;
      this.credit -= length;
      this.guest.raw({
        type: frameType.data,
        flags: more ? 1 : 0,
        channel: this.number,
        payload: message.subarray(at, at + length),
      });
      at += length;
      await nextTurn();
    } while (at < message.byteLength);
  }

  async end(code = "", message = ""): Promise<void> {
    await this.until(() => !this.guest.quiet);
    const status = toBinary(guest.StatusSchema, create(guest.StatusSchema, { code, message }));
    this.guest.raw({ type: frameType.end, flags: 0, channel: this.number, payload: status });
  }

  grant(bytes: number): void {
    this.guest.raw({ type: frameType.credit, flags: 0, channel: this.number, payload: uint32Bytes(bytes) });
  }

  async until(condition: () => boolean): Promise<void> {
    while (!condition()) {
      if (this.resetBy) throw new Error("reset");
      await new Promise<void>((resolve) => this.#wake.push(resolve));
    }
  }

  take(payload: Uint8Array, more: boolean): void {
    this.#partial.push(Uint8Array.from(payload));
    if (!more) this.received.push(Buffer.concat(this.#partial.splice(0)));
    if (this.autoCredit && payload.byteLength > 0) this.grant(payload.byteLength);
    this.wake();
  }

  wake(): void {
    for (const resolve of this.#wake.splice(0)) resolve();
  }
}

export interface FakeGuestOptions {
  /** Cuts what the guest sends into chunks of this size. */
  readonly chunkBytes?: number;
  readonly protocolVersion?: number;
  readonly answerHello?: boolean;
  readonly answerQuiesce?: boolean;
  readonly quiesceError?: string;
  readonly adoptError?: string;
}

export class FakeGuest {
  readonly transport: FrameTransport;
  /** Every frame of the host, with copies of the payloads. */
  readonly frames: Frame[] = [];
  /** Writes of the host: how many frames came in one. */
  readonly writes: number[] = [];
  readonly calls = new Map<number, FakeCall>();
  handler: (call: FakeCall) => Promise<void> = async (call) => call.end("unimplemented");
  quiet = false;
  /** While set, PING gets no answer. */
  mute = false;
  session = "";
  /** While set, the host's writes are not finished. */
  blocked: Promise<void> | undefined;
  readonly #options: FakeGuestOptions;
  readonly #reader: FrameReader;
  #toHost: (chunk: Uint8Array) => void = () => undefined;
  #onClose: (error: Error | undefined) => void = () => undefined;
  #lastCall = -1;

  constructor(options: FakeGuestOptions = {}) {
    this.#options = options;
    this.#reader = new FrameReader((type, flags, channel, payload) => this.#receive(type, flags, channel, payload));
    this.transport = {
      send: async (...pieces) => {
        await nextTurn();
        const before = this.frames.length;
        for (const piece of pieces) this.#reader.push(piece);
        this.writes.push(this.frames.length - before);
        await this.blocked;
      },
      onFrame: (listener) => {
        const reader = new FrameReader(listener);
        this.#toHost = (chunk) => reader.push(chunk);
      },
      onClose: (listener) => {
        this.#onClose = listener;
      },
      pause: () => undefined,
      resume: () => undefined,
    };
  }

  /** Sends frames as they are, whatever the state. */
  raw(...frames: Frame[]): void {
    const bytes = encodeFrames(frames);
    const step = this.#options.chunkBytes ?? bytes.byteLength;
    for (let at = 0; at < bytes.byteLength; at += step) this.#toHost(bytes.subarray(at, at + step));
  }

  control(type: number, payload: Uint8Array = noPayload): void {
    this.raw({ type, flags: 0, channel: 0, payload });
  }

  open(method: string, message: Uint8Array, end = true): number {
    this.#lastCall += 2;
    const payload = toBinary(guest.OpenSchema, create(guest.OpenSchema, { method, message, end }));
    this.raw({ type: frameType.open, flags: 0, channel: this.#lastCall, payload });
    return this.#lastCall;
  }

  disconnect(error?: Error): void {
    this.#onClose(error);
  }

  sent(type: number): Frame[] {
    return this.frames.filter((frame) => frame.type === type);
  }

  #receive(type: number, flags: number, channel: number, payload: Uint8Array): void {
    this.frames.push({ type, flags, channel, payload: Uint8Array.from(payload) });
    const call = this.calls.get(channel);
    switch (type) {
      case frameType.hello:
        this.session = fromBinary(guest.HelloSchema, payload).session;
        this.calls.clear();
        this.quiet = false;
        if (this.#options.answerHello !== false) this.acknowledge(this.session);
        break;
      case frameType.adopt: {
        const { round, generation } = fromBinary(guest.AdoptSchema, payload);
        const adopted = create(guest.AdoptedSchema, { round, generation, error: this.#options.adoptError ?? "" });
        this.control(frameType.adopted, toBinary(guest.AdoptedSchema, adopted));
        break;
      }
      case frameType.quiesce: {
        if (this.#options.answerQuiesce === false) break;
        const { round } = fromBinary(guest.QuiesceSchema, payload);
        this.quiet = true;
        const quiesced = create(guest.QuiescedSchema, { round, error: this.#options.quiesceError ?? "" });
        this.control(frameType.quiesced, toBinary(guest.QuiescedSchema, quiesced));
        break;
      }
      case frameType.resume:
        this.quiet = false;
        for (const each of this.calls.values()) each.wake();
        break;
      case frameType.ping:
        if (!this.mute) this.control(frameType.pong, payload);
        break;
      case frameType.open: {
        const open = fromBinary(guest.OpenSchema, payload);
        const opened = new FakeCall(this, channel, open.method, open.message, open.end);
        this.calls.set(channel, opened);
        this.handler(opened).catch(() => undefined);
        break;
      }
      case frameType.data:
        call?.take(payload, (flags & 1) === 1);
        break;
      case frameType.end:
        if (call) call.receivedEnd = true;
        call?.wake();
        break;
      case frameType.reset:
        if (call) call.resetBy = fromBinary(guest.StatusSchema, payload);
        call?.wake();
        break;
      case frameType.credit:
        if (call) call.credit += uint32At(payload, 0);
        call?.wake();
        break;
    }
  }

  acknowledge(session: string): void {
    const ack = create(guest.HelloAckSchema, { protocolVersion: this.#options.protocolVersion ?? 5, session, agentVersion: "fake" });
    this.control(frameType.helloAck, toBinary(guest.HelloAckSchema, ack));
  }
}
