import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { guest } from "@mitos/protocol/proto";
import type { FrameTransport } from "../../driver.ts";
import { encodeFrames, type FrameListener, FrameReader, frameType } from "../../link/frame.ts";

/**
 * The agent of a mock machine: it answers the handshake of docs/link.md, so that the engine's life cycle runs unchanged, and refuses every
 * call. It executes nothing.
 */
export class MockAgent {
  readonly transport: FrameTransport;
  #toHost: FrameListener = () => {};
  #onClose: (error: Error | undefined) => void = () => {};
  #closed = false;

  constructor() {
    const reader = new FrameReader((type, _flags, channel, payload) => this.#receive(type, channel, payload));
    this.transport = {
      send: async (...pieces) => {
        for (const piece of pieces) if (!this.#closed) reader.push(piece);
      },
      onFrame: (listener) => {
        this.#toHost = listener;
      },
      onClose: (listener) => {
        this.#onClose = listener;
      },
      pause: () => {},
      resume: () => {},
    };
  }

  /** The machine has ended. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#onClose(undefined);
  }

  #receive(type: number, channel: number, payload: Uint8Array): void {
    if (type === frameType.hello) {
      const { protocolVersion, session } = fromBinary(guest.HelloSchema, payload);
      const ack = create(guest.HelloAckSchema, { protocolVersion, session, agentVersion: "mock" });
      this.#answer(frameType.helloAck, 0, toBinary(guest.HelloAckSchema, ack));
    } else if (type === frameType.adopt) {
      const { round, generation } = fromBinary(guest.AdoptSchema, payload);
      this.#answer(frameType.adopted, 0, toBinary(guest.AdoptedSchema, create(guest.AdoptedSchema, { round, generation })));
    } else if (type === frameType.quiesce) {
      const { round } = fromBinary(guest.QuiesceSchema, payload);
      this.#answer(frameType.quiesced, 0, toBinary(guest.QuiescedSchema, create(guest.QuiescedSchema, { round })));
    } else if (type === frameType.ping) {
      this.#answer(frameType.pong, 0, payload);
    } else if (type === frameType.open) {
      this.#refuse(channel, fromBinary(guest.OpenSchema, payload).method);
    }
  }

  #refuse(channel: number, method: string): void {
    if (method === guest.Agent.method.warm.name) {
      this.#answer(frameType.data, channel, toBinary(guest.EmptySchema, create(guest.EmptySchema)));
      this.#answer(frameType.end, channel, new Uint8Array(0));
      return;
    }
    if (method === guest.Agent.method.warmKernel.name) {
      const reply = create(guest.WarmKernelReplySchema, { available: false, detail: "the mock engine runs no code" });
      this.#answer(frameType.data, channel, toBinary(guest.WarmKernelReplySchema, reply));
      this.#answer(frameType.end, channel, new Uint8Array(0));
      return;
    }
    const status = create(guest.StatusSchema, { code: "unimplemented", message: "the mock engine runs nothing" });
    this.#answer(frameType.reset, channel, toBinary(guest.StatusSchema, status));
  }

  /** Through the same encoding as over a socket, and never from inside the host's own call. */
  #answer(type: number, channel: number, payload: Uint8Array): void {
    const bytes = encodeFrames([{ type, flags: 0, channel, payload }]);
    queueMicrotask(() => {
      if (!this.#closed) new FrameReader(this.#toHost).push(bytes);
    });
  }
}
