/**
 * Clients that leave in the middle, and clients that read nothing, at the doors behind which no program runs: what makes the answer, or
 * takes the body, is the test itself.
 */

import { connect as connectHttp2 } from "node:http2";
import { connect } from "node:net";
import { create } from "@bufbuild/protobuf";
import type { SandboxId } from "@mitos/protocol";
import { sandbox as pb } from "@mitos/protocol/proto";
import { afterEach, describe, expect, it } from "vitest";
import { PreviewSigner } from "../preview/token.ts";
import { envelope, get, useServer } from "../testing/harness.ts";

const previewSecret = Buffer.from("0123456789abcdef0123456789abcdef");
const at = useServer({ previewSecret });
const MiB = 1024 * 1024;
/** Far above what the sockets of both sides and the server's own buffers hold. A source stops there, so that no failure fills the memory. */
const takenBytesMax = 64 * MiB;

async function until(what: string, holds: () => boolean): Promise<void> {
  await expect.poll(holds, { timeout: 20_000, interval: 10, message: what }).toBe(true);
}

/** Turns of the event loop in which the server, which is of this same process, would have gone on if it could. */
const stillTurns = 2_000;

async function standsStill(count: () => number): Promise<number> {
  let last = count();
  for (let still = 0; still < stillTurns; still += 1) {
    await new Promise((resolve) => setImmediate(resolve));
    if (count() === last) continue;
    last = count();
    still = 0;
  }
  return last;
}

/** What the engine would read from a sandbox: one item, then further ones without end once they are let go. */
class Source<T> implements AsyncIterator<T>, AsyncIterable<T> {
  taken = 0;
  /** Left by its reader, or told by its signal that there is none any more. */
  ended = false;
  readonly #item: T;
  readonly #takenMax: number;
  readonly #flows = Promise.withResolvers<void>();

  constructor(item: T, itemBytes: number, signal: AbortSignal | undefined) {
    this.#item = item;
    this.#takenMax = takenBytesMax / itemBytes;
    signal?.addEventListener("abort", () => this.end(), { once: true });
  }

  flow(): void {
    this.#flows.resolve();
  }

  end(): void {
    this.ended = true;
  }

  get isExhausted(): boolean {
    return this.taken >= this.#takenMax;
  }

  async next(): Promise<IteratorResult<T>> {
    if (this.taken > 0) await this.#flows.promise;
    if (this.isExhausted) await new Promise(() => {});
    this.taken += 1;
    return { done: false, value: this.#item };
  }

  async return(): Promise<IteratorResult<T>> {
    this.end();
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator]() {
    return this;
  }
}

interface Request {
  readonly method: string;
  readonly path: string;
  readonly headers?: Record<string, string>;
  readonly body?: Buffer;
}

interface Client {
  /** Has something of the answer come? */
  readonly answered: () => boolean;
  readonly read: () => void;
  readonly leave: () => void;
}

const versions = ["HTTP/1.1", "HTTP/2"] as const;
type Version = (typeof versions)[number];

const clients = new Set<Client>();
afterEach(() => {
  for (const { leave } of clients) leave();
  clients.clear();
});

/** @param length - of the whole body, of which `request.body` is the beginning; default: that is all */
function ask(version: Version, request: Request, length?: number): Client {
  const client = version === "HTTP/1.1" ? askHttp1(request, length) : askHttp2(request, length);
  clients.add(client);
  return client;
}

function askHttp1({ method, path, headers = {}, body = Buffer.alloc(0) }: Request, length = body.length): Client {
  const { host, port } = new URL(at.url);
  const socket = connect(Number(port), "127.0.0.1").on("error", () => {});
  // Reads nothing, but notices that something is there.
  socket.on("readable", () => {});
  const lines = Object.entries({ Host: host, "Content-Length": length, ...headers }).map(([name, value]) => `${name}: ${value}`);
  socket.write(`${[`${method} ${path} HTTP/1.1`, ...lines].join("\r\n")}\r\n\r\n`);
  socket.write(body);
  return {
    answered: () => socket.readableLength > 0,
    read: () => void socket.removeAllListeners("readable").on("data", () => {}),
    leave: () => socket.resetAndDestroy(),
  };
}

function askHttp2({ method, path, headers = {}, body = Buffer.alloc(0) }: Request, length = body.length): Client {
  const session = connectHttp2(at.url).on("error", () => {});
  const stream = session.request({ ":method": method, ":path": path, ...headers }, { endStream: false }).on("error", () => {});
  let answered = false;
  stream.on("response", () => {
    answered = true;
  });
  if (body.length === length) stream.end(body);
  else stream.write(body);
  return { answered: () => answered, read: () => void stream.resume(), leave: () => session.destroy() };
}

function rpc(name: string, ...messages: object[]): Request {
  return {
    method: "POST",
    path: `/sandbox.v1.Sandbox/${name}`,
    headers: { "Content-Type": "application/connect+json", "X-Sandbox-Id": "sb-1" },
    body: Buffer.concat(messages.map((message) => envelope(message))),
  };
}

/** Where a client can read without end: what it asks, and the source that the sandbox gives it. */
interface Door {
  readonly request: () => Request;
  /** Puts the sandbox's side in place; the source is there once it has been asked for. */
  readonly open: () => { source?: Source<unknown> };
}

const piece = new Uint8Array(64 * 1024).fill(120);

function rpcDoor(request: Request, method: "runCode" | "archive" | "watch" | "vitals", item: object, itemBytes: number): Door {
  return {
    request: () => request,
    open: () => {
      const opened: { source?: Source<unknown> } = {};
      const give = (...args: unknown[]) => {
        const signal = args.at(-1);
        opened.source = new Source(item, itemBytes, signal instanceof AbortSignal ? signal : undefined);
        return opened.source;
      };
      Object.assign(at.runtime, { [method]: give });
      return opened;
    },
  };
}

/** A program behind a port: it answers with a body that only the end of the connection ends. */
function portDoor(path: () => string): Door {
  return {
    request: () => ({ method: "GET", path: path() }),
    open: () => {
      const opened: { source?: Source<unknown> } = {};
      const tunnel = async (_port: number, signal?: AbortSignal) => {
        const source = new Source(piece, piece.length, signal);
        opened.source = source;
        const asked = Promise.withResolvers<void>();
        return {
          send: async () => asked.resolve(),
          end: async () => {},
          abort: () => source.end(),
          async *[Symbol.asyncIterator]() {
            await asked.promise;
            yield Buffer.from("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
            yield* source;
          },
        };
      };
      Object.assign(at.runtime, { tunnel });
      return opened;
    },
  };
}

function previewPath(): string {
  const expiresUnix = Math.floor(Date.now() / 1000) + 3600;
  const token = new PreviewSigner(previewSecret).sign({ sandbox: "sb-1" as SandboxId, port: 8080, expiresUnix });
  return `/v1/preview/p8080-sb-1/?token=${token}`;
}

const sample = create(pb.GuestVitalsSchema, { memUsedBytes: 2n ** 40n, memTotalBytes: 2n ** 41n, processCount: 7 });
const event = create(pb.FsEventSchema, { kind: pb.FsEvent_Kind.CREATE, path: `/${"x".repeat(4095)}` });
const archive = { path: "/workspace", direction: "DOWNLOAD" };

const doors: Record<string, Door> = {
  RunCodeStream: rpcDoor(
    rpc("RunCodeStream", { code: "x" }),
    "runCode",
    create(pb.RunCodeResponseSchema, { msg: { case: "stdout", value: piece } }),
    piece.length,
  ),
  Archive: rpcDoor(rpc("Archive", archive), "archive", create(pb.ChunkSchema, { data: piece }), piece.length),
  Watch: rpcDoor(rpc("Watch", { path: "/workspace" }), "watch", event, event.path.length),
  // As many bytes as it has in JSON.
  Vitals: rpcDoor(rpc("Vitals", {}), "vitals", sample, 80),
  preview: portDoor(previewPath),
  expose: portDoor(() => "/v1/sandboxes/sb-1/expose/8080/"),
};

const everyDoor = Object.keys(doors).flatMap((name) => versions.map((version) => [name, version] as const));

/** An answer that has begun: its first item is on its way. */
async function begin(name: string, version: Version): Promise<{ client: Client; source: Source<unknown> }> {
  const door = doors[name]!;
  const opened = door.open();
  const client = ask(version, door.request());
  await until("the answer has begun", () => client.answered() && opened.source?.taken === 1);
  expect(opened.source?.ended).toBe(false);
  return { client, source: opened.source! };
}

describe("a client that leaves in the middle of an answer", () => {
  it.each(everyDoor)("of %s, on %s, ends what makes it, though that is silent", async (name, version) => {
    const { client, source } = await begin(name, version);
    client.leave();
    await until("it is ended", () => source.ended);
    expect((await get(at, "/healthz")).status).toBe(200);
  });
});

describe("a client that reads nothing of an endless answer", () => {
  // Samples are so small that the buffers of a connection hold a hundred thousand of them; the window of a stream is smaller.
  const bounded = everyDoor.filter(([name, version]) => name !== "Vitals" || version === "HTTP/2");

  it.each(bounded)("of %s, on %s, holds up what makes it until it reads, and ends it when it leaves", async (name, version) => {
    const { client, source } = await begin(name, version);
    source.flow();
    const held = await standsStill(() => source.taken);
    expect([source.isExhausted, source.ended]).toEqual([false, false]);
    expect((await get(at, "/healthz")).status).toBe(200);
    client.read();
    await until("it goes on", () => source.taken > held);
    expect(source.ended).toBe(false);
    client.leave();
    await until("it is ended", () => source.ended);
  });
});

describe("a client that leaves in the middle of a body", () => {
  const half = Buffer.from("half").toString("base64");
  const bodies: Record<string, Request> = {
    "PUT of a file": { method: "PUT", path: "/v1/sandboxes/sb-1/files?path=/a", body: Buffer.from("half") },
    WriteFile: rpc("WriteFile", { open: { path: "/a" } }, { data: half }),
    Upload: rpc("Upload", { open: { dest: "/a" } }, { chunk: half }),
  };
  const all = Object.keys(bodies).flatMap((name) => versions.map((version) => [name, version] as const));

  it.each(all)("of %s, on %s, is not taken for one that has sent it all", async (name, version) => {
    let received = "";
    let outcome = "under way";
    const take = async (data: AsyncIterable<Uint8Array>, signal: AbortSignal) => {
      try {
        for await (const chunk of data) received += Buffer.from(chunk).toString();
        outcome = signal.aborted ? "told by the signal" : "taken as whole";
      } catch {
        outcome = "failed";
      }
      return received.length;
    };
    Object.assign(at.runtime, {
      writeFile: (_path: string, _mode: number, data: AsyncIterable<Uint8Array>, signal: AbortSignal) => take(data, signal),
      upload: (_dest: string, data: AsyncIterable<Uint8Array>, signal: AbortSignal) => take(data, signal),
    });
    const request = bodies[name]!;
    const client = ask(version, request, request.body!.length + 100);
    await until("the half has arrived", () => received === "half");
    expect(outcome).toBe("under way");
    client.leave();
    await until("it is over", () => outcome !== "under way");
    expect(outcome).toBe("failed");
    expect(received).toBe("half");
    expect((await get(at, "/healthz")).status).toBe(200);
  });
});
