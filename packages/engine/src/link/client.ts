/**
 * The host's end of a link session: handshake, quiet moments for a fork, calls to the agent, calls from it.
 *
 * The guest is hostile. Every frame is checked as docs/link.md says; the first one that breaks a rule ends the session, and what is
 * under way fails with `unavailable`. Memory is bounded whatever the guest sends.
 */

import { randomBytes } from "node:crypto";
import {
  create,
  type DescField,
  type DescMessage,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { MitosError } from "@mitos/protocol";
import { guest } from "@mitos/protocol/proto";
import type { Tunnel } from "../actions.ts";
import type { FrameTransport } from "../driver.ts";
import { Channel, type ChannelHost, type ChannelOptions, wideCreditBytes } from "./channel.ts";
import { hasMoreFieldsThan, messageDepthMax } from "./field-count.ts";
import { Fifo } from "./fifo.ts";
import { type Frame, flagMore, frameType, noPayload, payloadBytesMax, uint32At } from "./frame.ts";
import { callerLeft, decodeStatus, encodeStatus, errorOfStatus, linkLost, statusOfError } from "./status.ts";
import { CallTrace } from "./trace.ts";
import { LinkViolation } from "./violation.ts";
import { FrameWriter } from "./writer.ts";

export const protocolVersion = 5;

const channelsMax = 512;
const openMessageBytesMax = 60_000;
/** Of a message on a channel that the guest opened: the agent's requests and pieces of a connection each fit into a frame. */
const guestMessageBytesMax = payloadBytesMax;
const channelNumberMax = 0xffff_fffe;
/** Channels with a wider window at the same time; others keep theirs. */
const wideChannelsMax = 8;
/** Over all channels: what waits here for its taker, and messages that are being put together. */
const heldBytesMaxDefault = 128 * 1024 * 1024 + wideChannelsMax * wideCreditBytes;
const silenceMsDefault = 60_000;
const endTimeoutMsDefault = 10_000;
const pingsMax = 16;
const pingBytesMax = 64;
const tunnelChunkBytes = 61_440;
/** The first message of a call of the guest, which the agent sends with OPEN. */
const firstMessageMsDefault = 30_000;
/** A message above this is looked through before it is decoded: two bytes of an empty list entry become an object of a hundred. */
const decodeFreelyBytesMax = 262_144;
/** As `hasMoreFieldsThan` counts. A result of a cell with 43,000 representations is far beyond any that somebody looks at. */
const decodedFieldsMax = 131_072;
/** Lists of which the agent sends more, by as many entries as it sends at most (files.rs, proctable.rs): an entry, and twice its 6 fields. */
const listFieldsMax: ReadonlyMap<DescMessage, number> = new Map<DescMessage, number>([
  [guest.Agent.method.list.output, 200_000 * 13],
  [guest.Agent.method.processes.output, 65_536 * 13],
]);

export interface LinkOptions {
  /** How long HELLO_ACK and ADOPTED may take. Default 10 s: a restored machine may have to load its pages first. */
  readonly handshakeTimeoutMs?: number;
  readonly heldBytesMax?: number;
  /**
   * While a call is under way and the guest has said nothing for so long it is sent a PING; without an answer in the same time again the link
   * is lost. Default 60 s: an agent among hundreds of busy programs is slow, one that was stopped is silent.
   */
  readonly silenceMs?: number;
  /** How long a call whose caller has left after the last message may take to its END before it is reset. Default 10 s: a fork may come between. */
  readonly endTimeoutMs?: number;
  /** How long the first message of a channel of the guest may take when OPEN did not bring it, before the channel is refused. Default 30 s. */
  readonly firstMessageMs?: number;
  /**
   * Resolves when whoever owns the machine has had its chance to `close` a lost session with the reason; called when the link is lost. What
   * is under way fails no earlier. Default: at once.
   */
  readonly lastWords?: (() => Promise<unknown>) | undefined;
}

export interface CallOptions {
  readonly signal?: AbortSignal | undefined;
  /** Called once, when the call is over for whatever reason. Not called when it could not be begun. */
  readonly onEnd?: (() => void) | undefined;
  /** The answer may be large: as long as few such calls are under way the agent may be further ahead of whoever takes it. */
  readonly isWide?: boolean;
}

export interface DuplexOptions<Output> extends CallOptions {
  /** Half-closed from the start: there is no message but the first. */
  readonly endAtOnce?: boolean;
  /**
   * Whether the guest says nothing after this message. Who leaves then has not broken the call off: its END, which says how long the agent took, is
   * waited for with nobody staying for it. Default: only END tells.
   */
  readonly isLast?: ((message: Output) => boolean) | undefined;
}

export interface UnaryOptions extends CallOptions {
  /** Default none. An answer that is late is `unavailable`. */
  readonly timeoutMs?: number | undefined;
}

interface Method<Kind extends string, I extends DescMessage, O extends DescMessage> {
  readonly name: string;
  readonly methodKind: Kind;
  readonly input: I;
  readonly output: O;
}

type StreamingKind = "server_streaming" | "client_streaming" | "bidi_streaming";

/** Messages both ways. Leaving the iteration of `messages` before its end or its last message, and an abort, send RESET. */
export interface Duplex<Input, Output> {
  /** Resolves when the message has been handed to the transport: the sandbox's back-pressure. */
  send(message: Input): Promise<void>;
  /** As `send`, of a message in which nothing but this field is set. The bytes are not copied, so they must not change any more. */
  sendBytes(field: DescField, bytes: Uint8Array): Promise<void>;
  /** Half-close, after what waits to be sent. */
  end(): void;
  /** Can be iterated once. */
  readonly messages: AsyncIterableIterator<Output>;
  /** RESET, unless the last message has been taken. Idempotent. */
  abort(): void;
}

/** The guest stands still, as far as the link is concerned, until `resume`. */
export interface Quiet {
  readonly round: bigint;
  /** Both ends go on exactly where they stopped. Resolves when RESUME is on its way. Idempotent. */
  resume(): Promise<void>;
}

export type GuestCallHandler<I extends DescMessage, O extends DescMessage> = (
  request: MessageShape<I>,
  signal: AbortSignal,
) => Promise<MessageInitShape<O>>;

/** A stream that the guest has opened: raw bytes both ways once it is accepted. */
export interface GuestStream<Reply> extends Tunnel {
  accept(reply: Reply): Promise<void>;
  /** The stream is gone before both sides have ended it. */
  readonly signal: AbortSignal;
}

export type GuestStreamHandler<I extends DescMessage, O extends DescMessage> = (
  request: MessageShape<I>,
  stream: GuestStream<MessageInitShape<O>>,
) => Promise<void>;

/**
 * One HELLO for each session: `fresh` until it is sent, `greeting` until it is acknowledged. `lost` without a transport, while what is under
 * way waits for the last words about its machine.
 */
type State = "fresh" | "greeting" | "open" | "lost" | "closed";

interface Awaited<T> {
  readonly promise: Promise<T>;
  resolve(value: T): void;
  reject(error: MitosError): void;
}

interface PendingRound<T> extends Awaited<T> {
  readonly round: bigint;
}

interface PendingPing {
  readonly payload: Uint8Array;
  readonly answered: Awaited<void>;
}

export class LinkClient {
  /** Resolves when the session is over: with what `close` was given, LinkViolation when the guest broke a rule, else what the transport said. */
  readonly closed: Promise<Error | undefined>;
  readonly #settleClosed: (error: Error | undefined) => void;
  readonly #writer: FrameWriter;
  readonly #handshakeTimeoutMs: number;
  readonly #heldBytesMax: number;
  readonly #silenceMs: number;
  readonly #firstMessageMs: number;
  /** Runs while calls are under way. */
  #silenceWatch: NodeJS.Timeout | undefined;
  #heard = false;
  readonly #lastWords: (() => Promise<unknown>) | undefined;
  readonly #session = randomBytes(16).toString("hex");
  readonly #channels = new Map<number, Channel>();
  readonly #handlers = new Map<string, (channel: Channel, first: Uint8Array | undefined) => void>();
  readonly #traces = new WeakMap<Channel, CallTrace>();
  readonly #wide = new Set<Channel>();
  readonly #pings = new Fifo<PendingPing>();
  #state: State = "fresh";
  #closeError: MitosError | undefined;
  #hello: Awaited<guest.HelloAck> | undefined;
  #adopting: PendingRound<guest.Adopted> | undefined;
  #quiescing: PendingRound<void> | undefined;
  /** Between QUIESCED and RESUME: the guest sends nothing. */
  #quiet = false;
  #round = 0n;
  #lastHostChannel = 0;
  #lastGuestChannel = -1;
  #hostChannels = 0;
  #guestChannels = 0;
  #heldBytes = 0;
  readonly #channelHost: ChannelHost;

  constructor(transport: FrameTransport, options: LinkOptions = {}) {
    this.#handshakeTimeoutMs = options.handshakeTimeoutMs ?? 10_000;
    this.#heldBytesMax = options.heldBytesMax ?? heldBytesMaxDefault;
    this.#silenceMs = options.silenceMs ?? silenceMsDefault;
    this.#firstMessageMs = options.firstMessageMs ?? firstMessageMsDefault;
    this.#lastWords = options.lastWords;
    const { promise, resolve } = Promise.withResolvers<Error | undefined>();
    this.closed = promise;
    this.#settleClosed = resolve;
    this.#writer = new FrameWriter(transport, (error) => this.#lose(error));
    this.#channelHost = {
      endTimeoutMs: options.endTimeoutMs ?? endTimeoutMsDefault,
      ready: (channel) => this.#writer.ready(channel),
      owesCredit: (channel) => this.#writer.owesCredit(channel),
      sendReset: (channel, status) => this.#sendReset(channel.number, status),
      gone: (channel) => this.#forget(channel),
      widen: (channel) => {
        if (this.#wide.size >= wideChannelsMax) return false;
        this.#wide.add(channel);
        return true;
      },
      hold: (bytes) => this.#hold(bytes),
    };
    transport.onFrame((type, flags, channel, payload) => {
      if (this.#state !== "greeting" && this.#state !== "open") return;
      this.#heard = true;
      try {
        this.#receive(type, flags, channel, payload);
      } catch (error) {
        this.#finish(error instanceof Error ? error : new Error(String(error)));
      }
    });
    transport.onClose((error) => this.#lose(error ?? new Error("the link has ended")));
  }

  /** Bytes that wait here for their taker. */
  get heldBytes(): number {
    return this.#heldBytes;
  }

  get openChannels(): number {
    return this.#channels.size;
  }

  // ------------------------------------------------------------------------------------------------ handshake

  /**
   * Opens the session. Once.
   * @param options.adoptFollows - the machine is a restored one: its programs stand still until `adopt`. Default false: they go on
   * @throws unavailable, snapshot_incompatible when the agent speaks another protocol
   */
  hello({ adoptFollows = false }: { adoptFollows?: boolean } = {}): Promise<guest.HelloAck> {
    return this.#greet({ adoptFollows });
  }

  /**
   * Gives the machine its identity; opens the session in the same write unless `hello` has opened it already. The round is chosen here.
   * A machine that cannot be adopted must not be served, so every failure ends the session.
   * @throws unavailable, snapshot_incompatible
   */
  async adopt(identity: MessageInitShape<typeof guest.AdoptSchema>): Promise<guest.Adopted> {
    if (this.#adopting) throw new MitosError("conflict", { cause: "the machine is being adopted already" });
    this.#round += 1n;
    const adopting = { round: this.#round, ...pending<guest.Adopted>() };
    this.#adopting = adopting;
    const message = create(guest.AdoptSchema, identity);
    message.round = adopting.round;
    const payload = toBinary(guest.AdoptSchema, message);
    try {
      if (payload.byteLength > payloadBytesMax) {
        throw new MitosError("invalid_input", {
          cause: `environment and secrets take ${payload.byteLength} bytes; the limit is ${payloadBytesMax}`,
        });
      }
      const frame = control(frameType.adopt, payload);
      if (this.#state === "fresh") await this.#greet({ adoptFollows: true, adopt: frame });
      else if (this.#state === "open") this.#writer.session(frame);
      else throw this.#closeError ?? new MitosError("conflict", { cause: "the session is being opened already" });
      const adopted = await this.#within(adopting.promise, this.#handshakeTimeoutMs, "ADOPTED");
      if (adopted.error !== "") throw errorOfGuest(`it could not be adopted: ${adopted.error}`);
      return adopted;
    } catch (error) {
      if (!(error instanceof MitosError && error.code === "invalid_input")) this.#finish(asError(error));
      throw error;
    } finally {
      this.#adopting = undefined;
    }
  }

  async #greet({ adoptFollows, adopt }: { adoptFollows: boolean; adopt?: Frame }): Promise<guest.HelloAck> {
    if (this.#state !== "fresh") throw this.#closeError ?? new MitosError("conflict", { cause: "the session has been opened already" });
    this.#state = "greeting";
    this.#hello = pending();
    const hello = create(guest.HelloSchema, { protocolVersion, session: this.#session, adoptFollows });
    this.#writer.session(control(frameType.hello, toBinary(guest.HelloSchema, hello)), ...(adopt ? [adopt] : []));
    try {
      return await this.#within(this.#hello.promise, this.#handshakeTimeoutMs, "HELLO_ACK");
    } catch (error) {
      this.#finish(asError(error));
      throw error;
    }
  }

  // ------------------------------------------------------------------------------------------------ quiet moments

  /**
   * Agrees on a moment in which nothing is in flight. What is sent meanwhile waits, with its back-pressure.
   * @throws unavailable when the guest does not become quiet in time; both ends go on then as if it had not been asked
   */
  async quiesce({ timeoutMs = 10_000 }: { timeoutMs?: number } = {}): Promise<Quiet> {
    this.#requireOpen();
    if (this.#quiescing) throw new MitosError("conflict", { cause: "the link is quiet already" });
    this.#round += 1n;
    const round = this.#round;
    const quiescing = { round, ...pending<void>() };
    this.#quiescing = quiescing;
    this.#writer.hold(control(frameType.quiesce, toBinary(guest.QuiesceSchema, create(guest.QuiesceSchema, { round }))));
    let resumed: Promise<void> | undefined;
    const resume = (): Promise<void> => {
      resumed ??= this.#resume(round);
      return resumed;
    };
    try {
      await this.#within(quiescing.promise, timeoutMs, "QUIESCED");
    } catch (error) {
      await resume();
      throw error;
    }
    return { round, resume };
  }

  #resume(round: bigint): Promise<void> {
    this.#quiescing = undefined;
    this.#quiet = false;
    if (this.#state === "closed" || this.#state === "lost") return Promise.resolve();
    // The clock of a virtual machine stood still while it was saved.
    const resume = create(guest.ResumeSchema, { round, wallClockUnixNanos: BigInt(Date.now()) * 1_000_000n });
    return this.#writer.release(control(frameType.resume, toBinary(guest.ResumeSchema, resume)));
  }

  // ------------------------------------------------------------------------------------------------ calls to the agent

  /** @throws what the guest answered (link/status.ts), canceled, unavailable */
  async unary<I extends DescMessage, O extends DescMessage>(
    method: Method<"unary", I, O>,
    request: MessageInitShape<NoInfer<I>>,
    { signal, onEnd, timeoutMs }: UnaryOptions = {},
  ): Promise<MessageShape<O>> {
    const channel = this.#open(method.name, toBinary(method.input, create(method.input, request)), { end: true, signal, onEnd });
    try {
      const reply = await this.#within(channel.take(), timeoutMs, `the answer to ${method.name}`);
      if (!reply) throw this.#broken(`${method.name} without a reply`);
      const message = this.#decode(method.output, reply);
      if (await this.#within(channel.take(), timeoutMs, `the end of ${method.name}`)) throw this.#broken(`${method.name} with two replies`);
      return message;
    } finally {
      channel.discard();
    }
  }

  serverStream<I extends DescMessage, O extends DescMessage>(
    method: Method<"server_streaming", I, O>,
    request: MessageInitShape<NoInfer<I>>,
    { signal, onEnd, isWide }: CallOptions = {},
  ): AsyncIterableIterator<MessageShape<O>> {
    const first = toBinary(method.input, create(method.input, request));
    const channel = this.#open(method.name, first, { end: true, signal, onEnd, isWide: isWide ?? false });
    return messagesOf(channel, (bytes) => this.#decode(method.output, bytes));
  }

  duplex<I extends DescMessage, O extends DescMessage>(
    method: Method<StreamingKind, I, O>,
    first: MessageInitShape<NoInfer<I>>,
    { signal, onEnd, endAtOnce = false, isLast }: DuplexOptions<MessageShape<O>> = {},
  ): Duplex<MessageInitShape<NoInfer<I>>, MessageShape<O>> {
    const channel = this.#open(method.name, toBinary(method.input, create(method.input, first)), { end: endAtOnce, signal, onEnd });
    const decode = (bytes: Uint8Array): MessageShape<O> => {
      const message = this.#decode(method.output, bytes);
      if (isLast?.(message)) channel.lastTaken();
      return message;
    };
    return {
      send: (message) => channel.send(toBinary(method.input, create(method.input, message))),
      sendBytes: (field, bytes) => channel.send(bytesFieldHead(field.number, bytes.byteLength), bytes),
      end: () => channel.end(),
      messages: messagesOf(channel, decode),
      abort: () => channel.discard(),
    };
  }

  /** Connects to a port inside the sandbox. @throws what the guest answered, usually `unavailable` when nothing listens */
  async tunnel(port: number, { signal, onEnd }: CallOptions = {}): Promise<Tunnel> {
    const { tunnel } = guest.Agent.method;
    const first = toBinary(tunnel.input, create(tunnel.input, { port }));
    const channel = this.#open(tunnel.name, first, { end: false, signal, onEnd, endsWithPeer: false });
    try {
      const opened = await channel.take();
      if (!opened) throw this.#broken("Tunnel without an answer");
      this.#decode(tunnel.output, opened);
    } catch (error) {
      channel.discard();
      throw error;
    }
    return byteStream(channel);
  }

  /** Round-trip time of the link itself. */
  async ping(timeoutMs = 5_000): Promise<number> {
    this.#requireOpen();
    if (this.#pings.length >= pingsMax) throw new MitosError("unavailable", { cause: `${pingsMax} pings are unanswered` });
    const payload = randomBytes(8);
    const answered = pending<void>();
    this.#pings.push({ payload, answered });
    const started = performance.now();
    this.#writer.control(control(frameType.ping, payload));
    await this.#within(answered.promise, timeoutMs, "PONG");
    return performance.now() - started;
  }

  // ------------------------------------------------------------------------------------------------ calls from the guest

  /** Serves a unary method of service Host. A MitosError that the handler throws reaches the guest with its code; others do not. */
  onGuestCall<I extends DescMessage, O extends DescMessage>(method: Method<"unary", I, O>, handler: GuestCallHandler<I, O>): void {
    this.#handlers.set(method.name, (channel, first) => {
      const left = new AbortController();
      channel.onGone(() => left.abort());
      const answer = async (): Promise<void> => {
        const bytes = await this.#firstMessage(channel, first);
        channel.refuseMore();
        if (channel.isGone) return;
        let status = encodeStatus("");
        try {
          const reply = await handler(this.#decode(method.input, bytes), left.signal);
          await channel.send(toBinary(method.output, create(method.output, reply)));
        } catch (error) {
          status = statusOfError(error);
        }
        channel.end(status);
      };
      // A caller that is gone, or a link that is lost, needs no answer.
      answer().catch(() => channel.discard());
    });
  }

  /**
   * Serves a method of service Host that carries bytes both ways. What the handler throws before it has accepted reaches the guest as the
   * status of a RESET (as with `onGuestCall`), later as a RESET; so a refused stream keeps nothing here.
   */
  onGuestStream<I extends DescMessage, O extends DescMessage>(
    method: Method<"bidi_streaming", I, O>,
    handler: GuestStreamHandler<I, O>,
  ): void {
    this.#handlers.set(method.name, (channel, first) => {
      const left = new AbortController();
      channel.onGone(() => {
        if (!channel.isComplete) left.abort();
      });
      const serve = async (): Promise<void> => {
        const request = this.#decode(method.input, await this.#firstMessage(channel, first));
        const accept = (reply: MessageInitShape<O>) => channel.send(toBinary(method.output, create(method.output, reply)));
        await handler(request, { ...byteStream(channel), accept, signal: left.signal });
      };
      serve().catch((error: unknown) => {
        channel.refuse(statusOfError(error));
        channel.discard(); // what came before a good end and nobody took
      });
    });
  }

  /** @param inOpen - what OPEN brought. Undefined = it comes as DATA, which is not waited for without end */
  async #firstMessage(channel: Channel, inOpen: Uint8Array | undefined): Promise<Uint8Array> {
    if (inOpen) return inOpen;
    const refuse = (): void => {
      const message = `the first message of ${channel.method} did not come within ${this.#firstMessageMs / 1000} s`;
      channel.refuse(encodeStatus("deadline_exceeded", message));
    };
    const timer = setTimeout(refuse, this.#firstMessageMs).unref();
    try {
      return (await channel.take()) ?? noPayload;
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * Ends the session. What is under way fails with `reason` (default `unavailable`); the machine is not told, so its processes run on.
   */
  close(reason?: MitosError): void {
    this.#finish(reason);
  }

  // ------------------------------------------------------------------------------------------------ channels

  #open(
    method: string,
    first: Uint8Array,
    { end, signal, onEnd, endsWithPeer = true, isWide = false }: CallOptions & { end: boolean; endsWithPeer?: boolean },
  ): Channel {
    this.#requireOpen();
    if (signal?.aborted) throw callerLeft();
    if (this.#hostChannels >= channelsMax) throw new MitosError("too_many_streams", { cause: `${channelsMax} calls are under way` });
    if (this.#lastHostChannel >= channelNumberMax) {
      const error = new MitosError("unavailable", { cause: "the session has used all its channel numbers" });
      this.#finish(error);
      throw error;
    }
    this.#lastHostChannel += 2;
    const inOpen = first.byteLength <= openMessageBytesMax;
    const channel = this.#addChannel({ number: this.#lastHostChannel, method, endsWithPeer, sendEnded: end && inOpen, isWide });
    const call = CallTrace.begin(method);
    const traceparent = call?.traceparent ?? "";
    const open = create(guest.OpenSchema, { method, message: inOpen ? first : noPayload, end: end && inOpen, traceparent });
    if (call) {
      this.#traces.set(channel, call);
      channel.onGone(() => call.end());
    }
    this.#writer.control({ type: frameType.open, flags: 0, channel: channel.number, payload: toBinary(guest.OpenSchema, open) });
    if (onEnd) channel.onGone(onEnd);
    if (!inOpen) {
      channel.send(first).catch(() => undefined); // the end of the channel reaches the caller where it takes its answer
      if (end) channel.end();
    }
    if (signal) {
      const abort = (): void => channel.discard();
      signal.addEventListener("abort", abort, { once: true });
      channel.onGone(() => signal.removeEventListener("abort", abort));
    }
    return channel;
  }

  #addChannel(options: ChannelOptions): Channel {
    const channel = new Channel(this.#channelHost, options);
    this.#channels.set(channel.number, channel);
    if (isGuestChannel(channel.number)) this.#guestChannels += 1;
    else this.#hostChannels += 1;
    if (this.#hostChannels > 0) this.#silenceWatch ??= setInterval(() => this.#checkSilence(), this.#silenceMs).unref();
    return channel;
  }

  #endSilenceWatch(): void {
    clearInterval(this.#silenceWatch);
    this.#silenceWatch = undefined;
  }

  #checkSilence(): void {
    const silent = !this.#heard;
    this.#heard = false;
    // Asked to be quiet, or asked already.
    if (!silent || this.#quiet || this.#quiescing || this.#pings.length > 0) return;
    this.ping(this.#silenceMs).catch(() => {
      if (!this.#heard && !this.#quiet && !this.#quiescing)
        this.#lose(new Error(`the agent has not answered for ${(2 * this.#silenceMs) / 1000} s`));
    });
  }

  #forget(channel: Channel): void {
    this.#writer.forget(channel);
    this.#wide.delete(channel);
    if (!this.#channels.delete(channel.number)) return;
    if (isGuestChannel(channel.number)) this.#guestChannels -= 1;
    else this.#hostChannels -= 1;
    if (this.#hostChannels === 0) this.#endSilenceWatch();
  }

  #sendReset(channel: number, status: Uint8Array): void {
    this.#writer.control({ type: frameType.reset, flags: 0, channel, payload: status });
  }

  #hold(bytes: number): boolean {
    if (bytes > 0 && this.#heldBytes + bytes > this.#heldBytesMax) return false;
    this.#heldBytes += bytes;
    return true;
  }

  // ------------------------------------------------------------------------------------------------ receiving

  /** @throws LinkViolation */
  #receive(type: number, flags: number, number: number, payload: Uint8Array): void {
    if (flags !== 0 && type !== frameType.data) throw new LinkViolation("MORE on a frame other than DATA");
    if (type < frameType.open !== (number === 0)) throw new LinkViolation(`frame type 0x${type.toString(16)} on channel ${number}`);
    if (this.#state === "greeting") {
      // Leftovers of an earlier session, until the acknowledgement of ours.
      if (type === frameType.helloAck) this.#helloAck(payload);
      return;
    }
    if (this.#quiet) throw new LinkViolation("a frame between QUIESCED and RESUME");
    switch (type) {
      case frameType.quiesced:
        this.#quiesced(decodeFrame(guest.QuiescedSchema, payload));
        break;
      case frameType.adopted:
        this.#adopted(decodeFrame(guest.AdoptedSchema, payload));
        break;
      case frameType.pong:
        this.#pong(payload);
        break;
      case frameType.open:
        this.#guestOpens(number, decodeFrame(guest.OpenSchema, payload));
        break;
      case frameType.data:
        this.#channel(number)?.receiveData(payload, flags === flagMore);
        break;
      case frameType.end: {
        const status = decodeStatus(payload);
        const channel = this.#channel(number);
        if (channel) this.#traces.get(channel)?.ended(status);
        channel?.receiveEnd(isGuestChannel(number) ? undefined : errorOfStatus(status, channel.method));
        break;
      }
      case frameType.reset: {
        const status = decodeStatus(payload);
        const channel = this.#channel(number);
        if (channel) this.#traces.get(channel)?.ended(status);
        channel?.receiveReset(errorOfStatus(status, channel.method) ?? new MitosError("canceled", { cause: "the sandbox ended the call" }));
        break;
      }
      case frameType.credit:
        if (payload.byteLength !== 4) throw new LinkViolation(`a CREDIT of ${payload.byteLength} bytes`);
        this.#channel(number)?.receiveCredit(uint32At(payload, 0));
        break;
      default:
        throw new LinkViolation(`frame type 0x${type.toString(16)} from the guest`);
    }
  }

  /** Undefined for a channel that is closed already. @throws LinkViolation for one that was never opened */
  #channel(number: number): Channel | undefined {
    const channel = this.#channels.get(number);
    if (channel) return channel;
    const last = isGuestChannel(number) ? this.#lastGuestChannel : this.#lastHostChannel;
    if (number > last) throw new LinkViolation(`a frame for channel ${number}, which was never opened`);
    return undefined;
  }

  #helloAck(payload: Uint8Array): void {
    const ack = decodeFrame(guest.HelloAckSchema, payload);
    if (ack.session !== this.#session) return;
    if (ack.protocolVersion !== protocolVersion) {
      const cause = `its agent speaks link protocol ${ack.protocolVersion}, this server ${protocolVersion}`;
      this.#hello?.reject(new MitosError("snapshot_incompatible", { cause }));
      return;
    }
    this.#state = "open";
    this.#hello?.resolve(ack);
  }

  #adopted(adopted: guest.Adopted): void {
    if (adopted.round !== this.#adopting?.round) throw new LinkViolation("ADOPTED without ADOPT");
    this.#adopting.resolve(adopted);
    this.#adopting = undefined;
  }

  #quiesced({ round, error }: guest.Quiesced): void {
    if (round !== this.#quiescing?.round) {
      if (round < 1n || round > this.#round) throw new LinkViolation("QUIESCED without QUIESCE");
      return; // the late answer to a round that was given up
    }
    this.#quiet = true;
    if (error === "") this.#quiescing.resolve();
    else this.#quiescing.reject(errorOfGuest(`it could not be made quiet: ${error}`));
  }

  #pong(payload: Uint8Array): void {
    const ping = this.#pings.shift();
    if (!ping || payload.byteLength > pingBytesMax || Buffer.compare(ping.payload, payload) !== 0)
      throw new LinkViolation("PONG without PING");
    ping.answered.resolve();
  }

  #guestOpens(number: number, open: guest.Open): void {
    if (!isGuestChannel(number)) throw new LinkViolation(`the guest opens channel ${number}, which is the host's to open`);
    if (number <= this.#lastGuestChannel) throw new LinkViolation(`the guest opens channel ${number} again`);
    if (open.message.byteLength > openMessageBytesMax) throw new LinkViolation("OPEN with too large a message");
    if (this.#writer.waiting > channelsMax * 8) throw new LinkViolation("calls without end");
    this.#lastGuestChannel = number;
    const handler = this.#handlers.get(open.method);
    // While the writer is held every refusal is a frame that waits: the guest gets no more of them than it may have channels.
    if (this.#guestChannels >= channelsMax) this.#refuse(number, "resource_exhausted");
    else if (!handler) this.#refuse(number, "unimplemented");
    else {
      const channel = this.#addChannel({
        number,
        method: open.method,
        endsWithPeer: false,
        receiveEnded: open.end,
        messageBytesMax: guestMessageBytesMax,
      });
      handler(channel, open.message.byteLength > 0 || open.end ? open.message : undefined);
    }
  }

  #refuse(number: number, code: "resource_exhausted" | "unimplemented"): void {
    this.#sendReset(number, encodeStatus(code));
  }

  // ------------------------------------------------------------------------------------------------ helpers

  #requireOpen(): void {
    if (this.#state !== "open") throw this.#closeError ?? new MitosError("unavailable", { cause: "the sandbox is not connected yet" });
  }

  /** @throws unavailable; the session is over, since a message of the guest could not be read */
  #decode<Desc extends DescMessage>(schema: Desc, bytes: Uint8Array): MessageShape<Desc> {
    const fieldsMax = listFieldsMax.get(schema) ?? decodedFieldsMax;
    if (bytes.byteLength > decodeFreelyBytesMax && hasMoreFieldsThan(fieldsMax, schema, bytes)) {
      throw new MitosError("sandbox_exhausted", { cause: `an answer with more than ${fieldsMax} fields` });
    }
    try {
      return fromBinary(schema, bytes, { readUnknownFields: false, recursionLimit: messageDepthMax });
    } catch {
      throw this.#broken(`a ${schema.typeName} that cannot be decoded`);
    }
  }

  #broken(rule: string): MitosError {
    this.#finish(new LinkViolation(rule));
    return this.#closeError ?? linkLost(undefined);
  }

  async #within<T>(promise: Promise<T>, timeoutMs: number | undefined, what: string): Promise<T> {
    if (timeoutMs === undefined) return promise;
    const late = pending<never>();
    const timer = setTimeout(
      () => late.reject(new MitosError("unavailable", { cause: `${what} did not come within ${timeoutMs} ms` })),
      timeoutMs,
    );
    try {
      return await Promise.race([promise, late.promise]);
    } finally {
      clearTimeout(timer);
      promise.catch(() => undefined);
    }
  }

  /** The transport has ended: nothing passes any more, and what is under way soon fails. */
  #lose(reason: Error): void {
    if (this.#state === "lost") return;
    if (this.#state !== "open" || !this.#lastWords) {
      this.#finish(reason);
      return;
    }
    this.#state = "lost";
    this.#endSilenceWatch();
    this.#closeError = linkLost(reason);
    this.#writer.stop();
    this.#settleClosed(reason);
    const finish = (): void => this.#finish(reason);
    this.#lastWords().then(finish, finish);
  }

  /** The one way into `closed`. */
  #finish(reason: Error | undefined): void {
    if (this.#state === "closed") return;
    this.#state = "closed";
    this.#endSilenceWatch();
    const error = reason instanceof MitosError ? reason : linkLost(reason);
    this.#closeError = error;
    this.#writer.stop();
    this.#hello?.reject(error);
    this.#adopting?.reject(error);
    this.#quiescing?.reject(error);
    for (const ping of this.#pings) ping.answered.reject(error);
    this.#pings.clear();
    for (const channel of [...this.#channels.values()]) channel.lost(error);
    this.#settleClosed(reason);
  }
}

/** What stands before the content of a field of bytes. */
function bytesFieldHead(number: number, length: number): Uint8Array {
  return new BinaryWriter().tag(number, WireType.LengthDelimited).uint32(length).finish();
}

/** The messages of a channel as bytes, in pieces that each fit into a frame. */
function byteStream(channel: Channel): Tunnel {
  const bytes = messagesOf(channel, (message) => message);
  return {
    send: async (data) => {
      for (let at = 0; at < data.byteLength; at += tunnelChunkBytes) await channel.send(data.subarray(at, at + tunnelChunkBytes));
    },
    end: () => {
      channel.end();
      return Promise.resolve();
    },
    abort: () => channel.discard(),
    [Symbol.asyncIterator]: () => bytes,
  };
}

/**
 * The messages of a channel, once. Asking for the next one after the end is allowed; leaving takes effect at once, also while a `next` is
 * waiting (which a generator could not do).
 */
function messagesOf<T>(channel: Channel, decode: (bytes: Uint8Array) => T): AsyncIterableIterator<T> {
  const done: IteratorReturnResult<undefined> = { done: true, value: undefined };
  return {
    next: async () => {
      try {
        const bytes = await channel.take();
        return bytes ? { done: false, value: decode(bytes) } : done;
      } catch (error) {
        channel.discard();
        throw error;
      }
    },
    return: () => {
      channel.discard();
      return Promise.resolve(done);
    },
    throw: (error) => {
      channel.discard();
      return Promise.reject(error);
    },
    [Symbol.asyncIterator]() {
      return this;
    },
  };
}

function isGuestChannel(number: number): boolean {
  return number % 2 === 1;
}

function control(type: number, payload: Uint8Array): Frame {
  return { type, flags: 0, channel: 0, payload };
}

function pending<T>(): Awaited<T> {
  const { promise, resolve, reject } = Promise.withResolvers<T>();
  promise.catch(() => undefined); // whoever waits for it sees the failure; if nobody does it is no unhandled one
  return { promise, resolve, reject };
}

function asError(value: unknown): Error {
  return value instanceof Error ? value : new Error(String(value));
}

function errorOfGuest(message: string): MitosError {
  return errorOfStatus(create(guest.StatusSchema, { code: "unavailable", message }), "") as MitosError;
}

/** @throws LinkViolation */
function decodeFrame<Desc extends DescMessage>(schema: Desc, payload: Uint8Array): MessageShape<Desc> {
  try {
    return fromBinary(schema, payload, { readUnknownFields: false });
  } catch {
    throw new LinkViolation(`a ${schema.typeName} that cannot be decoded`);
  }
}
