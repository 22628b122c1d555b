import { once } from "node:events";
import { describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { b64, envelope, type Frame, get, parseFrames, useServer } from "../testing/harness.ts";

const path = "/sandbox.v1.Sandbox/Exec";
const open = { open: { pty: { size: { cols: 80, rows: 24 } } } };

describe("Exec over a WebSocket", () => {
  const at = useServer({ maxStreamsPerSandbox: 1, maxExecTimeoutSeconds: 100 });

  function dial(query = "?sandbox=sb-1", headers: Record<string, string> = {}) {
    const socket = new WebSocket(`${at.url.replace("http", "ws")}${path}${query}`, "connect.sandbox.v1", { headers });
    const frames: Frame[] = [];
    socket.on("message", (data: Buffer) => frames.push(...parseFrames(data).frames));
    socket.on("error", () => {});
    const closed = new Promise<{ code: number; reason: string }>((resolve) =>
      socket.on("close", (code, reason) => resolve({ code, reason: reason.toString() })),
    );
    return { socket, frames, closed, send: (message: unknown) => socket.send(envelope(message)) };
  }

  async function connected(...args: Parameters<typeof dial>) {
    const client = dial(...args);
    await once(client.socket, "open");
    return client;
  }

  it("runs a terminal: input, size, output, and the exit in a frame with the end-stream flag", async () => {
    const client = await connected();
    expect(client.socket.protocol).toBe("connect.sandbox.v1");
    for (const message of [
      open,
      { stdin: b64("hi-from-test\n") },
      { resize: { cols: 120, rows: 40 } },
      { stdinClose: true },
      open,
      { stdin: b64("exit\n") },
    ])
      client.send(message);
    expect((await client.closed).code).toBe(1000);
    expect(client.frames).toEqual([
      { flags: 0, message: { stdout: b64("hi-from-test\n") } },
      { flags: 0, message: { stdout: b64("exit\n") } },
      { flags: 2, message: { exit: { execTimeMs: 4 } } },
    ]);
    expect(at.runtime.starts).toMatchObject([
      { shellCommand: "/bin/sh", pty: { term: "xterm-256color", cols: 80, rows: 24 }, stdin: true, timeoutMs: 0 },
    ]);
    expect(at.runtime.signals).toEqual([["resize", 120, 40]]);
  });

  it("honours the other members of open, and gives 80 by 24 where no size is said", async () => {
    const client = await connected();
    client.send({ open: { command: "x", cwd: "/tmp", env: [{ key: "A", value: "1" }], timeoutSeconds: 9, pty: { term: "vt100" } } });
    await client.closed;
    expect(at.runtime.starts).toMatchObject([
      { shellCommand: "x", cwd: "/tmp", env: { A: "1" }, timeoutMs: 9000, pty: { term: "vt100", cols: 80, rows: 24 } },
    ]);
  });

  it("leaves the input of a program without a terminal open as well, whatever stdinClose says", async () => {
    const client = await connected();
    for (const message of [{ open: { command: "cat" } }, { stdin: b64("before\n") }, { stdinClose: true }, open, { stdin: b64("exit\n") }])
      client.send(message);
    expect((await client.closed).code).toBe(1000);
    expect(client.frames.map(({ message }) => message.stdout)).toEqual([b64("before\n"), b64("exit\n"), undefined]);
  });

  it("runs a program without a terminal, with 30 seconds by default", async () => {
    const client = await connected();
    at.runtime.gate.resolve();
    client.send({ open: { command: "gated" } });
    await client.closed;
    expect(client.frames.map(({ message }) => Object.keys(message)[0])).toEqual(["stdout", "stdout", "stderr", "exit"]);
    expect(at.runtime.starts).toMatchObject([{ pty: undefined, timeoutMs: 30_000 }]);
  });

  it.each([
    ["another first message", envelope({ stdin: "" }), 1003],
    ["a text message", "{}", 1003],
    ["a short frame", Buffer.from([0, 0]), 1003],
    ["a wrong length", Buffer.concat([envelope(open), Buffer.from("x")]), 1003],
    ["an unknown field", envelope({ ...open, later: 1 }), 1003],
    ["a time-out above the ceiling", envelope({ open: { command: "x", timeoutSeconds: 101 } }), 1011],
  ])("ends a session that begins with %s", async (_, first, code) => {
    const client = await connected();
    client.socket.send(first);
    const closed = await client.closed;
    expect(closed.code).toBe(code);
    expect(Buffer.byteLength(closed.reason)).toBeLessThanOrEqual(123);
    expect(client.frames).toMatchObject([{ flags: 2, message: { exit: { exitCode: 1, error: expect.stringMatching(/./) } } }]);
    expect(at.runtime.starts).toEqual([]);
  });

  it("ends a session that goes wrong later, and kills its program", async () => {
    const client = await connected();
    client.send({ open: { command: "forever" } });
    await expect.poll(() => client.frames.length).toBe(1);
    client.send({ stdin: "", unknown: 1 });
    expect((await client.closed).code).toBe(1011);
    expect(client.frames[1]).toMatchObject({ flags: 2, message: { exit: { exitCode: 1 } } });
    await expect.poll(() => at.runtime.killed).toBe(1);
  });

  it("kills the program when the client closes the socket or sends more than 1 MiB at once", async () => {
    for (const [index, leave] of [
      (socket: WebSocket) => socket.close(),
      (socket: WebSocket) => socket.send(Buffer.alloc(1024 * 1024 + 1)),
    ].entries()) {
      const client = await connected();
      client.send({ open: { command: "forever" } });
      await expect.poll(() => client.frames.length).toBe(1);
      leave(client.socket);
      await client.closed;
      await expect.poll(() => at.runtime.killed).toBe(index + 1);
    }
  });

  it("tells the loss of the sandbox as an exit", async () => {
    const client = await connected();
    client.send({ open: { command: "lost" } });
    await client.closed;
    expect(client.frames.at(-1)).toMatchObject({
      flags: 2,
      message: { exit: { exitCode: 1, error: expect.stringMatching(/link is gone/) } },
    });
  });

  it("closes with 1008 above the stream cap, and leaves the open ones alone", async () => {
    const first = await connected();
    first.send({ open: { command: "forever" } });
    await expect.poll(() => first.frames.length).toBe(1);
    const second = await connected();
    second.send(open);
    expect((await second.closed).code).toBe(1008);
    expect(second.frames).toMatchObject([{ flags: 2, message: { exit: { exitCode: 1 } } }]);
    expect(at.runtime.killed).toBe(0);
    first.socket.terminate();
  });

  it.each([
    ["", 400, "invalid_input"],
    ["?sandbox=a%2fb", 400, "invalid_input"],
    ["?sandbox=nope", 404, "not_found"],
  ])("answers %j before the upgrade with %i", async (query, status, code) => {
    const { socket } = dial(query);
    const [, response] = await once(socket, "unexpected-response");
    let body = "";
    for await (const chunk of response) body += chunk;
    expect([response.statusCode, JSON.parse(body).error.code]).toEqual([status, code]);
  });

  it("accepts the Origin that a Python client sends, and no other", async () => {
    const client = await connected("?sandbox=sb-1", { Origin: at.url });
    client.socket.terminate();
    const { socket } = dial("?sandbox=sb-1", { Origin: "http://evil.example" });
    const [, response] = await once(socket, "unexpected-response");
    expect(response.statusCode).toBe(403);
    response.resume();
  });

  it("ignores offers to upgrade to anything else", async () => {
    const headers = { Connection: "Upgrade, HTTP2-Settings", Upgrade: "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__" };
    expect((await get(at, "/v1/health", headers)).status).toBe(200);
    expect((await get(at, path)).status).toBe(405);
  });
});
