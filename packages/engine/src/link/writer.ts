/**
 * Everything that is sent on a link: control frames first, then one DATA frame per ready channel in turn, all small frames of one
 * turn of the event loop in one write. It can be held at a frame boundary, and goes on from there.
 */

import type { FrameTransport } from "../driver.ts";
import type { Channel } from "./channel.ts";
import { Fifo } from "./fifo.ts";
import { type Frame, framePieces, frameType, headerBytes, lengthOf, uint32Bytes } from "./frame.ts";

/** A write is finished when it has reached this size; the transport's back-pressure counts whole writes. */
const writeBytesTarget = 262_144;

export class FrameWriter {
  readonly #transport: FrameTransport;
  readonly #onError: (error: Error) => void;
  /** Frames of the session itself (HELLO, QUIESCE, RESUME, ADOPT), which are sent even while all others are held. */
  readonly #session = new Fifo<Frame>();
  /** OPEN, RESET, PING, in the order in which they were asked for. At most a few per open channel. */
  readonly #control = new Fifo<Frame>();
  readonly #creditors = new Set<Channel>();
  readonly #ready = new Set<Channel>();
  #held = false;
  #scheduled = false;
  #writing = false;
  #stopped = false;
  readonly #flushed = new Fifo<() => void>();

  constructor(transport: FrameTransport, onError: (error: Error) => void) {
    this.#transport = transport;
    this.#onError = onError;
  }

  /** Control frames that have not been sent yet. */
  get waiting(): number {
    return this.#control.length;
  }

  session(...frames: Frame[]): void {
    for (const frame of frames) this.#session.push(frame);
    this.#schedule();
  }

  control(frame: Frame): void {
    this.#control.push(frame);
    this.#schedule();
  }

  ready(channel: Channel): void {
    this.#ready.add(channel);
    this.#schedule();
  }

  owesCredit(channel: Channel): void {
    this.#creditors.add(channel);
    this.#schedule();
  }

  forget(channel: Channel): void {
    this.#ready.delete(channel);
    this.#creditors.delete(channel);
  }

  /** Sends the frame and nothing after it until `release`. Everything that is asked for meanwhile waits. */
  hold(last: Frame): void {
    this.#held = true;
    this.session(last);
  }

  /** Sends the frame, then goes on where `hold` stopped. Resolves when the frame has been handed to the transport. */
  release(first: Frame): Promise<void> {
    this.#held = false;
    this.session(first);
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#flushed.push(resolve);
    return promise;
  }

  stop(): void {
    this.#stopped = true;
    this.#session.clear();
    this.#control.clear();
    this.#ready.clear();
    this.#creditors.clear();
    this.#settleFlushed();
  }

  /** Waits for the end of this turn of the event loop, so that what belongs together travels together. */
  #schedule(): void {
    if (this.#scheduled || this.#writing || this.#stopped) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#write().catch(this.#onError);
    });
  }

  async #write(): Promise<void> {
    this.#writing = true;
    try {
      for (;;) {
        const frames = this.#collect();
        if (frames.length === 0) return;
        const sent = this.#transport.send(...framePieces(frames));
        if (this.#session.length === 0) this.#settleFlushed();
        await sent;
      }
    } finally {
      this.#writing = false;
    }
  }

  #collect(): Frame[] {
    const frames: Frame[] = [];
    if (this.#stopped) return frames;
    let bytes = 0;
    const add = (frame: Frame): void => {
      frames.push(frame);
      bytes += headerBytes + lengthOf(frame);
    };
    for (let frame = this.#session.shift(); frame; frame = this.#session.shift()) add(frame);
    if (this.#held) return frames;
    while (bytes < writeBytesTarget) {
      const frame = this.#control.shift();
      if (!frame) break;
      add(frame);
    }
    for (const channel of this.#creditors) {
      const owed = channel.takeOwedCredit();
      if (owed > 0) add({ type: frameType.credit, flags: 0, channel: channel.number, payload: uint32Bytes(owed) });
    }
    this.#creditors.clear();
    // A channel that has more to send goes to the end of the set, so this loop visits all others before it again.
    for (const channel of this.#ready) {
      if (bytes >= writeBytesTarget || this.#control.length > 0) break;
      this.#ready.delete(channel);
      const frame = channel.nextFrame();
      if (frame) add(frame);
      if (channel.canSend && !channel.isGone) this.#ready.add(channel);
    }
    return frames;
  }

  #settleFlushed(): void {
    for (let settle = this.#flushed.shift(); settle; settle = this.#flushed.shift()) settle();
  }
}
