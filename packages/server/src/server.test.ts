import { once } from "node:events";
import { readFile, rm } from "node:fs/promises";
import { connect as connectHttp2 } from "node:http2";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { envelope, type Frame, get, parseFrames, post, stream, streamAll, unary, useServer } from "./testing/harness.ts";

describe("one port", () => {
  const at = useServer({ silenceMs: 150 });
  const dial = () => connect(Number(new URL(at.url).port), "127.0.0.1");

  it("serves HTTP/1.1 and HTTP/2 when the first bytes come one by one", async () => {
    for (const opening of ["GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"]) {
      const socket = dial();
      socket.setNoDelay(true);
      let seen = Buffer.alloc(0);
      socket.on("data", (data) => {
        seen = Buffer.concat([seen, data]);
      });
      for (const byte of Buffer.from(opening, "latin1")) {
        await new Promise<void>((resolve) => socket.write(Buffer.from([byte]), () => resolve()));
        await new Promise((resolve) => setImmediate(resolve));
      }
      // The server's preface on HTTP/2 is a SETTINGS frame (type 4).
      await expect.poll(() => seen.length > 9 && (seen.toString("latin1").startsWith("HTTP/1.1 200") || seen[3] === 4)).toBe(true);
      socket.destroy();
    }
  });

  it("closes a connection that says nothing", async () => {
    const socket = dial();
    const closed = new Promise((resolve) => socket.on("close", resolve));
    socket.on("error", () => {});
    socket.resume();
    await closed;
  });

  it("closes a connection that is not HTTP", async () => {
    const socket = dial();
    let seen = "";
    socket.on("data", (data) => {
      seen += data;
    });
    socket.write("\x16\x03\x01 hello\r\n\r\n");
    await new Promise((resolve) => socket.on("close", resolve));
    expect(seen).toMatch(/^HTTP\/1.1 400/);
  });

  it("serves both at the same time", async () => {
    const session = connectHttp2(at.url);
    const [one, two] = await Promise.all([
      get(at, "/healthz"),
      new Promise((resolve) => session.request({ ":path": "/healthz" }).on("response", (headers) => resolve(headers[":status"]))),
    ]);
    expect([one.status, two]).toEqual([200, 200]);
    session.destroy();
  });
});

describe("going down", () => {
  const at = useServer();

  it("lets a stream finish that ends in time", async () => {
    const { frames } = await stream(at, "ExecStream", [{ command: "gated" }]);
    await frames.next();
    const closed = at.server.close();
    at.runtime.gate.resolve();
    const rest = [];
    for await (const frame of frames) rest.push(frame);
    expect(rest.at(-1)).toEqual({ flags: 2, message: {} });
    await closed;
  });

  it("breaks off a stream that does not, says why, and leaves its program alone", async () => {
    const { frames } = await stream(at, "ExecStream", [{ command: "forever" }]);
    await frames.next();
    const webSocket = new WebSocket(`${at.url.replace("http", "ws")}/sandbox.v1.Sandbox/Exec?sandbox=sb-1`, "connect.sandbox.v1");
    const last = new Promise<Frame>((resolve) =>
      webSocket.on("message", (data: Buffer) =>
        parseFrames(data)
          .frames.filter(({ flags }) => flags === 2)
          .map(resolve),
      ),
    );
    webSocket.on("open", () => webSocket.send(envelope({ open: { command: "forever" } })));
    await once(webSocket, "message");
    const idle = connect(Number(new URL(at.url).port), "127.0.0.1").on("error", () => {});
    const started = Date.now();
    await at.server.close();
    expect(Date.now() - started).toBeLessThan(5500);
    expect((await frames.next()).value).toMatchObject({ flags: 2, message: { error: { code: "unavailable" } } });
    expect((await last).message.exit).toMatchObject({ exitCode: 1, error: expect.stringMatching(/going down/) });
    expect(at.runtime.killed).toBe(0);
    idle.destroy();
  }, 10_000);
});

describe("the audit log", () => {
  const file = join(tmpdir(), `mitos-audit-${process.pid}.log`);
  const at = useServer({ auditLog: file });
  afterAll(() => rm(file, { force: true }));

  it("has one line for each RPC and life cycle action, without contents", async () => {
    await streamAll(at, "ExecStream", [{ command: "echo s3cret", env: [{ key: "K", value: "s3cret" }] }]);
    await unary(at, "Stat", { path: "/none" });
    await post(at, "/v1/set_timeout", { sandbox: "sb-1", timeout_seconds: 60 });
    await at.server.close();
    const text = await readFile(file, "utf8");
    const lines = text
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines).toEqual([
      { sandbox_id: "", op: "create_template", detail: "template=python", unix: expect.any(Number), ok: true },
      { sandbox_id: "sb-1", op: "create", detail: "template=python", unix: expect.any(Number), ok: true },
      { sandbox_id: "sb-1", op: "exec", unix: expect.any(Number), ok: true },
      { sandbox_id: "sb-1", op: "stat", unix: expect.any(Number), ok: false },
      { sandbox_id: "sb-1", op: "set_timeout", detail: "timeout_s=60", unix: expect.any(Number), ok: true },
    ]);
    expect(text + at.logLines.join("\n")).not.toMatch(/s3cret/);
  });
});
