import { once } from "node:events";
import type { Runtime } from "@mitos/engine";
import { expect, it } from "vitest";
import { openTunnelSocket } from "./tunnel-socket.ts";

/** A tunnel whose other end is the test. */
class OpenTunnel {
  readonly sent: Uint8Array[] = [];
  ended = false;
  aborted = 0;
  asked = 0;
  /** What `send` waits for. */
  taken: Promise<void> = Promise.resolve();
  readonly #pieces: (Uint8Array | null)[] = [];
  #wake = Promise.withResolvers<void>();

  readonly runtime = { tunnel: async () => this } as unknown as Runtime;

  give(piece: Uint8Array | null): void {
    this.#pieces.push(piece);
    this.#wake.resolve();
  }

  async send(data: Uint8Array): Promise<void> {
    this.sent.push(data);
    await this.taken;
  }

  async end(): Promise<void> {
    this.ended = true;
  }

  abort(): void {
    this.aborted += 1;
  }

  [Symbol.asyncIterator](): AsyncIterator<Uint8Array> {
    return {
      next: async () => {
        this.asked += 1;
        while (this.#pieces.length === 0) {
          await this.#wake.promise;
          this.#wake = Promise.withResolvers();
        }
        const value = this.#pieces.shift();
        return value ? { done: false, value } : { done: true, value: undefined };
      },
    };
  }
}

const staying = new AbortController().signal;

it("a write is done when the tunnel has taken it, and nothing is copied", async () => {
  const tunnel = new OpenTunnel();
  const { promise: taken, resolve: take } = Promise.withResolvers<void>();
  tunnel.taken = taken;
  const socket = await openTunnelSocket(tunnel.runtime, 1, staying);
  const data = Buffer.alloc(100_000);
  let written = false;
  const done = new Promise<void>((resolve) =>
    socket.write(data, () => {
      written = true;
      resolve();
    }),
  );
  expect(socket.writableNeedDrain).toBe(true);
  await new Promise((resolve) => setImmediate(resolve));
  expect([written, tunnel.sent[0]?.buffer === data.buffer]).toEqual([false, true]);
  take();
  await done;
  socket.destroy();
});

it("nothing is asked of the tunnel while nobody reads", async () => {
  const tunnel = new OpenTunnel();
  const socket = await openTunnelSocket(tunnel.runtime, 1, staying);
  for (let i = 0; i < 10; i += 1) tunnel.give(new Uint8Array(64 * 1024));
  socket.once("readable", () => {});
  await once(socket, "readable");
  await new Promise((resolve) => setImmediate(resolve));
  expect(tunnel.asked).toBeLessThanOrEqual(2);
  socket.destroy();
});

it("each side ends by itself: the other goes on", async () => {
  const tunnel = new OpenTunnel();
  const socket = await openTunnelSocket(tunnel.runtime, 1, staying);
  socket.end("all");
  await once(socket, "finish");
  expect([tunnel.ended, tunnel.aborted]).toEqual([true, 0]);
  tunnel.give(new Uint8Array(0));
  tunnel.give(Buffer.from("still"));
  tunnel.give(null);
  const parts: Buffer[] = [];
  for await (const part of socket) parts.push(part as Buffer);
  expect(Buffer.concat(parts).toString()).toBe("still");
});

it("its destruction and its signal abort the tunnel", async () => {
  const one = new OpenTunnel();
  (await openTunnelSocket(one.runtime, 1, staying)).destroy();
  const leaving = new AbortController();
  const two = new OpenTunnel();
  const socket = await openTunnelSocket(two.runtime, 1, leaving.signal);
  const failed = once(socket, "error");
  leaving.abort(new Error("left"));
  expect((await failed)[0]).toMatchObject({ message: "left" });
  const late = new OpenTunnel();
  const dead = await openTunnelSocket(late.runtime, 1, leaving.signal);
  await once(dead, "error");
  expect([one.aborted, two.aborted, late.aborted]).toEqual([1, 1, 1]);
});
