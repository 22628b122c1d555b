/** Clients that misbehave on the port, below any route. */

import { once } from "node:events";
import { type ClientHttp2Session, connect as connectHttp2, constants } from "node:http2";
import { connect, type Socket } from "node:net";
import { limits } from "@mitos/protocol";
import { describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { get, makeKey, post, useServer, webSocketHead } from "../testing/harness.ts";

const MiB = 1024 * 1024;

/** One HTTP/2 frame as it is on the wire. */
function frame(type: number, flags: number, stream: number, payload: Uint8Array = new Uint8Array()): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
}

const preface = Buffer.concat([Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame(4, 0, 0)]);
/** `:method GET`, `:scheme http`, `:path /`, and `:authority localhost`, as HPACK. */
const request = Buffer.concat([Buffer.from([0x82, 0x86, 0x84, 0x41, 9]), Buffer.from("localhost")]);
const [ping, settings, headers, continuation, reset] = [6, 4, 1, 9, 3] as const;

describe("a flood on HTTP/2", () => {
  const at = useServer();
  const dial = () => {
    const socket = connect(Number(new URL(at.url).port), "127.0.0.1");
    socket.on("error", () => {});
    return socket;
  };

  /** Writes until the server closes the connection; fails when it takes everything. */
  async function isCut(socket: Socket, next: (index: number) => Buffer, count: number): Promise<boolean> {
    const closed = new Promise<boolean>((resolve) => socket.once("close", () => resolve(true)));
    socket.write(preface);
    for (let index = 0; index < count && !socket.destroyed && socket.writable; index += 1) {
      if (!socket.write(next(index))) await Promise.race([closed, new Promise((resolve) => socket.once("drain", resolve))]);
    }
    const late = new Promise<boolean>((resolve) => setTimeout(resolve, 5_000, false).unref());
    const cut = await Promise.race([closed, late]);
    socket.destroy();
    return cut;
  }

  const rapidReset = (index: number) =>
    Buffer.concat([frame(headers, 5, 1 + 2 * index, request), frame(reset, 0, 1 + 2 * index, Buffer.from([0, 0, 0, 8]))]);

  it.each<[what: string, next: (index: number) => Buffer, count: number, reads: boolean]>([
    ["requests that are cancelled at once", rapidReset, 20_000, true],
    [
      "CONTINUATION frames without end",
      (index) => frame(index ? continuation : headers, 0, 1, index ? Buffer.alloc(1024) : request),
      5_000,
      true,
    ],
    ["pings whose answers are not read", () => frame(ping, 0, 0, Buffer.alloc(8)), 400_000, false],
    ["settings whose answers are not read", () => frame(settings, 0, 0, Buffer.from([0, 4, 0, 0, 255, 255])), 400_000, false],
    ["frames that break a rule", () => frame(reset, 0, 0, Buffer.alloc(4)), 100, true],
  ])("of %s is cut off, within bounded memory, and others are served", async (_what, next, count, reads) => {
    const before = process.memoryUsage.rss();
    const socket = dial();
    if (reads) socket.resume();
    expect(await isCut(socket, next, count)).toBe(true);
    expect(process.memoryUsage.rss() - before).toBeLessThan(128 * MiB);
    expect((await get(at, "/healthz")).status).toBe(200);
  });

  it("of header fields is refused, and the session ends or goes on", async () => {
    const session: ClientHttp2Session = connectHttp2(at.url);
    session.on("error", () => {});
    const many = Object.fromEntries(Array.from({ length: 1000 }, (_, index) => [`x-${index}`, "y".repeat(100)]));
    const stream = session.request({ ":path": "/healthz", ...many });
    const outcome = await Promise.race([
      once(stream, "response").then(([answer]) => String(answer[":status"])),
      once(stream, "error").then(() => "error"),
      once(stream, "close").then(() => "closed"),
    ]).catch(() => "error");
    expect(outcome).not.toBe("200");
    session.destroy();
    expect((await get(at, "/healthz")).status).toBe(200);
  });

  it("of streams whose window never opens leaves others served", async () => {
    const session = connectHttp2(at.url, { settings: { initialWindowSize: 0 } });
    session.on("error", () => {});
    const streams = Array.from({ length: 200 }, () => session.request({ ":path": "/healthz" }).on("error", () => {}));
    await Promise.all(streams.map((stream) => once(stream, "response")));
    expect((await get(at, "/healthz")).status).toBe(200);
    for (const stream of streams) stream.close(constants.NGHTTP2_CANCEL);
    session.destroy();
  });
});

describe("many bodies that do not end", () => {
  const at = useServer({ auth: true });

  it("are kept within the limit of their owner, and others are served", async () => {
    const key = makeKey(at);
    const before = process.memoryUsage.rss();
    const part = Buffer.alloc(30 * MiB, 0x20);
    const head = `POST /v1/fork HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${key}\r\nContent-Length: ${31 * MiB}\r\n\r\n`;
    let answers = 0;
    const sockets = Array.from({ length: 20 }, () => {
      const socket = connect(Number(new URL(at.url).port), "127.0.0.1").on("error", () => {});
      socket.once("data", () => {
        answers += 1;
      });
      socket.write(head);
      return socket;
    });
    const sent = sockets.map((socket) => new Promise((resolve) => socket.write(part, resolve)));
    const most = Math.floor(limits.heldBodyBytesPerOwnerMax / part.length);
    await expect.poll(() => answers, { timeout: 20_000 }).toBeGreaterThanOrEqual(sockets.length - most);
    await Promise.all(sent);
    expect(process.memoryUsage.rss() - before).toBeLessThan(limits.heldBodyBytesPerOwnerMax + 256 * MiB);
    expect((await post(at, "/v1/pause", { sandbox: "sb-1" }, at.admin)).status).toBe(200);
    for (const socket of sockets) socket.destroy();
  });
});

describe("pipelined requests", () => {
  const at = useServer();

  it("are answered in order, however many come at once, and a client that reads nothing holds up nobody", async () => {
    const count = 500;
    const socket = connect(Number(new URL(at.url).port), "127.0.0.1");
    socket.write("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(count));
    expect((await get(at, "/healthz")).status).toBe(200);
    let text = "";
    socket.on("data", (bytes) => {
      text += bytes;
    });
    await expect.poll(() => text.split("HTTP/1.1 200 OK").length - 1, { timeout: 10_000 }).toBe(count);
    socket.destroy();
  });

  it.each([
    ["a port", "/v1/sandboxes/sb-1/expose/1", ""],
    ["a preview", "/v1/preview/p80-sb-1/", ""],
    ["a preview's own host", "/", "p80-sb-1."],
    ["a terminal", "/v1/pty?sandbox=sb-1", ""],
  ])("end with their connection when one asks for a WebSocket to %s before the last is answered", async (_what, path, subdomain) => {
    const { port } = new URL(at.url);
    const socket = connect(Number(port), "127.0.0.1").on("error", () => {});
    let text = "";
    socket.on("data", (bytes) => {
      text += bytes;
    });
    socket.write(`GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n${webSocketHead(path, `${subdomain}localhost:${port}`)}`);
    await once(socket, "close");
    expect(text).not.toMatch(/ 101 |401|404/);
    expect((await get(at, "/healthz")).status).toBe(200);
  });
});

describe("more connections than the server takes", () => {
  const at = useServer({ connectionsMax: 20, silenceMs: 60_000 });

  it("are closed at once, those that are idle make room, and the next client is served", async () => {
    const port = Number(new URL(at.url).port);
    const idle = Array.from({ length: 20 }, () => connect(port, "127.0.0.1").on("error", () => {}));
    // Idle means: has been served and has not asked again.
    for (const socket of idle) {
      socket.write("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
      await once(socket, "data");
    }
    const refused = connect(port, "127.0.0.1").on("error", () => {});
    refused.resume();
    await once(refused, "close");
    await expect.poll(() => idle.filter((socket) => socket.destroyed || socket.readableEnded).length).toBe(20);
    expect((await get(at, "/healthz")).status).toBe(200);
    expect(at.logLines.some((line) => line.includes("too many connections"))).toBe(true);
    for (const socket of idle) socket.destroy();
  });
});

describe("a WebSocket client", () => {
  const at = useServer();

  it("that sends pings and reads nothing gets no answers that would pile up here, and disturbs nobody", async () => {
    const { port } = new URL(at.url);
    const socket = connect(Number(port), "127.0.0.1").on("error", () => {});
    const upgrade = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", `Sec-WebSocket-Key: ${"A".repeat(22)}==`];
    const path = "/sandbox.v1.Sandbox/Exec?sandbox=sb-1";
    socket.write(`GET ${path} HTTP/1.1\r\nHost: localhost\r\n${upgrade.join("\r\n")}\r\n\r\n`);
    await once(socket, "data");
    socket.pause();
    // Masked with zeros: what is sent is what is meant.
    const pingOf = (text: Buffer) => Buffer.concat([Buffer.from([0x89, 0x80 | text.length, 0, 0, 0, 0]), text]);
    const thousand = Buffer.concat(Array.from({ length: 1_000 }, () => pingOf(Buffer.alloc(125, "x"))));
    const thousands = 200;
    for (let sent = 0; sent < thousands; sent += 1) await new Promise((resolve) => socket.write(thousand, resolve));
    expect((await get(at, "/healthz")).status).toBe(200);
    let received = 0;
    let last = Buffer.alloc(0);
    socket.on("data", (bytes) => {
      received += bytes.length;
      last = Buffer.concat([last, bytes]).subarray(-16);
    });
    // Once it reads it is answered again.
    socket.resume();
    const answered = () => {
      socket.write(pingOf(Buffer.from("the last")));
      return last.toString("latin1");
    };
    await expect.poll(answered, { timeout: 20_000 }).toContain("the last");
    expect(received).toBeLessThan((thousands * 1_000 * 127) / 2);
    socket.destroy();
  });

  it("has its pings answered while it reads", async () => {
    const socket = new WebSocket(`${at.url.replace("http", "ws")}/sandbox.v1.Sandbox/Exec?sandbox=sb-1`, ["connect.sandbox.v1"]);
    await once(socket, "open");
    const pong = once(socket, "pong");
    socket.ping("here");
    expect(String((await pong)[0])).toBe("here");
    socket.terminate();
  });
});
