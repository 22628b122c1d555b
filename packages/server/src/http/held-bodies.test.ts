import { connect as connectHttp2 } from "node:http2";
import { connect, type Socket } from "node:net";
import { gzipSync } from "node:zlib";
import { limits } from "@mitos/protocol";
import { afterEach, describe, expect, it } from "vitest";
import { type Answer, b64, bearer, envelope, get, makeKey, post, send, streamAll, unary, useServer } from "../testing/harness.ts";
import { HeldBodies } from "./held-bodies.ts";

const MiB = 1024 * 1024;
const alice = { owner: "alice", organisation: "acme" };
const bob = { owner: "bob", organisation: "acme" };

describe("bytes of request bodies", () => {
  const ofServer = (limit: number) =>
    expect.objectContaining({ context: { op: "op", dimension: "body_bytes", limit }, retryAfterMs: 1000 });
  const refused = (limit: number) => expect.objectContaining({ code: "quota_exceeded", detail: ofServer(limit) });

  it("are limited for each owner, of all requests together, and count until they are let go of", () => {
    const bodies = new HeldBodies({ perOwner: 4 * MiB, server: 100 * MiB });
    const first = bodies.hold("op", () => alice);
    const second = bodies.hold("op", () => alice);
    first.add(3 * MiB);
    expect(() => second.add(MiB)).toThrow(refused(4 * MiB));
    bodies.hold("op", () => ({ ...alice, organisation: "other" })).add(3 * MiB);
    first.keepOnly(2 * MiB);
    second.add(MiB);
    second[Symbol.dispose]();
    first[Symbol.dispose]();
    bodies.hold("op", () => alice).add(3 * MiB);
  });

  it("are limited for the whole server, which still takes a little of each owner, and without keys only so", () => {
    const bodies = new HeldBodies({ perOwner: 4 * MiB, server: 8 * MiB });
    const held = bodies.hold("op", () => undefined);
    held.add(7 * MiB);
    expect(() => bodies.hold("op", () => undefined).add(MiB)).toThrow(refused(8 * MiB));
    const small = bodies.hold("op", () => alice);
    const room = limits.heldBodyBytesPerOwnerMin - 4096;
    small.add(room);
    expect(() => small.add(4096)).toThrow(refused(8 * MiB));
    bodies.hold("op", () => bob).add(room);
    held[Symbol.dispose]();
    small.add(2 * MiB);
  });

  it("count for more than they are where they come one by one", () => {
    const bodies = new HeldBodies({ perOwner: MiB, server: MiB });
    const held = bodies.hold("op", () => alice);
    const add = () => {
      for (let pieces = 0; pieces < MiB / 512; pieces += 1) held.add(1);
    };
    expect(add).toThrow(refused(MiB));
  });

  it("are not taken when the request is over, since nobody would let go of them", () => {
    const held = new HeldBodies().hold("op", () => alice);
    held[Symbol.dispose]();
    expect(() => held.add(1)).toThrow(expect.objectContaining({ code: "canceled" }));
  });
});

describe("a client that sends more than the server holds", () => {
  const at = useServer({ auth: true, bodySilenceMs: 500, heldBodyBytesMax: { perOwner: 4 * MiB, server: 64 * MiB } });
  const sockets: Socket[] = [];
  const key = () => bearer(makeKey(at, { ...alice, scopes: ["admin"] }));
  const forSandbox = { "X-Sandbox-Id": "sb-1" };
  const asStream = { ...forSandbox, "Content-Type": "application/connect+json" };
  const asGzip = { ...asStream, "Connect-Content-Encoding": "gzip" };
  const asUnary = { ...forSandbox, "Content-Type": "application/json" };
  const rpc = (name: string) => `/sandbox.v1.Sandbox/${name}`;
  /** Three of the four MiB that the server holds. */
  const much = "x".repeat(3 * MiB);

  const compressed = (payload: Uint8Array) => envelope(payload, 1);

  afterEach(() => {
    for (const socket of sockets.splice(0)) socket.destroy();
  });

  function begin(path: string, headers: Record<string, string>, bytes: number): Socket {
    const socket = connect(Number(new URL(at.url).port), "127.0.0.1").on("error", () => {});
    sockets.push(socket);
    const all = { Host: "localhost", "Content-Length": String(bytes), ...headers };
    const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}`);
    socket.write(`POST ${path} HTTP/1.1\r\n${lines.join("\r\n")}\r\n\r\n`);
    return socket;
  }

  const writeFile = (headers: Record<string, string>, content: string) =>
    post(at, "/v1/files/write", { sandbox: "sb-1", path: "/a", content }, headers);

  /** Sends a part of a body and waits until it is held: another large one is refused from then on, which is returned. */
  async function fill(path: string, headers: Record<string, string>, part: string | Uint8Array = much): Promise<[Socket, Answer]> {
    for (;;) {
      const socket = begin(path, headers, 9 * MiB);
      // It may meet a probe and be refused itself.
      let isRefused = false;
      socket.once("data", () => {
        isRefused = true;
      });
      await new Promise((resolve) => socket.write(part, resolve));
      while (!isRefused) {
        const probe = await writeFile(headers, much);
        await get(at, "/healthz");
        if (probe.status === 429 && !isRefused) return [socket, probe];
      }
      socket.destroy();
    }
  }

  const isFree = (headers: Record<string, string>) =>
    expect.poll(async () => (await writeFile(headers, much)).status, { timeout: 5000 }).toBe(200);

  it("is refused with all keys of its owner and told when to come again, and others are served", async () => {
    const headers = key();
    const [, refused] = await fill("/v1/files/write", headers);
    expect((await writeFile(key(), much)).status).toBe(429);
    expect(refused.json.error).toMatchObject({
      code: "quota_exceeded",
      remediation: expect.stringContaining("Wait"),
      context: { op: "POST /v1/files/write", dimension: "body_bytes", limit: 4 * MiB },
    });
    expect(refused.headers["retry-after"]).toBe("1");
    expect((await writeFile(at.admin, much)).status).toBe(200);
    expect((await get(at, "/v1/sandboxes", headers)).status).toBe(200);
  });

  it("is refused by RPCs in their own words, whether they stream or not", async () => {
    const headers = key();
    await fill("/v1/files/write", headers);
    const one = await unary(at, "Stat", { path: "/a", later: much }, headers);
    expect([one.status, one.json.code, one.headers["mitos-error-code"], one.headers["retry-after"]]).toEqual([
      429,
      "resource_exhausted",
      "quota_exceeded",
      "1",
    ]);
    for (const frames of [
      await streamAll(at, "ExecStream", [{ command: "true", later: much }], headers),
      await streamAll(at, "WriteFile", [{ open: { path: "/a" } }, { data: much }], headers),
    ]) {
      const { error, metadata } = frames.at(-1)!.message;
      expect([error.code, metadata["mitos-error-code"], metadata["retry-after"]]).toEqual([
        "resource_exhausted",
        ["quota_exceeded"],
        ["1"],
      ]);
    }
    expect(at.runtime.starts).toEqual([]);
  });

  it.each([
    ["a unary RPC", "Stat", asUnary],
    ["an RPC that answers a stream", "ExecStream", asStream],
    ["an RPC that is sent a stream", "WriteFile", asStream],
  ])("is refused when it has sent it to %s, until that gives up the silent client", async (_what, name, headers) => {
    const owner = key();
    const head = Buffer.alloc(5);
    head.writeUInt32BE(8 * MiB, 1);
    const body = headers === asStream ? Buffer.concat([head, Buffer.from(much)]) : much;
    await fill(rpc(name), { ...headers, ...owner }, body);
    await isFree(owner);
  });

  it("is served again when it has left in the middle of a body", async () => {
    const headers = key();
    const [socket] = await fill("/v1/files/write", headers);
    socket.destroy();
    await isFree(headers);
    const session = connectHttp2(at.url).on("error", () => {});
    const stream = session.request({ ":method": "POST", ":path": "/v1/files/write", authorization: headers.Authorization });
    stream.on("error", () => {}).write(much);
    await expect.poll(async () => (await writeFile(headers, much)).status).toBe(429);
    session.destroy();
    await isFree(headers);
  });

  it("is served as often as it likes one after the other, however the requests end", async () => {
    const headers = key();
    for (let round = 0; round < 3; round += 1) {
      expect((await writeFile(headers, much)).status).toBe(200);
      expect((await send(at, "POST", "/v1/pause", much, headers)).json.error.code).toBe("invalid_json");
      expect((await send(at, "POST", "/v1/pause", "x".repeat(5 * MiB), headers)).json.error.code).toBe("quota_exceeded");
      expect((await post(at, "/v1/files/write", { sandbox: "nope", path: "/a", content: much }, headers)).json.error.code).toBe(
        "not_found",
      );
      expect((await unary(at, "Stat", { path: 7, later: much }, headers)).json.code).toBe("invalid_argument");
      expect((await unary(at, "Processes", { later: much }, headers)).status).toBe(200);
    }
  });

  it("has what was parsed counted for as long as a sandbox takes over it", async () => {
    const headers = key();
    const slow = post(at, "/v1/files/write", { sandbox: "sb-1", path: "/slow", content: much }, headers);
    await expect.poll(() => at.runtime.floodBytes).toBe(much.length);
    expect((await writeFile(headers, much)).status).toBe(429);
    at.runtime.gate.resolve();
    expect((await slow).status).toBe(200);
    await isFree(headers);
  });

  it.each([
    ["a unary RPC", "Stat", { ...asUnary, "Content-Encoding": "gzip" }],
    ["an RPC that answers a stream", "ExecStream", asGzip],
    ["the first message of an RPC that is sent a stream", "WriteFile", asGzip],
  ])("is refused when what it has sent to %s inflates to more", async (_what, name, headers) => {
    const message = gzipSync(JSON.stringify({ path: "/a", later: "x".repeat(5 * MiB) }));
    const body = headers === asGzip ? compressed(message) : message;
    const { text } = await send(at, "POST", rpc(name), body, { ...headers, ...key() });
    expect(text).toContain("too many request bodies are under way");
  });

  it("has what its first message has become counted until its call is over", async () => {
    const headers = key();
    const body = compressed(gzipSync(JSON.stringify({ command: "gated", later: much })));
    const running = send(at, "POST", rpc("ExecStream"), body, { ...asGzip, ...headers });
    await expect.poll(() => at.runtime.starts.length).toBe(1);
    expect((await writeFile(headers, much)).status).toBe(429);
    at.runtime.gate.resolve();
    expect((await running).text).toContain('{"exit":');
    await isFree(headers);
  });

  it("may send any number of messages in gzip that the sandbox has taken", async () => {
    const data = compressed(gzipSync(JSON.stringify({ data: b64("x".repeat(MiB / 4)) })));
    const open = envelope({ open: { path: "/large" } });
    const count = 40;
    const socket = begin(rpc("WriteFile"), { ...asGzip, ...key() }, open.length + count * data.length);
    let answer = "";
    socket.on("data", (chunk) => {
      answer += chunk;
    });
    socket.write(open);
    for (let sent = 0; sent < count; sent += 1) {
      // What arrives together is counted together.
      await new Promise((resolve) => setTimeout(resolve, 10));
      socket.write(data);
    }
    await expect.poll(() => answer).toContain(`"bytesWritten":"${(count * MiB) / 4}"`);
  });

  it("may send any number of messages that the sandbox has taken", async () => {
    const data = { data: b64("x".repeat(MiB)) };
    const messages = [{ open: { path: "/large" } }, ...Array.from({ length: 12 }, () => data)];
    const body = Buffer.concat(messages.map((message) => envelope(message)));
    expect((await send(at, "POST", rpc("WriteFile"), body, { ...asStream, ...key() })).text).toContain(`"bytesWritten":"${12 * MiB}"`);
  });

  it.each([
    ["a route", "/v1/files/write", {}],
    ["an RPC", rpc("Stat"), asUnary],
  ])("reads the refusal of %s also when it first sends everything, of which the rest is dropped", async (_what, path, headers) => {
    const bytes = 30 * MiB;
    const socket = begin(path, { ...headers, ...key() }, bytes);
    socket.pause();
    const part = Buffer.alloc(64 * 1024, "x");
    for (let sent = 0; sent < bytes; sent += part.length) await new Promise((resolve) => socket.write(part, resolve));
    let answer = "";
    socket.on("data", (chunk) => {
      answer += chunk;
    });
    socket.resume();
    await expect.poll(() => answer).toMatch(/^HTTP\/1\.1 429 .*too many request bodies are under way/s);
  });
});
