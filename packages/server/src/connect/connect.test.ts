import { once } from "node:events";
import { connect as connectHttp2 } from "node:http2";
import { connect as connectTcp } from "node:net";
import { gzipSync } from "node:zlib";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { limits } from "@mitos/protocol";
import { sandbox as pb } from "@mitos/protocol/proto";
import { describe, expect, it } from "vitest";
import { b64, collect, envelope, get, post, send, stream, streamAll, unary, useServer } from "../testing/harness.ts";

const end = { flags: 2, message: {} };
const rpc = "/sandbox.v1.Sandbox";

const compressed = (payload: Uint8Array) => envelope(payload, 1);

describe("the wire", () => {
  const at = useServer();

  it("answers exactly the envelopes of the specification", async () => {
    at.runtime.files.set("/a", Buffer.from("hi"));
    const request = Buffer.from("000000000d7b2270617468223a222f61227d", "hex");
    const { status, text: body } = await send(at, "POST", `${rpc}/ReadFile`, request, {
      "Content-Type": "application/connect+json",
      "X-Sandbox-Id": "sb-1",
    });
    expect(status).toBe(200);
    expect(Buffer.from(body)).toEqual(Buffer.concat([envelope({ data: b64("hi"), eof: true }), Buffer.from("02000000027b7d", "hex")]));
  });

  it("delivers each frame when it is produced, then ends the body", async () => {
    const { status, headers, frames } = await stream(at, "ExecStream", [{ command: "gated", timeoutSeconds: 30 }]);
    expect(status).toBe(200);
    expect(headers.get("content-type")).toBe("application/connect+json");
    expect((await frames.next()).value?.message).toEqual({ stdout: b64("first ") });
    at.runtime.gate.resolve();
    expect(await collect(frames)).toEqual([
      { flags: 0, message: { stdout: b64("second\n") } },
      { flags: 0, message: { stderr: b64("warn\n") } },
      { flags: 0, message: { exit: { exitCode: 3, execTimeMs: 4 } } },
      end,
    ]);
  });

  it("keeps the connection usable after a stream", async () => {
    const socket = connectTcp(Number(new URL(at.url).port), "127.0.0.1");
    const body = envelope({ command: "true" });
    const request = Buffer.concat([
      Buffer.from(
        `POST ${rpc}/ExecStream HTTP/1.1\r\nHost: localhost\r\nX-Sandbox-Id: sb-1\r\nContent-Type: application/connect+json\r\nContent-Length: ${body.length}\r\n\r\n`,
      ),
      body,
    ]);
    let seen = "";
    socket.on("data", (data) => {
      seen += data.toString("latin1");
    });
    socket.write(request);
    await expect.poll(() => seen.split("0\r\n\r\n").length).toBe(2);
    socket.write(request);
    await expect.poll(() => seen.split("0\r\n\r\n").length).toBe(3);
    socket.destroy();
  });

  it("omits scalar defaults but not the members of a oneof", async () => {
    const frames = await streamAll(at, "RunCodeStream", [{ code: "print(1)", language: "python", timeoutSeconds: 60 }]);
    expect(frames).toEqual([
      { flags: 0, message: { stdout: b64("out\n") } },
      { flags: 0, message: { result: { text: "42", data: { "text/plain": b64("42"), "image/png": b64("aGVsbG8=") } } } },
      { flags: 0, message: { exitCode: 0 } },
      end,
    ]);
    at.runtime.files.set("/d/a.txt", Buffer.from("hi"));
    expect((await unary(at, "List", { parent: "/d" })).json).toEqual({
      entries: [{ name: "a.txt", path: "/d/a.txt", size: "2", mode: 33188 }],
    });
  });

  it("accepts snake_case keys, numbers for int64, and unknown fields; refuses wrong types", async () => {
    await streamAll(at, "ExecStream", [{ command: "x", timeout_seconds: 7, later: true }]);
    expect(at.runtime.starts.at(-1)?.timeoutMs).toBe(7000);
    await streamAll(at, "RunCodeStream", [{ code: "x", timeoutSeconds: "9" }]);
    expect(at.runtime.runs.at(-1)?.timeoutMs).toBe(9000);
    expect((await streamAll(at, "ExecStream", [{ command: 7 }]))[0]?.message.error.code).toBe("invalid_argument");
    expect((await unary(at, "Stat", { path: 7 })).json.code).toBe("invalid_argument");
  });

  it("accepts workingDir and an object for env, as one published client sends them", async () => {
    await streamAll(at, "ExecStream", [{ command: "x", workingDir: "/tmp", env: { A: "1" } }]);
    expect(at.runtime.starts.at(-1)).toMatchObject({ cwd: "/tmp", env: { A: "1" } });
    await streamAll(at, "ExecStream", [{ command: "x", cwd: "/a", workingDir: "/b", env: [{ key: "B", value: "2" }] }]);
    expect(at.runtime.starts.at(-1)).toMatchObject({ cwd: "/a", env: { B: "2" } });
  });

  it("takes the version header as optional, and only as 1", async () => {
    expect((await unary(at, "Processes", {}, { "Connect-Protocol-Version": "1" })).status).toBe(200);
    expect((await unary(at, "Processes", {}, { "Connect-Protocol-Version": "2" })).json.code).toBe("invalid_argument");
  });

  it("speaks gzip only when asked, and reads it", async () => {
    const headers = { "Content-Type": "application/json", "X-Sandbox-Id": "sb-1", "Content-Encoding": "gzip" };
    expect((await send(at, "POST", `${rpc}/Processes`, gzipSync("{}"), headers)).status).toBe(200);
    const plain = await stream(at, "ExecStream", [{ command: "umlauts" }], { headers: { "Accept-Encoding": "gzip" } });
    expect(plain.headers.get("connect-content-encoding")).toBeNull();
    await collect(plain.frames);
  });

  it("reads messages of a stream in gzip, one with aliases too, and blames the client for broken and for oversized ones", async () => {
    const headers = { "Content-Type": "application/connect+json", "X-Sandbox-Id": "sb-1", "Connect-Content-Encoding": "gzip" };
    const answer = async (payload: Uint8Array) => (await send(at, "POST", `${rpc}/ExecStream`, compressed(payload), headers)).text;
    expect(await answer(gzipSync(JSON.stringify({ command: "true" })))).toContain('{"exit":');
    const whole = gzipSync(JSON.stringify({ command: "true", later: "x".repeat(1000) }));
    for (const broken of [whole.subarray(0, 20), Buffer.from("no gzip"), Buffer.concat([whole.subarray(0, 20), Buffer.alloc(20, 255)])]) {
      expect(await answer(broken)).toContain('"code":"invalid_argument"');
    }
    expect(await answer(gzipSync(Buffer.alloc(limits.messageBytesMax + 1)))).toContain('"code":"resource_exhausted"');
  });

  it("answers other methods 405, other types 415, unknown RPCs 404, and bidi RPCs on HTTP/1.1 505", async () => {
    const wrongMethod = await get(at, `${rpc}/List`);
    expect([wrongMethod.status, wrongMethod.headers.allow]).toEqual([405, "POST"]);
    const wrongType = await post(at, `${rpc}/List`, {}, { "Content-Type": "text/plain" });
    expect(wrongType.status).toBe(415);
    expect(wrongType.headers["accept-post"]).toMatch(/^application\/json, application\/proto/);
    expect((await post(at, `${rpc}/ExecStream`, {}, { "Content-Type": "application/json" })).status).toBe(415);
    expect((await unary(at, "Nope", {})).status).toBe(404);
    for (const method of ["Exec", "RunCode", "PortForward"]) {
      const answer = await post(at, `${rpc}/${method}`, {}, { "Content-Type": "application/connect+json" });
      expect([answer.status, answer.headers.connection]).toEqual([505, "close"]);
    }
  });

  it("refuses a foreign Origin with an error that Connect clients read", async () => {
    const { status, json } = await unary(at, "Processes", {}, { Origin: "http://evil.example" });
    expect([status, json.code]).toEqual([403, "permission_denied"]);
  });

  it("answers what a request lacks, what does not exist and what is not running", async () => {
    expect((await unary(at, "Processes", {}, { "X-Sandbox-Id": "" })).json.code).toBe("invalid_argument");
    const unknown = await unary(at, "Processes", {}, { "X-Sandbox-Id": "nope" });
    expect([unknown.status, unknown.json.code, unknown.headers["mitos-error-code"]]).toEqual([404, "not_found", "not_found"]);
    expect((await streamAll(at, "ExecStream", [{ command: "x" }], { "X-Sandbox-Id": "nope" }))[0]).toMatchObject({
      flags: 2,
      message: { error: { code: "not_found" } },
    });
    await post(at, "/v1/pause", { sandbox: "sb-1" });
    const paused = await unary(at, "Processes", {});
    expect([paused.json.code, paused.headers["mitos-error-code"]]).toEqual(["failed_precondition", "sandbox_not_running"]);
  });

  it.each(["Fork", "Checkpoint", "ExtendLifetime", "Budget"])("answers %s as unimplemented, with the way to go", async (method) => {
    const { status, json } = await unary(at, method, {});
    expect([status, json.code]).toEqual([501, "unimplemented"]);
    expect(json.message).toMatch(/use (GET|POST) /);
  });

  it("survives malformed envelopes", async () => {
    const raw = (body: Buffer) =>
      send(at, "POST", `${rpc}/ExecStream`, body, { "Content-Type": "application/connect+json", "X-Sandbox-Id": "sb-1" });
    for (const body of [
      Buffer.alloc(0),
      Buffer.from([0, 0]),
      Buffer.from([0, 255, 255, 255, 255, 1]),
      envelope("{"),
      envelope("\xff"),
      envelope({}, 1),
    ]) {
      expect((await raw(body)).text).toMatch(/"error":\{"code":"/);
    }
    expect((await unary(at, "Processes", {})).status).toBe(200);
  });
});

describe("a server without a ceiling", () => {
  const at = useServer({ maxExecTimeoutSeconds: 0 });

  it("takes any time-out", async () => {
    const timeoutSeconds = 10_000_000;
    await streamAll(at, "ExecStream", [{ command: "x", timeoutSeconds }]);
    expect(at.runtime.starts.at(-1)?.timeoutMs).toBe(timeoutSeconds * 1000);
    expect((await streamAll(at, "RunCodeStream", [{ code: "x", timeoutSeconds }]))[0]?.message.error).toBeUndefined();
    expect((await post(at, "/v1/set_timeout", { sandbox: "sb-1", timeout_seconds: timeoutSeconds })).status).toBe(200);
  });
});

describe("exec", () => {
  const at = useServer({ maxExecTimeoutSeconds: 100, maxStreamsPerSandbox: 2 });
  const error = async (message: object) => (await streamAll(at, "ExecStream", [message])).at(-1)?.message.error;

  it("runs a command in a shell, and a command with args without one", async () => {
    await streamAll(at, "ExecStream", [{ command: "echo a b", env: [{ key: "A", value: "1" }], cwd: "/tmp" }]);
    await streamAll(at, "ExecStream", [{ command: "echo", args: ["a b", "$HOME"] }]);
    expect(at.runtime.starts).toMatchObject([
      { shellCommand: "echo a b", env: { A: "1" }, cwd: "/tmp", timeoutMs: 30_000 },
      { argv: ["echo", "a b", "$HOME"], timeoutMs: 30_000 },
    ]);
    expect(at.runtime.starts[1]?.shellCommand).toBeUndefined();
  });

  it("runs an empty command, which is a line that does nothing", async () => {
    for (const message of [{ command: "" }, {}]) expect(await error(message)).toBeUndefined();
    expect(at.runtime.starts).toMatchObject([{ argv: ["/bin/sh", "-c", ""] }, { argv: ["/bin/sh", "-c", ""] }]);
    expect(await error({ command: "", args: ["x"] })).toMatchObject({ code: "invalid_argument" });
  });

  it("gives 30 seconds by default, accepts the ceiling, and refuses more, naming both", async () => {
    for (const [asked, ms] of [
      [0, 30_000],
      [-5, 30_000],
      [100, 100_000],
    ]) {
      await streamAll(at, "ExecStream", [{ command: "x", timeoutSeconds: asked }]);
      expect(at.runtime.starts.at(-1)?.timeoutMs).toBe(ms);
    }
    expect(await error({ command: "x", timeoutSeconds: 101 })).toMatchObject({
      code: "invalid_argument",
      message: expect.stringMatching(/101.*100/),
    });
    const run = await streamAll(at, "RunCodeStream", [{ code: "x", timeoutSeconds: 101 }]);
    expect(run[0]?.message.error.code).toBe("invalid_argument");
  });

  it.each([
    { command: "a\0b" },
    { command: "x", cwd: "a\0" },
    { command: "x", env: [{ key: "", value: "1" }] },
    { command: "x", env: [{ key: "A=", value: "1" }] },
    { command: "x".repeat(1024 * 1024 + 1) },
  ])("refuses case %# before anything starts", async (message) => {
    expect((await error(message)).code).toBe("invalid_argument");
    expect(at.runtime.starts).toEqual([]);
  });

  it("tells a time-out as 124 and a failed start in the exit", async () => {
    expect((await streamAll(at, "ExecStream", [{ command: "timeout" }]))[0]?.message.exit.exitCode).toBe(124);
    expect((await streamAll(at, "ExecStream", [{ command: "bogus" }]))[0]?.message.exit).toMatchObject({
      exitCode: 1,
      error: "no such command: bogus",
    });
  });

  it("ends with exit code 1, an error and a clean end when the sandbox is lost", async () => {
    const frames = await streamAll(at, "ExecStream", [{ command: "lost" }]);
    expect(frames[0]?.message).toEqual({ stdout: b64("partial") });
    expect(frames[1]?.message.exit).toMatchObject({ exitCode: 1, error: expect.stringMatching(/link is gone/) });
    expect(frames[2]).toEqual(end);
  });

  it("cuts output into frames of at most 32 KiB and never inside a character", async () => {
    const frames = await streamAll(at, "ExecStream", [{ command: "umlauts" }]);
    const pieces = frames.flatMap(({ message }) => (message.stdout ? [Buffer.from(message.stdout, "base64")] : []));
    const strict = new TextDecoder("utf-8", { fatal: true });
    expect(pieces.map((piece) => strict.decode(piece)).join("")).toBe("äö€😀".repeat(6000));
    expect(Math.max(...pieces.map(({ length }) => length))).toBeLessThanOrEqual(32 * 1024);
  });

  it("kills the program when its client goes away", async () => {
    const client = new AbortController();
    const { frames } = await stream(at, "ExecStream", [{ command: "forever" }], { signal: client.signal });
    expect((await frames.next()).value?.message).toEqual({ stdout: b64("ready\n") });
    client.abort();
    await expect.poll(() => at.runtime.killed).toBe(1);
  });

  it("kills the program when the client's deadline passes, and says so", async () => {
    const frames = await streamAll(at, "ExecStream", [{ command: "forever" }], { "Connect-Timeout-Ms": "100" });
    expect(frames.at(-1)?.message.error.code).toBe("deadline_exceeded");
    await expect.poll(() => at.runtime.killed).toBe(1);
  });

  it.each(["HTTP/1.1", "HTTP/2"])(
    "holds up a program whose client does not read, on %s, and kills it when that client leaves",
    async (version) => {
      const body = envelope({ command: "flood" });
      let leave: () => void;
      if (version === "HTTP/1.1") {
        const socket = connectTcp(Number(new URL(at.url).port), "127.0.0.1");
        socket.pause();
        socket.write(
          `POST ${rpc}/ExecStream HTTP/1.1\r\nHost: localhost\r\nX-Sandbox-Id: sb-1\r\nContent-Type: application/connect+json\r\nContent-Length: ${body.length}\r\n\r\n`,
        );
        socket.write(body);
        leave = () => socket.destroy();
      } else {
        const session = connectHttp2(at.url);
        const request = session.request({
          ":method": "POST",
          ":path": `${rpc}/ExecStream`,
          "x-sandbox-id": "sb-1",
          "content-type": "application/connect+json",
        });
        request.end(body);
        leave = () => session.destroy();
      }
      await expect.poll(() => at.runtime.floodBytes).toBeGreaterThan(0);
      // The socket buffers of the kernel take some megabytes; then the program stands still.
      let last = -1;
      await expect
        .poll(
          () => {
            const still = at.runtime.floodBytes === last;
            last = at.runtime.floodBytes;
            return still;
          },
          { interval: 200, timeout: 5000 },
        )
        .toBe(true);
      expect(at.runtime.floodBytes).toBeLessThan(32 * 1024 * 1024);
      leave();
      await expect.poll(() => at.runtime.killed).toBe(1);
    },
  );

  it("refuses streams above the cap, per sandbox, and frees places", async () => {
    const client = new AbortController();
    const open = () => stream(at, "ExecStream", [{ command: "forever" }], { signal: client.signal });
    for (const opened of [await open(), await open()]) await opened.frames.next();
    expect(await error({ command: "x" })).toMatchObject({
      code: "resource_exhausted",
      message: expect.stringMatching(/concurrent exec-stream limit/),
    });
    await post(at, "/v1/fork", { id: "sb-2", template: "python" });
    expect((await streamAll(at, "ExecStream", [{ command: "x" }], { "X-Sandbox-Id": "sb-2" })).at(-1)).toEqual(end);
    client.abort();
    await expect.poll(() => at.runtime.killed).toBe(2);
    await expect.poll(async () => (await streamAll(at, "ExecStream", [{ command: "x" }])).at(-1)).toEqual(end);
  });
});

describe("run_code", () => {
  const at = useServer();

  it("gives 60 seconds by default", async () => {
    await streamAll(at, "RunCodeStream", [{ code: "x" }]);
    expect(at.runtime.runs).toMatchObject([{ code: "x", language: "", timeoutMs: 60_000 }]);
  });

  it("ends with exit code 1 when the sandbox is lost", async () => {
    const frames = await streamAll(at, "RunCodeStream", [{ code: "lose" }]);
    expect(frames.map(({ message }) => Object.keys(message)[0])).toEqual(["stdout", "error", "exitCode", undefined]);
    expect(frames[2]?.message.exitCode).toBe(1);
  });
});

describe("files", () => {
  const at = useServer();

  it("are written and read back, binary and empty ones too", async () => {
    const data = Buffer.from([0, 1, 2, 255]);
    const written = await streamAll(at, "WriteFile", [
      { open: { path: "/a", mode: 0o600 } },
      { data: data.toString("base64") },
      { data: b64("x") },
    ]);
    expect(written).toEqual([{ flags: 0, message: { bytesWritten: "5" } }, end]);
    expect(at.runtime.signals).toEqual([["mode", 0o600]]);
    const read = await streamAll(at, "ReadFile", [{ path: "/a" }]);
    expect(read[0]?.message).toEqual({ data: Buffer.concat([data, Buffer.from("x")]).toString("base64"), eof: true });
    await streamAll(at, "WriteFile", [{ open: { path: "/empty" } }]);
    expect(at.runtime.signals.at(-1)).toEqual(["mode", 0o644]);
    // As a listing tells it.
    await streamAll(at, "WriteFile", [{ open: { path: "/as-listed", mode: 0o100755 } }]);
    expect(at.runtime.signals.at(-1)).toEqual(["mode", 0o755]);
    const refused = await streamAll(at, "WriteFile", [{ open: { path: "/none", mode: 0o200000 } }]);
    expect(refused.at(-1)?.message.error.code).toBe("invalid_argument");
    expect(await streamAll(at, "ReadFile", [{ path: "/empty" }])).toEqual([{ flags: 0, message: { eof: true } }, end]);
  });

  it("are read in chunks of at most 32 KiB, the last of which says so", async () => {
    at.runtime.files.set("/big", new Uint8Array(200_000));
    const frames = (await streamAll(at, "ReadFile", [{ path: "/big" }])).slice(0, -1);
    const sizes = frames.map(({ message }) => Buffer.from(message.data, "base64").length);
    expect(sizes.reduce((sum, size) => sum + size)).toBe(200_000);
    expect(Math.max(...sizes)).toBeLessThanOrEqual(32 * 1024);
    expect(frames.map(({ message }) => Boolean(message.eof))).toEqual([...sizes.slice(1).map(() => false), true]);
  });

  it("are not_found where there are none, also for List", async () => {
    expect((await streamAll(at, "ReadFile", [{ path: "/none" }]))[0]?.message.error.code).toBe("not_found");
    const list = await unary(at, "List", { parent: "/none" });
    expect([list.status, list.json.code]).toEqual([404, "not_found"]);
    expect((await unary(at, "Stat", { path: "/none" })).status).toBe(404);
    expect((await unary(at, "Remove", { path: "/none" })).json).toEqual({});
  });

  it.each(["", "a\0b", "x".repeat(5000)])("refuse the path %j", async (path) => {
    for (const method of ["Stat", "Mkdir", "Remove"]) expect((await unary(at, method, { path })).json.code).toBe("invalid_argument");
    expect((await streamAll(at, "WriteFile", [{ open: { path } }]))[0]?.message.error.code).toBe("invalid_argument");
  });

  it("need open first in WriteFile and Upload, and DOWNLOAD in Archive", async () => {
    expect((await streamAll(at, "WriteFile", [{ data: b64("x") }]))[0]?.message.error.code).toBe("invalid_argument");
    expect((await streamAll(at, "Upload", [{ chunk: b64("x") }]))[0]?.message.error.code).toBe("invalid_argument");
    expect((await streamAll(at, "Upload", [{ open: { dest: "/workspace" } }, { chunk: b64("tar") }]))[0]?.message).toEqual({
      bytesWritten: "3",
    });
    for (const direction of ["UNTAR", 0]) {
      expect((await streamAll(at, "Archive", [{ path: "/workspace", direction }]))[0]?.message.error.code).toBe("invalid_argument");
    }
    expect(await streamAll(at, "Archive", [{ path: "/workspace", direction: "DOWNLOAD" }])).toEqual([
      { flags: 0, message: { eof: true } },
      end,
    ]);
  });
});

describe("processes", () => {
  const at = useServer();

  it("are listed and signalled", async () => {
    expect((await unary(at, "Processes", {})).json).toEqual({ processes: [{ pid: 2, command: "sh", rssBytes: "4096" }] });
    expect((await unary(at, "Signal", { pid: 7, signal: 15 })).json).toEqual({});
    expect(at.runtime.signals).toEqual([["signal", 7, 15, false]]);
    for (const message of [
      { pid: 1, signal: 15 },
      { pid: -1, signal: 15 },
      { pid: 7, signal: 0 },
      { pid: 7, signal: 65 },
    ]) {
      expect((await unary(at, "Signal", message)).json.code).toBe("invalid_argument");
    }
    expect((await unary(at, "Signal", { pid: 2_147_483_647, signal: 15 })).json.code).toBe("not_found");
  });
});

describe("HTTP/2", () => {
  const at = useServer();

  async function withClient<T>(
    run: (client: ReturnType<typeof createClient<typeof pb.Sandbox>>) => Promise<T>,
    kind: "json" | "binary" | "grpc" = "binary",
  ): Promise<T> {
    const sessionManager = new Http2SessionManager(at.url);
    const options = { baseUrl: at.url, httpVersion: "2" as const, sessionManager };
    const transport =
      kind === "grpc" ? createGrpcTransport(options) : createConnectTransport({ ...options, useBinaryFormat: kind === "binary" });
    try {
      return await run(createClient(pb.Sandbox, transport));
    } finally {
      sessionManager.abort();
    }
  }
  const headers = { "X-Sandbox-Id": "sb-1" };

  it.each(["json", "binary", "grpc"] as const)("carries exec in both directions (%s), and half-close ends stdin", async (kind) => {
    const got = await withClient(async (client) => {
      const requests = (async function* () {
        yield create(pb.ExecRequestSchema, { msg: { case: "open", value: { command: "cat" } } });
        yield create(pb.ExecRequestSchema, { msg: { case: "stdin", value: Buffer.from("hello") } });
      })();
      return collect(client.exec(requests, { headers }), ({ msg }) =>
        msg.case === "stdout" ? Buffer.from(msg.value).toString() : msg.case,
      );
    }, kind);
    expect(got).toEqual(["hello", "exit"]);
  });

  it("needs open first in Exec, RunCode and PortForward", async () => {
    await withClient(async (client) => {
      const one = async function* <T>(message: T) {
        yield message;
      };
      const stdin = { case: "stdin", value: new Uint8Array(1) } as const;
      await expect(collect(client.exec(one(create(pb.ExecRequestSchema, { msg: stdin })), { headers }))).rejects.toThrow(
        /invalid_argument/,
      );
      await expect(collect(client.runCode(one(create(pb.RunCodeRequestSchema, { msg: stdin })), { headers }))).rejects.toThrow(
        /invalid_argument/,
      );
      const data = { case: "data", value: new Uint8Array(1) } as const;
      await expect(collect(client.portForward(one(create(pb.FrameSchema, { msg: data })), { headers }))).rejects.toThrow(
        /invalid_argument/,
      );
      const port = create(pb.FrameSchema, { msg: { case: "open", value: { port: 65_536 } } });
      await expect(collect(client.portForward(one(port), { headers }))).rejects.toThrow(/invalid_argument/);
    });
  });

  it("forwards a port both ways", async () => {
    const echoed = await withClient(async (client) => {
      const requests = (async function* () {
        yield create(pb.FrameSchema, { msg: { case: "open", value: { port: 80 } } });
        yield create(pb.FrameSchema, { msg: { case: "data", value: new Uint8Array(40_000).fill(7) } });
        yield create(pb.FrameSchema, { msg: { case: "close", value: true } });
      })();
      return collect(client.portForward(requests, { headers }), ({ msg }) => (msg.case === "data" ? msg.value.length : msg.case));
    });
    expect(echoed).toEqual([16_384, 16_384, 7232, "close"]);
  });

  it("serves the JSON routes too, with bodies of any size", async () => {
    const session = connectHttp2(at.url);
    const request = session.request({ ":method": "PUT", ":path": "/v1/sandboxes/sb-1/files?path=/h2" });
    for (let i = 0; i < 40; i += 1) request.write(Buffer.alloc(50_000));
    request.end();
    let body = "";
    for await (const chunk of request) body += chunk;
    session.close();
    expect(JSON.parse(body)).toEqual({ bytes_written: 2_000_000 });
  });

  it("keeps the session when one upload is refused half-way", async () => {
    const session = connectHttp2(at.url);
    const refused = session.request({ ":method": "PUT", ":path": "/v1/sandboxes/nope/files?path=/h2" });
    refused.write(Buffer.alloc(1000));
    const [headersSeen] = (await once(refused, "response")) as [Record<string, unknown>];
    expect(headersSeen[":status"]).toBe(404);
    refused.resume().end();
    const next = session.request({ ":path": "/v1/health" });
    let body = "";
    for await (const chunk of next) body += chunk;
    session.close();
    expect(JSON.parse(body).status).toBe("ok");
  });
});

describe("binary over HTTP/1.1", () => {
  const at = useServer();
  it("answers in kind", async () => {
    at.runtime.files.set("/a", Buffer.from("hi"));
    const response = await fetch(`${at.url}${rpc}/Stat`, {
      method: "POST",
      headers: { "Content-Type": "application/proto", "X-Sandbox-Id": "sb-1", Connection: "close" },
      body: toBinary(pb.StatRequestSchema, create(pb.StatRequestSchema, { path: "/a" })) as Uint8Array<ArrayBuffer>,
    });
    expect(fromBinary(pb.FileInfoSchema, new Uint8Array(await response.arrayBuffer())).size).toBe(2n);
  });
});
