/**
 * One channel of the link: messages both ways, credit both ways, half-close and reset.
 *
 * Bounded on both sides: the guest can have at most its credit and one message that is being put together waiting here, and a sender
 * here waits until its message has been handed to the transport.
 */

import { limits, MitosError } from "@mitos/protocol";
import { Fifo } from "./fifo.ts";
import { type Frame, flagMore, frameType, noPayload, payloadBytesMax } from "./frame.ts";
import { callerLeft, encodeStatus } from "./status.ts";
import { LinkViolation } from "./violation.ts";

/** Credit for DATA payloads that each direction of a channel starts with. */
export const initialCreditBytes = 262_144;
/** What a wide channel gets beside that, once it has received as much: with less, its sender waits for every turn of the event loop here. */
export const wideCreditBytes = 1_048_576;
/** Credit is given back in pieces of this size, so that a stream of small messages does not double the frames. */
const creditStepBytes = 65_536;
const creditBytesMax = 0x7fff_ffff;
/** Messages that wait here for credit, over all calls of `send` that were not awaited. */
const unsentBytesMax = limits.messageBytesMax + initialCreditBytes;
const unsentMessagesMax = 1024;
/** What a waiting message costs beside its bytes: without it, messages of one byte would be nearly free for the guest. */
const messageOverheadBytes = 384;
const assemblyBytesMin = 2 * payloadBytesMax;

/** What a channel needs from its session. */
export interface ChannelHost {
  /** How long the peer may take from its last message to its END when nobody waits for that any more. */
  readonly endTimeoutMs: number;
  /** The channel has something to send that its credit allows. */
  ready(channel: Channel): void;
  /** The channel has credit to give back. */
  owesCredit(channel: Channel): void;
  /** Sends RESET. */
  sendReset(channel: Channel, status: Uint8Array): void;
  /** Nothing more is sent or accepted on the channel. */
  gone(channel: Channel): void;
  /** Whether there is room for `wideCreditBytes` more, until the channel is gone. */
  widen(channel: Channel): boolean;
  /** Counts bytes held for the guest, negative when they are let go. False when the link holds too much: nothing was counted. */
  hold(bytes: number): boolean;
}

interface Outgoing {
  readonly head: Uint8Array;
  /** What follows `head` in the same message. */
  readonly body: Uint8Array;
  sent: number;
  resolve(): void;
  reject(error: MitosError): void;
}

interface Incoming {
  readonly bytes: Uint8Array;
  /** What was held for it with `ChannelHost.hold`. */
  readonly held: number;
  /** To be given back when it is taken. */
  readonly credit: number;
}

interface Waiter {
  resolve(message: Uint8Array | undefined): void;
  reject(error: MitosError): void;
}

export interface ChannelOptions {
  readonly number: number;
  readonly method: string;
  /** Whether the end of the peer's direction ends ours too. True for calls, false for tunnels, where it is a half-close. */
  readonly endsWithPeer: boolean;
  /** The opener said already that it sends nothing more. */
  readonly sendEnded?: boolean;
  readonly receiveEnded?: boolean;
  /** Carries large contents to here. */
  readonly isWide?: boolean;
  /** Of a message to here. Default `limits.messageBytesMax`. */
  readonly messageBytesMax?: number;
}

export class Channel {
  readonly number: number;
  readonly method: string;
  readonly #host: ChannelHost;
  readonly #endsWithPeer: boolean;

  #credit = initialCreditBytes;
  readonly #out = new Fifo<Outgoing>();
  #unsentBytes = 0;
  /** A message was given up of which a part has been sent: END may not follow. */
  #cutMessage = false;
  #endStatus: Uint8Array | undefined;
  #sendEnded: boolean;

  #window = initialCreditBytes;
  /** Payload that is still to come before the window is made wider; undefined when it stays as it is. */
  #narrowBytes: number | undefined;
  #owed = 0;
  /** Credit of parts of a message that arrived while whole messages were waiting; it is owed when the last of those is taken. */
  #owedLater = 0;
  readonly #in = new Fifo<Incoming>();
  #assembly: Uint8Array | undefined;
  #assembled = 0;
  #assembling = false;
  readonly #messageBytesMax: number;
  #refusesMore = false;
  #receiveEnded: boolean;
  #waiter: Waiter | undefined;
  #lastTaken = false;
  /** Runs from when the caller has left after the last message until the channel is gone. */
  #endWatch: NodeJS.Timeout | undefined;

  /** Why nothing more comes, once the waiting messages have been taken. Undefined = ended well. */
  #outcome: MitosError | undefined;
  #gone = false;
  readonly #onGone: (() => void)[] = [];

  constructor(host: ChannelHost, options: ChannelOptions) {
    this.#host = host;
    this.number = options.number;
    this.method = options.method;
    this.#endsWithPeer = options.endsWithPeer;
    this.#sendEnded = options.sendEnded ?? false;
    this.#receiveEnded = options.receiveEnded ?? false;
    this.#narrowBytes = options.isWide ? initialCreditBytes : undefined;
    this.#messageBytesMax = options.messageBytesMax ?? limits.messageBytesMax;
  }

  get isGone(): boolean {
    return this.#gone;
  }

  /** Both sides have ended well. */
  get isComplete(): boolean {
    return this.#sendEnded && this.#receiveEnded && this.#outcome === undefined;
  }

  /** Each listener is called once, when the channel is gone for whatever reason. */
  onGone(listener: () => void): void {
    if (this.#gone) listener();
    else this.#onGone.push(listener);
  }

  // ------------------------------------------------------------------------------------------------ sending

  /** Resolves when the whole message, `head` and then `body`, has been handed to the transport. Neither may change any more. */
  send(head: Uint8Array, body: Uint8Array = noPayload): Promise<void> {
    const byteLength = head.byteLength + body.byteLength;
    if (this.#gone || this.#sendEnded || this.#endStatus || this.#endWatch) {
      return Promise.reject(this.#outcome ?? this.#ended());
    }
    if (byteLength > limits.messageBytesMax) {
      return Promise.reject(new MitosError("body_too_large", { cause: `a message of ${byteLength} bytes` }));
    }
    if (this.#unsentBytes + byteLength > unsentBytesMax || this.#out.length >= unsentMessagesMax) {
      return Promise.reject(new MitosError("sandbox_exhausted", { cause: "too much is waiting to be sent to the sandbox" }));
    }
    this.#unsentBytes += byteLength;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#out.push({ head, body, sent: 0, resolve, reject });
    this.#announce();
    return promise;
  }

  /** Half-close, after what waits to be sent. */
  end(status: Uint8Array = encodeStatus("")): void {
    if (this.#gone || this.#sendEnded || this.#endStatus) return;
    this.#endStatus = status;
    this.#announce();
  }

  /** Abort at once, both ways. Idempotent. */
  reset(error: MitosError = callerLeft()): void {
    if (this.#gone) return;
    this.#host.sendReset(this, encodeStatus(error.entry.connect));
    this.#leave(error, { dropWaiting: true });
  }

  /** Abort at once a channel that the guest has opened, and say why. Idempotent. */
  refuse(status: Uint8Array): void {
    if (this.#gone) return;
    this.#host.sendReset(this, status);
    this.#leave(callerLeft(), { dropWaiting: true });
  }

  /** The next frame that may be sent, for the writer. */
  nextFrame(): Frame | undefined {
    const message = this.#out.peek();
    if (!message) {
      if (!this.#endStatus || this.#sendEnded) return undefined;
      const frame: Frame = { type: frameType.end, flags: 0, channel: this.number, payload: this.#endStatus };
      this.#sendEnded = true;
      this.#leaveIfBothEnded();
      return frame;
    }
    const { head, body, sent } = message;
    const left = head.byteLength + body.byteLength - sent;
    if (left > 0 && this.#credit === 0) return undefined;
    const length = Math.min(left, this.#credit, payloadBytesMax);
    const more = length < left;
    const inHead = Math.min(length, Math.max(head.byteLength - sent, 0));
    const bodyAt = sent + inHead - head.byteLength;
    this.#credit -= length;
    this.#unsentBytes -= length;
    message.sent += length;
    if (!more) {
      this.#out.shift();
      message.resolve();
    }
    return {
      type: frameType.data,
      flags: more ? flagMore : 0,
      channel: this.number,
      payload: head.subarray(sent, sent + inHead),
      body: inHead < length ? body.subarray(bodyAt, bodyAt + length - inHead) : undefined,
    };
  }

  get canSend(): boolean {
    const message = this.#out.peek();
    if (!message) return this.#endStatus !== undefined && !this.#sendEnded;
    return this.#credit > 0 || message.head.byteLength + message.body.byteLength === 0;
  }

  #announce(): void {
    if (!this.#gone && this.canSend) this.#host.ready(this);
  }

  // ------------------------------------------------------------------------------------------------ receiving

  /**
   * The next message, or undefined when the peer has ended well.
   * @throws the error that ended the channel, after the messages that came before it
   */
  take(): Promise<Uint8Array | undefined> {
    const message = this.#in.shift();
    if (message) {
      this.#host.hold(-message.held);
      this.#owe(message.credit);
      if (this.#in.length === 0) {
        this.#owe(this.#owedLater);
        this.#owedLater = 0;
      }
      return Promise.resolve(message.bytes);
    }
    if (this.#receiveEnded || this.#gone) return this.#outcome ? Promise.reject(this.#outcome) : Promise.resolve(undefined);
    if (this.#endWatch) return Promise.reject(callerLeft());
    if (this.#waiter) return Promise.reject(new Error("take() is called again before the last call has resolved"));
    const { promise, resolve, reject } = Promise.withResolvers<Uint8Array | undefined>();
    this.#waiter = { resolve, reject };
    return promise;
  }

  /** What was taken last is all that the peer says: after it comes END, for which a caller that leaves need not stay. */
  lastTaken(): void {
    this.#lastTaken = true;
  }

  /** The call has had its only message: another one, or the beginning of one, resets the channel, also when it came already. */
  refuseMore(): void {
    this.#refusesMore = true;
    if (this.#in.length > 0 || this.#assembling) this.#resetForMore();
  }

  /** @throws LinkViolation */
  receiveData(payload: Uint8Array, more: boolean): void {
    if (this.#receiveEnded) throw new LinkViolation("DATA after END");
    const length = payload.byteLength;
    if (length > this.#window) throw new LinkViolation("more DATA than its credit");
    this.#window -= length;
    this.#widenAfter(length);
    if (this.#endWatch) {
      this.reset(); // more than its last message, and nobody to take it
      return;
    }
    if (this.#refusesMore) {
      this.#resetForMore();
      return;
    }
    if (more || this.#assembling) {
      this.#assemble(payload, more);
      return;
    }
    if (this.#waiter) {
      this.#owe(length);
      this.#deliver(payload);
      return;
    }
    const held = length + messageOverheadBytes;
    if (this.#host.hold(held)) this.#in.push({ bytes: payload, held, credit: length });
    else this.#overflow();
  }

  /** @throws LinkViolation */
  receiveEnd(outcome: MitosError | undefined): void {
    if (this.#receiveEnded) throw new LinkViolation("END twice");
    if (this.#assembling) throw new LinkViolation("END inside a message");
    this.#receiveEnded = true;
    this.#outcome = outcome;
    this.#settleWaiter();
    if (this.#endsWithPeer) {
      // The callee has finished: what waits to be sent has no reader.
      this.#rejectUnsent(outcome);
      if (this.#cutMessage) {
        // END may not stand inside a message.
        this.#host.sendReset(this, encodeStatus("canceled"));
        this.#leave(outcome, { dropWaiting: false });
        return;
      }
      this.end();
    }
    this.#leaveIfBothEnded();
  }

  receiveReset(error: MitosError): void {
    this.#leave(error, { dropWaiting: true });
  }

  /** @throws LinkViolation */
  receiveCredit(bytes: number): void {
    if (this.#credit + bytes > creditBytesMax) throw new LinkViolation("credit without measure");
    this.#credit += bytes;
    this.#announce();
  }

  /** The credit to give back now; for the writer, which sends it. */
  takeOwedCredit(): number {
    if (this.#gone || this.#receiveEnded) return 0;
    const bytes = this.#owed;
    this.#owed = 0;
    this.#window += bytes;
    return bytes;
  }

  /** The session is over. */
  lost(error: MitosError): void {
    this.#leave(error, { dropWaiting: true });
  }

  #owe(bytes: number): void {
    this.#owed += bytes;
    if (this.#owed >= creditStepBytes && !this.#gone && !this.#receiveEnded) this.#host.owesCredit(this);
  }

  #widenAfter(received: number): void {
    if (this.#narrowBytes === undefined) return;
    this.#narrowBytes -= received;
    if (this.#narrowBytes > 0) return;
    this.#narrowBytes = undefined;
    if (this.#host.widen(this)) this.#owe(wideCreditBytes);
  }

  /** Puts a message together in one growing buffer: a list of parts would cost more than the parts when they are small. */
  #assemble(payload: Uint8Array, more: boolean): void {
    const size = this.#assembled + payload.byteLength;
    if (size > this.#messageBytesMax) throw new LinkViolation(`a message of more than ${this.#messageBytesMax} bytes`);
    this.#assembling = true;
    const capacity = this.#assembly?.byteLength ?? 0;
    if (size > capacity) {
      const grown = Math.min(Math.max(assemblyBytesMin, capacity * 2, size), this.#messageBytesMax);
      if (!this.#host.hold(grown - capacity)) {
        this.#overflow();
        return;
      }
      const buffer = new Uint8Array(grown);
      if (this.#assembly) buffer.set(this.#assembly.subarray(0, this.#assembled));
      this.#assembly = buffer;
    }
    this.#assembly?.set(payload, this.#assembled);
    this.#assembled = size;
    // Where the window has room for any message credit is due when that is taken. Else it is due for a part when it arrives, but a guest that has
    // whole messages waiting here gets no more room for others.
    const fitsWindow = this.#messageBytesMax <= initialCreditBytes - creditStepBytes;
    if (!fitsWindow) {
      if (this.#in.length === 0) this.#owe(payload.byteLength);
      else this.#owedLater += payload.byteLength;
    }
    if (more) return;

    const held = this.#assembly?.byteLength ?? 0;
    const bytes = this.#assembly?.subarray(0, size) ?? new Uint8Array(0);
    this.#assembly = undefined;
    this.#assembled = 0;
    this.#assembling = false;
    const credit = fitsWindow ? size : 0;
    if (this.#waiter) {
      this.#host.hold(-held);
      this.#owe(credit);
      this.#deliver(bytes);
    } else if (this.#host.hold(messageOverheadBytes)) {
      this.#in.push({ bytes, held: held + messageOverheadBytes, credit });
    } else {
      this.#host.hold(-held);
      this.#overflow();
    }
  }

  #deliver(bytes: Uint8Array): void {
    const waiter = this.#waiter;
    this.#waiter = undefined;
    waiter?.resolve(bytes);
  }

  #resetForMore(): void {
    this.reset(new MitosError("invalid_input", { cause: `a second message for ${this.method}` }));
  }

  #overflow(): void {
    this.reset(new MitosError("sandbox_exhausted", { cause: "the sandbox sent more than the host can hold for it" }));
  }

  // ------------------------------------------------------------------------------------------------ the end

  #leaveIfBothEnded(): void {
    if (this.#sendEnded && this.#receiveEnded) this.#leave(this.#outcome, { dropWaiting: false });
  }

  #leave(outcome: MitosError | undefined, { dropWaiting }: { dropWaiting: boolean }): void {
    if (this.#gone) return;
    this.#gone = true;
    clearTimeout(this.#endWatch);
    if (dropWaiting) {
      this.#outcome = outcome;
      this.#dropIncoming();
    }
    this.#settleWaiter();
    this.#rejectUnsent(outcome);
    this.#host.gone(this);
    for (const listener of this.#onGone.splice(0)) listener();
  }

  /**
   * The caller has left. What waits is let go of, since it will not be taken, and a call that goes on is aborted; one of which only END is missing comes
   * to that by itself.
   */
  discard(): void {
    if (this.#gone) this.#dropIncoming();
    else if (this.#lastTaken) this.#awaitEnd();
    else this.reset();
  }

  /** To the caller it is as if the channel were gone. */
  #awaitEnd(): void {
    if (this.#endWatch) return;
    this.#endWatch = setTimeout(() => this.reset(), this.#host.endTimeoutMs).unref();
    this.#dropIncoming();
    this.#waiter?.reject(callerLeft());
    this.#waiter = undefined;
    this.#rejectUnsent();
  }

  #dropIncoming(): void {
    let held = this.#assembly?.byteLength ?? 0;
    for (const message of this.#in) held += message.held;
    this.#in.clear();
    this.#assembly = undefined;
    this.#assembling = false;
    if (held > 0) this.#host.hold(-held);
  }

  #settleWaiter(): void {
    const waiter = this.#waiter;
    this.#waiter = undefined;
    if (!waiter) return;
    if (this.#outcome) waiter.reject(this.#outcome);
    else waiter.resolve(undefined);
  }

  #ended(): MitosError {
    return new MitosError("canceled", { cause: `the ${this.method} call has ended` });
  }

  #rejectUnsent(outcome?: MitosError): void {
    const first = this.#out.peek();
    // Every call ends here, nearly all with nothing unsent: an error is not made for nobody.
    if (!first) return;
    this.#cutMessage ||= first.sent > 0;
    const error = outcome ?? this.#ended();
    for (const message of this.#out) message.reject(error);
    this.#out.clear();
    this.#unsentBytes = 0;
  }
}
