/** What bad input, clients that misbehave and programs that misbehave get from a server with the real engine. */

import { once } from "node:events";
import { existsSync, readdirSync, readFileSync, realpathSync } from "node:fs";
import { connect, type Socket } from "node:net";
import os from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { catalogue, type ErrorCode, limits } from "@mitos/protocol";
import type { Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { defaultRuntimeDir } from "../../packages/engine/src/drivers/host/layout.ts";
import {
  type Answer,
  b64,
  collect,
  envelope,
  type Frame,
  get,
  parseFrames,
  post,
  send,
  stream,
  text,
  unary,
} from "../../packages/server/src/testing/harness.ts";
import { engineUnderTest } from "../support/engine-under-test.ts";
import { heldBytes } from "../support/held-memory.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { memoryHog } from "../support/memory-hog.ts";
import { until } from "../support/until.ts";

const MiB = 1024 * 1024;

let live: LiveServer;
/** Survives everything that other clients and other sandboxes do in this file. */
let witness: Sandbox;
let slow: SlowClient;
beforeAll(async () => {
  live = await startLiveServer();
  slow = new SlowClient(live.url);
  witness = await live.create();
  await witness.runCode("survived = 'all of it'");
});
afterAll(async () => {
  slow.close();
  await live.close();
});

/** The catalogue's error, whole: a code, what happened, and what to do about it. */
function expectRefusal(answer: Answer, code: ErrorCode): void {
  expect({ status: answer.status, code: answer.json?.error?.code, text: answer.text }).toMatchObject({
    status: catalogue[code].status,
    code,
  });
  expect(answer.json.error).toMatchObject({ message: expect.stringMatching(/./), remediation: expect.stringMatching(/./) });
}

/** A Connect error in a unary answer. */
function expectConnectRefusal(answer: Answer, code: ErrorCode): void {
  expect({ code: answer.json?.code, exact: answer.headers["mitos-error-code"], text: answer.text }).toMatchObject({
    code: catalogue[code].connect,
    exact: code,
  });
}

function lastError(frames: readonly Frame[]): { code: string; message: string } | undefined {
  const last = frames.at(-1);
  expect(last?.flags).toBe(2);
  return last?.message.error;
}

async function output(sandbox: Sandbox, command: string): Promise<string> {
  const { stdout, stderr, exitCode } = await sandbox.exec(command);
  expect(exitCode, stderr).toBe(0);
  return stdout.trim();
}

async function expectWitnessUnharmed(): Promise<void> {
  expect((await witness.runCode("survived")).text).toBe("'all of it'");
  expect(await output(witness, "echo alive")).toBe("alive");
}

function isRunning(sandbox: Sandbox, pattern: string): Promise<boolean> {
  return output(sandbox, `pgrep -c -f '${pattern}' || true`).then((count) => count !== "0");
}

function rawSocket(): Socket {
  const { hostname, port } = new URL(live.url);
  const socket = connect(Number(port), hostname);
  socket.on("error", () => {}); // "close" follows
  return socket;
}

function closeOf(socket: Socket): Promise<void> {
  return new Promise((resolve) => socket.once("close", () => resolve()));
}

/** Sends bytes as they are and resolves with everything that comes back until the server closes, or says nothing for `quietMs`. */
async function rawExchange(bytes: string | Uint8Array, quietMs = 3_000): Promise<string> {
  const socket = rawSocket();
  socket.setTimeout(quietMs, () => socket.destroy());
  let answer = "";
  socket.on("data", (chunk) => {
    answer += chunk.toString("latin1");
  });
  socket.write(bytes);
  await closeOf(socket);
  return answer;
}

/** One that sends its headers byte by byte and never comes to their end. */
class SlowClient {
  readonly #openedAtMs = Date.now();
  /** How long the one that was cut last could go on. */
  cutAfterMs = 0;
  readonly #sockets: Socket[];
  readonly #drip: NodeJS.Timeout;
  #open: number;

  constructor(url: string, count = 20) {
    const { hostname, port } = new URL(url);
    this.#open = count;
    this.#sockets = Array.from({ length: count }, () => {
      const socket = connect(Number(port), hostname);
      socket.on("error", () => {});
      socket.on("data", () => {});
      socket.on("close", () => {
        this.#open -= 1;
        this.cutAfterMs = Date.now() - this.#openedAtMs;
      });
      socket.write("GET /v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ");
      return socket;
    });
    this.#drip = setInterval(() => {
      for (const socket of this.#sockets) if (socket.writable) socket.write("a");
    }, 500);
  }

  get open(): number {
    return this.#open;
  }

  close(): void {
    clearInterval(this.#drip);
    for (const socket of this.#sockets) socket.destroy();
  }
}

type Refused = readonly [what: string, method: string, path: string, body: unknown, code: ErrorCode];

describe("a request that is wrong", () => {
  const create = (change: object) => ({ id: "new", template: "python", ...change });
  const fork = "/v1/sandboxes/WITNESS/fork";
  const files = "/v1/sandboxes/WITNESS/files";
  const processes = "/v1/sandboxes/WITNESS/processes";
  const invalidUtf8 = Buffer.from([0x7b, 0x22, 0x69, 0x64, 0x22, 0x3a, 0x22, 0xff, 0xfe, 0x22, 0x7d]);

  const rows: Refused[] = [
    ["no JSON", "POST", "/v1/fork", Buffer.from("{"), "invalid_json"],
    ["no body", "POST", "/v1/fork", Buffer.alloc(0), "invalid_json"],
    ["a list for an object", "POST", "/v1/fork", [], "invalid_json"],
    ["a null for an object", "POST", "/v1/pause", null, "invalid_json"],
    ["invalid UTF-8", "POST", "/v1/fork", invalidUtf8, "invalid_json"],
    ["100,000 nested lists", "POST", "/v1/fork", Buffer.from("[".repeat(100_000)), "invalid_json"],

    ["no id", "POST", "/v1/fork", { template: "python" }, "invalid_input"],
    ["a number for an id", "POST", "/v1/fork", create({ id: 7 }), "invalid_input"],
    ["an id with a slash", "POST", "/v1/fork", create({ id: "a/b" }), "invalid_input"],
    ["an id with NUL", "POST", "/v1/fork", create({ id: "a\0b" }), "invalid_input"],
    ["an id of dots", "POST", "/v1/fork", create({ id: ".." }), "invalid_input"],
    ["an id of 65 characters", "POST", "/v1/fork", create({ id: "a".repeat(65) }), "invalid_input"],
    ["an id in use", "POST", "/v1/fork", create({ id: "WITNESS" }), "conflict"],
    ["an object for a template", "POST", "/v1/fork", create({ template: {} }), "invalid_input"],
    ["a template as a path", "POST", "/v1/fork", create({ template: "../../etc" }), "invalid_input"],
    ["an unknown template", "POST", "/v1/fork", create({ template: "unheard-of" }), "not_found"],
    ["a live handle of nobody", "POST", "/v1/fork", create({ template: "live:nobody" }), "not_found"],
    ["a live handle that is a path", "POST", "/v1/fork", create({ template: "live:../x" }), "invalid_input"],
    ["a negative time-out", "POST", "/v1/fork", create({ timeout_seconds: -1 }), "invalid_input"],
    ["a time-out of zero", "POST", "/v1/fork", create({ timeout_seconds: 0 }), "invalid_input"],
    ["a broken time-out", "POST", "/v1/fork", create({ timeout_seconds: 1.5 }), "invalid_input"],
    ["a text for a time-out", "POST", "/v1/fork", create({ timeout_seconds: "9" }), "invalid_input"],
    ["a huge time-out", "POST", "/v1/fork", create({ timeout_seconds: 1e300 }), "timeout_too_large"],
    ["a time-out above the ceiling", "POST", "/v1/fork", create({ timeout_seconds: 86_401 }), "timeout_too_large"],
    ["negative memory", "POST", "/v1/fork", create({ resources: { mem_size_mib: -512 } }), "invalid_input"],
    ["huge memory", "POST", "/v1/fork", create({ resources: { mem_size_mib: 1e15 } }), "invalid_input"],
    ["half a processor", "POST", "/v1/fork", create({ resources: { vcpu_count: 0.5 } }), "invalid_input"],
    ["a billion processes", "POST", "/v1/fork", create({ resources: { processes_max: 1e9 } }), "invalid_input"],
    ["a list for the environment", "POST", "/v1/fork", create({ env: ["A=1"] }), "invalid_input"],
    ["a number in the environment", "POST", "/v1/fork", create({ env: { A: 1 } }), "invalid_input"],
    ["a name with = in the environment", "POST", "/v1/fork", create({ env: { "A=B": "1" } }), "invalid_input"],
    ["NUL in a secret", "POST", "/v1/fork", create({ secrets: { A: "\0" } }), "invalid_input"],
    ["a huge environment", "POST", "/v1/fork", create({ env: { A: "a".repeat(limits.envBytesMax + 1) } }), "invalid_input"],
    ["huge metadata", "POST", "/v1/fork", create({ metadata: { A: "a".repeat(2000) } }), "invalid_input"],

    ["a fork of nothing said", "POST", fork, {}, "invalid_input"],
    ["a fork of no child", "POST", fork, { count: 0 }, "invalid_input"],
    ["a fork of minus one", "POST", fork, { count: -1 }, "invalid_input"],
    ["a fork of a billion", "POST", fork, { count: 1e9 }, "invalid_input"],
    ["a fork of a text", "POST", fork, { count: "3" }, "invalid_input"],
    ["a fork with an id twice", "POST", fork, { ids: ["a", "a"] }, "invalid_input"],
    ["a fork with id and ids", "POST", fork, { id: "a", ids: ["b"] }, "invalid_input"],
    ["a fork with the parent's id", "POST", fork, { id: "WITNESS" }, "conflict"],
    ["a fork of nobody", "POST", "/v1/sandboxes/nobody/fork", { count: 1 }, "not_found"],

    ["a pause without a sandbox", "POST", "/v1/pause", {}, "invalid_input"],
    ["a pause of nobody", "POST", "/v1/pause", { sandbox: "nobody" }, "not_found"],
    ["a resume of nobody", "POST", "/v1/resume", { sandbox: "nobody" }, "not_found"],
    ["a deadline of nobody", "POST", "/v1/set_timeout", { sandbox: "nobody", timeout_seconds: 9 }, "not_found"],
    ["a deadline in the past", "POST", "/v1/set_timeout", { sandbox: "WITNESS", timeout_seconds: -9 }, "invalid_input"],
    ["a sandbox that nobody made", "GET", "/v1/sandboxes/nobody", undefined, "not_found"],
    ["a tree of nobody", "GET", "/v1/sandboxes/nobody/tree", undefined, "not_found"],
    ["the end of nobody", "DELETE", "/v1/sandboxes/nobody", undefined, "not_found"],
    ["a slash in an id in a path", "GET", "/v1/sandboxes/a%2Fb", undefined, "not_found"],
    ["dots as an id in a path", "DELETE", "/v1/sandboxes/%2E%2E%2Fx", undefined, "not_found"],
    ["NUL as an id in a path", "GET", "/v1/sandboxes/%00", undefined, "not_found"],
    ["invalid UTF-8 in a path", "GET", "/v1/sandboxes/%ff", undefined, "invalid_input"],
    ["a broken escape in a path", "GET", "/v1/sandboxes/%zz", undefined, "invalid_input"],
    ["the end of a template that nobody made", "DELETE", "/v1/templates/unheard-of", undefined, "not_found"],
    ["a template that is a path", "POST", "/v1/templates", { id: "../x" }, "invalid_input"],
    ["a list of minus one", "GET", "/v1/sandboxes?limit=-1", undefined, "invalid_input"],
    ["a list of an unknown state", "GET", "/v1/sandboxes?state=asleep", undefined, "invalid_input"],
    ["a list from a made-up place", "GET", "/v1/sandboxes?cursor=zzzz", undefined, "invalid_input"],

    ["a file without a path", "GET", files, undefined, "invalid_input"],
    ["a file with two paths", "GET", `${files}?path=/a&path=/b`, undefined, "invalid_input"],
    ["a file with NUL", "GET", `${files}?path=/etc/passwd%00.txt`, undefined, "invalid_input"],
    ["a file with a path of 5,000 bytes", "GET", `${files}?path=/${"a".repeat(5000)}`, undefined, "invalid_input"],
    ["a file with a name of 300 bytes", "GET", `${files}?path=/${"a".repeat(300)}`, undefined, "invalid_input"],
    ["a file with a broken escape", "PUT", `${files}?path=/workspace/%zz`, Buffer.from("x"), "invalid_input"],
    ["a file with invalid UTF-8", "PUT", `${files}?path=/workspace/%ff`, Buffer.from("x"), "invalid_input"],
    ["a file that is missing", "GET", `${files}?path=/workspace/../../none`, undefined, "not_found"],
    ["a file that is a folder", "GET", `${files}?path=/etc`, undefined, "invalid_input"],
    ["a file below a file", "PUT", `${files}?path=/etc/passwd/x`, Buffer.from("x"), "already_exists"],
    ["a file over a folder", "PUT", `${files}?path=/etc`, Buffer.from("x"), "invalid_input"],
    ["a file with no such mode", "PUT", `${files}?path=/workspace/x&mode=999`, Buffer.from("x"), "invalid_input"],
    ["a file of nobody", "GET", "/v1/sandboxes/nobody/files?path=/x", undefined, "not_found"],

    ["a process of nothing", "POST", processes, {}, "invalid_input"],
    ["a process of both kinds", "POST", processes, { command: "true", args: ["true"] }, "invalid_input"],
    ["a process of no words", "POST", processes, { args: [] }, "invalid_input"],
    ["a process with NUL", "POST", processes, { args: ["echo", "a\0b"] }, "invalid_input"],
    ["a process with numbers", "POST", processes, { args: ["sleep", 9] }, "invalid_input"],
    ["a process that is too long", "POST", processes, { command: "a".repeat(limits.commandBytesMax + 1) }, "invalid_input"],
    ["a program that does not exist", "POST", processes, { args: ["/no/such/program"] }, "exec_failed"],
    ["a user who does not exist", "POST", processes, { command: "true", user: "nobody-of-that-name" }, "exec_failed"],
    ["a folder that does not exist", "POST", processes, { command: "true", cwd: "/no/such" }, "exec_failed"],
    ["a terminal without columns", "POST", processes, { command: "true", pty: { cols: 0, rows: 24 } }, "invalid_input"],
    ["the process 1", "POST", `${processes}/1/signal`, { signal: 9 }, "invalid_input"],
    ["the process -1", "POST", `${processes}/-1/signal`, { signal: 9 }, "invalid_input"],
    ["the process 1e99", "POST", `${processes}/1e99/signal`, { signal: 9 }, "invalid_input"],
    ["an unknown process", "POST", `${processes}/999999/signal`, { signal: 9 }, "not_found"],
    ["the signal 0", "POST", `${processes}/999999/signal`, { signal: 0 }, "invalid_input"],
    ["the signal 65", "POST", `${processes}/999999/signal`, { signal: 65 }, "invalid_input"],
    ["input that is not base64", "POST", `${processes}/999999/stdin`, { data: "*" }, "invalid_input"],
    ["input of nobody", "POST", `${processes}/999999/stdin`, { data: b64("x") }, "not_found"],
    ["a resize of nobody", "POST", `${processes}/999999/resize`, { cols: 80, rows: 24 }, "not_found"],
    ["a resize to 70,000", "POST", `${processes}/999999/resize`, { cols: 70_000, rows: 24 }, "invalid_input"],
    ["output of nobody", "GET", `${processes}/999999/output`, undefined, "not_found"],
    ["output from minus one", "GET", `${processes}/999999/output?stdout_from=-1`, undefined, "invalid_input"],
    ["output from 1e300", "GET", `${processes}/999999/output?stdout_from=1e300`, undefined, "invalid_input"],
  ];

  it.each(rows)("%s is refused with its remedy", async (_what, method, path, body, code) => {
    const insert = (text: string) => text.replaceAll("WITNESS", witness.id);
    const bytes = body === undefined || Buffer.isBuffer(body) ? body : insert(JSON.stringify(body));
    expectRefusal(await send(live, method, insert(path), bytes), code);
  });

  it("leaves no sandbox and no process behind, and the others unharmed", async () => {
    expect(live.engine.list().map(({ id }) => id)).toEqual([witness.id]);
    expect((await witness.processes()).filter(({ state }) => state === "running")).toEqual([]);
    await expectWitnessUnharmed();
  });
});

describe("a Connect call that is wrong", () => {
  const to = (id: string) => ({ "X-Sandbox-Id": id });

  it.each<[string, string, unknown, Record<string, string>, ErrorCode]>([
    ["without a sandbox", "Stat", { path: "/" }, { "X-Sandbox-Id": "" }, "invalid_input"],
    ["for an id with a slash", "Stat", { path: "/" }, to("a/b"), "invalid_input"],
    ["for nobody", "Stat", { path: "/" }, to("nobody"), "not_found"],
    ["with NUL in a path", "Stat", { path: "/a\0b" }, {}, "invalid_input"],
    ["for a file that is missing", "Stat", { path: "/workspace/../../../none" }, {}, "not_found"],
    ["for a process that is missing", "Signal", { pid: 999_999, signal: 9 }, {}, "not_found"],
    ["for the process -1", "Signal", { pid: -1, signal: 9 }, {}, "invalid_input"],
    ["for the process 1", "Signal", { pid: 1, signal: 9 }, {}, "invalid_input"],
    ["with the signal 1,000", "Signal", { pid: 9, signal: 1000 }, {}, "invalid_input"],
  ])("%s is refused with its code", async (_what, method, message, headers, code) => {
    expectConnectRefusal(await unary(live, method, message, { ...to(witness.id), ...headers }), code);
  });

  it.each<[string, string, Buffer | string]>([
    ["that is no JSON", "Stat", "{"],
    ["with a number for a path", "Stat", '{"path":7}'],
    ["with a number out of range", "Signal", '{"pid":1e99,"signal":9}'],
    ["with invalid UTF-8", "Stat", Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d])],
  ])("%s is invalid_argument", async (_what, method, body) => {
    const headers = { "Content-Type": "application/json", ...to(witness.id) };
    expect((await send(live, "POST", `/sandbox.v1.Sandbox/${method}`, body, headers)).json).toMatchObject({ code: "invalid_argument" });
  });

  it("with an unknown media type, method or version is refused as HTTP and Connect have it", async () => {
    const path = "/sandbox.v1.Sandbox/Stat";
    const headers = { "Content-Type": "application/json", ...to(witness.id) };
    expect((await send(live, "POST", path, "{}", { ...headers, "Content-Type": "text/html" })).status).toBe(415);
    expect((await send(live, "GET", path, undefined, headers)).status).toBe(405);
    expect((await send(live, "POST", "/sandbox.v1.Sandbox/NoSuch", "{}", headers)).status).toBe(404);
    expect((await send(live, "POST", path, "{}", { ...headers, "Connect-Protocol-Version": "9" })).json.code).toBe("invalid_argument");
    expect((await send(live, "POST", path, "{}", { ...headers, "Connect-Timeout-Ms": "soon" })).json.code).toBe("invalid_argument");
  });

  const length = (bytes: number) => {
    const head = Buffer.alloc(5);
    head.writeUInt32BE(bytes, 1);
    return head;
  };
  it.each<[string, Buffer, string | RegExp]>([
    ["no envelope at all", Buffer.alloc(0), /./],
    ["half the header of an envelope", Buffer.from([0, 0, 0]), /./],
    ["an envelope that ends early", Buffer.concat([length(1000), Buffer.from("{}")]), "invalid_argument"],
    ["an envelope of 4 GiB", Buffer.concat([length(0xffff_ffff), Buffer.from("{}")]), /resource_exhausted|invalid_argument/],
    ["an envelope that is compressed with nothing", envelope("{}", 1), /./],
    ["an envelope of no JSON", envelope("{"), "invalid_argument"],
    ["an envelope of invalid UTF-8", Buffer.concat([length(3), Buffer.from([0x22, 0xff, 0x22])]), "invalid_argument"],
    ["an exec with NUL", envelope({ command: "echo a\0b" }), "invalid_argument"],
    ["an exec in a folder with NUL", envelope({ command: "true", cwd: "/\0" }), "invalid_argument"],
    ["two execs in one call", Buffer.concat([envelope({ command: "true" }), envelope({ command: "true" })]), /./],
  ])("%s ends with an error", async (_what, body, code) => {
    const response = await fetch(`${live.url}/sandbox.v1.Sandbox/ExecStream`, {
      method: "POST",
      headers: { "Content-Type": "application/connect+json", Connection: "close", ...to(witness.id) },
      body,
    });
    const { frames, rest } = parseFrames(Buffer.from(await response.arrayBuffer()));
    expect(rest).toHaveLength(0);
    expect(lastError(frames)).toMatchObject({ code: expect.stringMatching(code), message: expect.stringMatching(/./) });
  });

  it("leaves no process behind, and the others unharmed", async () => {
    expect((await witness.processes()).filter(({ state }) => state === "running")).toEqual([]);
    await expectWitnessUnharmed();
  });
});

describe("bytes that are no request", () => {
  it.each<[string, string | Buffer, RegExp]>([
    ["noise", Buffer.from(Array.from({ length: 4096 }, (_, index) => (index * 167) % 256)), /^HTTP\/1\.1 400/],
    ["a header without an end", `GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ${"a".repeat(20_000)}`, /^HTTP\/1\.1 431/],
    ["a negative length", "POST /v1/fork HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n", /^HTTP\/1\.1 400/],
    ["two lengths", "POST /v1/fork HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", /^HTTP\/1\.1 400/],
    ["NUL in a header", "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: a\0b\r\n\r\n", /^HTTP\/1\.1 400/],
    [
      "a chunk of a length that is none",
      "POST /v1/fork HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      /^HTTP\/1\.1 400/,
    ],
    [
      "noise behind the greeting of HTTP/2",
      Buffer.concat([Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Buffer.alloc(4096, 0xee)]),
      /GOAWAY|^[\s\S]*$/,
    ],
  ])("%s is refused and its connection closed", async (_what, bytes, answer) => {
    expect(await rawExchange(bytes)).toMatch(answer);
    expect((await get(live, "/v1/health")).status).toBe(200);
  });

  it("a body that says it is too large is refused unread", async () => {
    const head = `POST /v1/fork HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: ${limits.jsonBodyBytesMax + 1}\r\nConnection: close\r\n\r\n`;
    const answer = await rawExchange(head, 2000);
    expect(answer).toMatch(/^HTTP\/1\.1 413 /);
    expect(answer).toContain("body_too_large");
  });

  it("a body that turns out to be too large is refused when it is", async () => {
    const socket = rawSocket();
    let answer = "";
    socket.on("data", (chunk) => {
      answer += chunk.toString("latin1");
    });
    socket.write("POST /v1/fork HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    const chunk = Buffer.concat([Buffer.from("100000\r\n"), Buffer.alloc(MiB, 0x20), Buffer.from("\r\n")]);
    for (let sent = 0; sent <= limits.jsonBodyBytesMax && !answer; sent += MiB) {
      if (!socket.write(chunk)) await until("the server reads on or answers", () => !socket.writableNeedDrain || answer !== "");
    }
    await until("the server has answered", () => answer !== "");
    socket.destroy();
    expect(answer).toMatch(/^HTTP\/1\.1 413 /);
    expect(answer).toContain("body_too_large");
  });
});

describe("a WebSocket that is wrong", () => {
  const open = (query: string) => new WebSocket(`${live.url.replace("http", "ws")}/sandbox.v1.Sandbox/Exec${query}`, "connect.sandbox.v1");
  const closeEventOf = (socket: WebSocket) =>
    new Promise<CloseEvent>((resolve) => socket.addEventListener("close", (event) => resolve(event as CloseEvent)));

  it.each<[string, string, ErrorCode]>([
    ["no sandbox", "", "invalid_input"],
    ["an id with a slash", "?sandbox=a/b", "invalid_input"],
    ["nobody", "?sandbox=nobody", "not_found"],
  ])("for %s is refused before it opens", async (_what, query, code) => {
    const key = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    const answer = await rawExchange(`GET /sandbox.v1.Sandbox/Exec${query} HTTP/1.1\r\nHost: 127.0.0.1\r\n${key}\r\n\r\n`);
    expect(answer).toMatch(new RegExp(`^HTTP/1\\.1 ${catalogue[code].status} `));
    expect(JSON.parse(answer.slice(answer.indexOf("{"))).error).toMatchObject({ code, remediation: expect.stringMatching(/./) });
  });

  it.each<[string, string | Buffer, number]>([
    ["text", "ls", 1003],
    ["less than an envelope", Buffer.from([0, 0]), 1003],
    ["an envelope longer than its message", Buffer.from([0, 0, 0, 0, 9, 0x7b, 0x7d]), 1003],
    ["an envelope of no JSON", envelope("{"), 1003],
    ["input before open", envelope({ stdin: b64("ls\n") }), 1003],
    ["an open with a huge time-out", envelope({ open: { timeoutSeconds: 4_000_000 } }), 1011],
    ["a message of more than a MiB", Buffer.alloc(limits.webSocketMessageBytesMax + 1), 1009],
  ])("with %s as its first message is closed with its code", async (_what, message, code) => {
    const socket = open(`?sandbox=${witness.id}`);
    const closed = closeEventOf(socket);
    await new Promise((resolve) => socket.addEventListener("open", resolve));
    socket.send(message);
    expect((await closed).code).toBe(code);
  });

  it("with a frame that no WebSocket sends is closed, and its shell with it", async () => {
    const socket = rawSocket();
    const key = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    socket.write(`GET /sandbox.v1.Sandbox/Exec?sandbox=${witness.id} HTTP/1.1\r\nHost: 127.0.0.1\r\n${key}\r\n\r\n`);
    await once(socket, "data");
    const message = envelope({ open: { command: "sleep 711" } });
    // A frame as it must be: binary, masked with zeros. Then one that is not masked and of an unknown kind.
    socket.write(Buffer.concat([Buffer.from([0x82, 0x80 | message.length, 0, 0, 0, 0]), message]));
    await until("the program runs", () => isRunning(witness, "^sleep 711"));
    const closed = closeOf(socket);
    socket.on("data", () => {});
    socket.write(Buffer.from([0xff, 0x05, 1, 2, 3, 4, 5]));
    await closed;
    await until("the program has ended", async () => !(await isRunning(witness, "^sleep 711")));
  });

  it("leaves the others unharmed", expectWitnessUnharmed);
});

describe("a path with dots", () => {
  it("stays inside the sandbox, whichever way it is sent", async () => {
    const name = `mitos-escape-${process.pid}`;
    const path = `/workspace/${"../".repeat(30)}tmp/${name}`;
    const url = `/v1/sandboxes/${witness.id}/files?path=${encodeURIComponent(path)}`;
    expect((await send(live, "PUT", url, "inside")).status).toBe(200);
    expect(await output(witness, `cat /tmp/${name}`)).toBe("inside");
    expect((await get(live, url)).text).toBe("inside");
    expect(existsSync(`/tmp/${name}`)).toBe(false);
  });

  it("through a link of the sandbox's own ends inside the sandbox", async () => {
    await output(witness, "ln -s /../../../../proc/1/root/tmp out; ln -s loop loop");
    const name = `mitos-link-${process.pid}`;
    const answer = await send(live, "PUT", `/v1/sandboxes/${witness.id}/files?path=/workspace/out/${name}`, "inside");
    expect([200, 400, 403, 409]).toContain(answer.status);
    expect(existsSync(`/tmp/${name}`)).toBe(false);
    const loop = await get(live, `/v1/sandboxes/${witness.id}/files?path=/workspace/loop`);
    expect(loop.status).toBeGreaterThanOrEqual(400);
    expect(loop.json.error.remediation).toMatch(/./);
  });
});

describe("a sandbox in the wrong state", () => {
  const doors: [what: string, door: (id: string) => Promise<Answer>][] = [
    ["a file", (id) => get(live, `/v1/sandboxes/${id}/files?path=/etc/passwd`)],
    ["the processes", (id) => get(live, `/v1/sandboxes/${id}/processes`)],
    ["a new process", (id) => post(live, `/v1/sandboxes/${id}/processes`, { command: "true" })],
    ["output", (id) => get(live, `/v1/sandboxes/${id}/processes/99/output`)],
  ];
  const stateDoors: [what: string, door: (id: string) => Promise<Answer>][] = [
    ["a fork", (id) => post(live, `/v1/sandboxes/${id}/fork`, { count: 1 })],
    ["a pause", (id) => post(live, "/v1/pause", { sandbox: id })],
    ["a resume", (id) => post(live, "/v1/resume", { sandbox: id })],
    ["a deadline", (id) => post(live, "/v1/set_timeout", { sandbox: id, timeout_seconds: 60 })],
  ];

  async function expectRefusedEverywhere(id: string, code: ErrorCode, which = [...doors, ...stateDoors]): Promise<void> {
    for (const [, door] of which) expectRefusal(await door(id), code);
    const headers = { "X-Sandbox-Id": id };
    expectConnectRefusal(await unary(live, "Stat", { path: "/" }, headers), code);
    for (const [method, message] of [
      ["ExecStream", { command: "true" }],
      ["RunCodeStream", { code: "1" }],
      ["ReadFile", { path: "/etc/passwd" }],
    ] as const) {
      const frames = await collect((await stream(live, method, [message], { headers })).frames);
      expect(lastError(frames)?.code).toBe(catalogue[code].connect);
    }
  }

  it("that is paused refuses what needs it running, and runs on after resume", async () => {
    await using sandbox = await live.create();
    await sandbox.pause();
    await expectRefusedEverywhere(sandbox.id, "sandbox_not_running", doors);
    await sandbox.resume();
    expect(await output(sandbox, "echo on")).toBe("on");
  });

  it("that has ended says so at every door", async () => {
    const sandbox = await live.create();
    await sandbox.terminate();
    await expectRefusedEverywhere(sandbox.id, "idle_timeout");
    expectRefusal(await get(live, `/v1/sandboxes/${sandbox.id}`), "idle_timeout");
  });

  it("that used too much memory was ended for it, says so at every door, and can be deleted", async () => {
    const sandbox = await live.createWithMemory(128);
    const hog = await sandbox.exec(memoryHog).catch((error: unknown) => error);
    expect(hog).toMatchObject({ code: "oom_killed", remediation: expect.stringContaining("memory") });
    const rows = (await get(live, "/v1/sandboxes?state=failed")).json;
    expect(rows).toMatchObject([{ id: sandbox.id, state: "failed" }]);
    await expectRefusedEverywhere(sandbox.id, "oom_killed");
    const refused = await get(live, `/v1/sandboxes/${sandbox.id}`);
    expectRefusal(refused, "oom_killed");
    expect(refused.json.error.cause).toContain("128 MiB");
    expect((await send(live, "DELETE", `/v1/sandboxes/${sandbox.id}`)).status).toBe(200);
    await expectWitnessUnharmed();
  });

  it("that filled its disk was ended for it: what is written counts as memory", async ({ skip }) => {
    skip(engineUnderTest !== "gvisor", `not run on ${engineUnderTest}: what is written lies on a disk of its own, not in memory`);
    const sandbox = await live.createWithMemory(128);
    await sandbox.exec("cat /dev/zero > /workspace/full").catch(() => undefined);
    await until("its end is known", () => live.engine.list({ state: "failed" }).some(({ id }) => id === sandbox.id));
    expectRefusal(await get(live, `/v1/sandboxes/${sandbox.id}`), "oom_killed");
    await sandbox.terminate();
    await expectWitnessUnharmed();
  });
});

describe("a program that misbehaves", () => {
  it("and ignores SIGTERM is killed at its time-out, with what it has started", async () => {
    const stubborn = "trap '' TERM INT HUP; sleep 721 & while :; do sleep 0.1; done";
    await expect(witness.exec(stubborn, { timeoutSeconds: 1 })).rejects.toMatchObject({ code: "exec_timeout" });
    expect(await isRunning(witness, "^sleep 721")).toBe(false);
  });

  it("and prints 100 MB at once is read to the last byte", async () => {
    let bytes = 0;
    for await (const event of witness.execStream("head -c 100000000 /dev/zero", { timeoutSeconds: 100 })) {
      if (event.type === "stdout") bytes += event.data.length;
      if (event.type === "exit") expect(event.exitCode).toBe(0);
    }
    expect(bytes).toBe(100_000_000);
  });
});

describe("a client that misbehaves", () => {
  /** What the files of a folder's file system take, removed ones that are open among them. */
  function usedKiB(sandbox: Sandbox, folder: string): Promise<number> {
    return output(sandbox, `df --output=used ${folder} | tail -1`).then(Number);
  }

  /** An exec over a socket that the test reads, or does not. */
  function openExec(sandbox: Sandbox, command: string): Socket {
    const body = envelope({ command, timeoutSeconds: 600 });
    const socket = rawSocket();
    const head = [
      "POST /sandbox.v1.Sandbox/ExecStream HTTP/1.1",
      "Host: 127.0.0.1",
      `X-Sandbox-Id: ${sandbox.id}`,
      "Content-Type: application/connect+json",
      `Content-Length: ${body.length}`,
    ];
    socket.write(Buffer.concat([Buffer.from(`${head.join("\r\n")}\r\n\r\n`), body]));
    return socket;
  }

  it("and never reads holds up its own program only, and not the server's memory", async () => {
    const before = heldBytes();
    const command = "n=0; while [ $n -lt 1000 ]; do head -c 100000 /dev/zero; n=$((n+1)); echo $n > progress-$$; done";
    const sockets = Array.from({ length: 3 }, () => openExec(witness, command).pause());
    // Everything on the way is full when none of the programs gets on.
    const progress = async () => (await output(witness, "cat progress-* 2>/dev/null || true")).split("\n");
    let last: string[] = [];
    await until("all are held up", async () => {
      const now = await progress();
      const areHeldUp = now.length === sockets.length && now.join() === last.join();
      last = now;
      if (!areHeldUp) await sleep(300);
      return areHeldUp;
    });
    for (const count of last) expect(Number(count)).toBeLessThan(300);
    await expectWitnessUnharmed();
    expect(heldBytes() - before).toBeLessThan(64 * MiB);
    for (const socket of sockets) socket.destroy();
    await until("the programs have ended", async () => !(await isRunning(witness, "[n] -lt 1000")));
  });

  it("and leaves during an exec takes the program with it", async () => {
    const socket = openExec(witness, "sleep 741 & sleep 741");
    await until("the program runs", () => isRunning(witness, "^sleep 741"));
    socket.destroy();
    await until("the program has ended", async () => !(await isRunning(witness, "^sleep 741")));
  });

  it("and leaves during run_code interrupts the code, and the state stays", async () => {
    const client = new AbortController();
    const code = "import time\nsurvived_too = 1\nopen('/workspace/began', 'w').close()\ntime.sleep(751)";
    const running = witness.runCode(code, { signal: client.signal, timeoutSeconds: 600 }).catch((error: unknown) => error);
    await until("the code runs", () => witness.files.exists("/workspace/began"));
    client.abort();
    await running;
    expect((await witness.runCode("survived, survived_too")).text).toBe("('all of it', 1)");
  });

  it("and leaves during an upload leaves the file as it was, and no part of the new one", async () => {
    await witness.files.write("/workspace/kept", "as it was");
    const usedBefore = await usedKiB(witness, "/tmp");
    const socket = rawSocket();
    const head = ["Host: 127.0.0.1", "Content-Length: 10000000"].join("\r\n");
    socket.write(`PUT /v1/sandboxes/${witness.id}/files?path=/workspace/kept HTTP/1.1\r\n${head}\r\n\r\n`);
    socket.write(Buffer.alloc(3_000_000, 0x61));
    const isUnderWay = async () => (await usedKiB(witness, "/tmp")) > usedBefore + 1_500;
    await until("the upload is under way", isUnderWay);
    socket.destroy();
    await until("nothing of it is left", async () => !(await isUnderWay()));
    expect(await output(witness, "cat kept")).toBe("as it was");
  });

  it("and leaves during a create, a fork or a pause leaves something whole or nothing", async () => {
    const ask = (path: string, body: object) => {
      const text = JSON.stringify(body);
      const socket = rawSocket();
      socket.write(`POST ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: ${text.length}\r\n\r\n${text}`);
      return socket;
    };
    const busy = () => live.engine.list().some(({ state }) => ["starting", "pausing", "resuming"].includes(state));
    ask("/v1/fork", { id: "left-create", template: "python" }).destroySoon();
    for (const [path, body] of [
      ["/v1/fork", { id: "left", template: "python" }],
      [`/v1/sandboxes/${witness.id}/fork`, { ids: ["left-1", "left-2"] }],
    ] as const) {
      const known = live.engine.list().length;
      const socket = ask(path, body);
      await until("it has begun", () => live.engine.list().length > known);
      socket.destroy();
      await until("it is over", () => !busy());
    }
    const left = live.engine.list().filter(({ id }) => id !== witness.id);
    for (const { id, state } of left) {
      expect(state).toBe("running");
      const frames = await collect(
        (await stream(live, "ExecStream", [{ command: "echo whole" }], { headers: { "X-Sandbox-Id": id } })).frames,
      );
      expect(text(frames, "stdout")).toBe("whole\n");
    }
    const paused = ask("/v1/pause", { sandbox: "left" });
    await until("it pauses", () => live.engine.get("left" as never).state !== "running");
    paused.destroy();
    await until("it is over", () => !busy());
    expect(live.engine.get("left" as never).state).toBe("paused");
    for (const { id } of left) expect((await send(live, "DELETE", `/v1/sandboxes/${id}`)).status).toBe(200);
    await expectWitnessUnharmed();
  });
});

describe("a fork that cannot be completed", () => {
  interface Restore {
    readonly pid: number;
    /** The child's folder on the host. */
    readonly dir: string;
  }

  let runtimeDir: string;
  beforeAll(async () => {
    runtimeDir = await defaultRuntimeDir(live.dataDir);
  });

  /** The processes that restore this server's machines now. */
  function runscRestores(): Restore[] {
    return readdirSync("/proc").flatMap((name) => {
      if (!/^\d+$/.test(name)) return [];
      try {
        const words = readFileSync(`/proc/${name}/cmdline`, "utf8").split("\0");
        const dir = words.find((word) => word.startsWith("--bundle="))?.slice("--bundle=".length);
        return dir?.startsWith(`${runtimeDir}/`) && words.includes("restore") ? [{ pid: Number(name), dir }] : [];
      } catch {
        return []; // It has ended meanwhile.
      }
    });
  }

  /** A monitor gets the name of its machine when it begins to restore it. @returns those of all machines */
  function namedMonitors(): Restore[] {
    return readdirSync(path.join(runtimeDir, "ids")).flatMap((name) => {
      try {
        const dir = realpathSync(path.join(runtimeDir, "ids", name));
        return [{ pid: Number(readFileSync(path.join(dir, "vmm.pid"), "utf8")), dir }];
      } catch {
        return []; // It has ended meanwhile.
      }
    });
  }

  const restores = engineUnderTest === "microvm" ? namedMonitors : runscRestores;

  /** Waits for the restore of the k-th child and lets the test do something to it. */
  async function atChild(k: number, harm: (restore: Restore) => void): Promise<void> {
    const known = new Set(restores().map(({ dir }) => dir));
    const seen = new Set<string>();
    await until(`child ${k} is being restored`, () => {
      for (const restore of restores()) {
        if (known.has(restore.dir)) continue;
        seen.add(restore.dir);
        if (seen.size < k) continue;
        harm(restore);
        return true;
      }
      return false;
    });
  }

  it.each<[string, (restore: Restore) => void]>([
    ["whose restore is killed", ({ pid }) => process.kill(pid, "SIGKILL")],
    ["whose shim is killed", ({ dir }) => process.kill(Number(readFileSync(path.join(dir, "shim.pid"), "utf8")), "SIGKILL")],
  ])("because of a third child %s leaves no child, and its parent runs on", async (_what, harm) => {
    const ids = ["k-1", "k-2", "k-3", "k-4", "k-5"];
    const before = live.engine.list().map(({ id }) => id);
    const [answer] = await Promise.all([post(live, `/v1/sandboxes/${witness.id}/fork`, { ids }), atChild(3, harm)]);
    expect(answer.status, answer.text).toBeGreaterThanOrEqual(500);
    expect(answer.json.error).toMatchObject({
      code: expect.stringMatching(/^(internal|unavailable)$/),
      remediation: expect.stringMatching(/./),
    });
    expect(live.engine.list().map(({ id }) => id)).toEqual(before);
    await expectWitnessUnharmed();
  });

  it("takes none of the ids: the same fork then works", async () => {
    const answer = await post(live, `/v1/sandboxes/${witness.id}/fork`, { ids: ["k-1", "k-2", "k-3"] });
    expect(answer.status, answer.text).toBe(200);
    for (const id of ["k-1", "k-2", "k-3"]) expect((await send(live, "DELETE", `/v1/sandboxes/${id}`)).status).toBe(200);
  });

  it("because memory would not suffice is refused before anything happens, and says when to come again", async () => {
    const shareMiB = Math.ceil(os.totalmem() / MiB / limits.forkCountMax);
    // Linux gives half of the memory to /dev/shm, whose files count as memory on every engine.
    await using parent = await live.createWithMemory(2 * shareMiB + 256);
    await output(parent, `head -c ${shareMiB * MiB} /dev/urandom > /dev/shm/ballast`);
    const before = live.engine.list().map(({ id }) => id);
    const answer = await post(live, `/v1/sandboxes/${parent.id}/fork`, { count: limits.forkCountMax });
    expectRefusal(answer, "quota_exceeded");
    expect(Number(answer.headers["retry-after"])).toBeGreaterThan(0);
    expect(live.engine.list().map(({ id }) => id)).toEqual(before);
    expect(await output(parent, "echo on")).toBe("on");
  });
});

describe("the end of a sandbox in which much goes on", () => {
  const ended = { code: expect.stringMatching(/^(idle_timeout|failed_precondition|not_found|sandbox_not_running)$/) };

  it("ends exec, terminal, process output, run_code and fork with its reason, and leaves no child half made", async () => {
    const sandbox = await live.create();
    const others = live.engine.list().length;
    const exec = sandbox.exec("touch exec-began; sleep 761").catch((error: unknown) => error);
    const code = sandbox.runCode("open('/workspace/code-began', 'w').close()\nwhile True: pass").catch((error: unknown) => error);
    const pty = await sandbox.createPty(() => {});
    const terminal = pty.failure();
    await until("all goes on", async () => (await sandbox.files.exists("exec-began")) && (await sandbox.files.exists("code-began")));
    const fork = sandbox.fork(3).catch((error: unknown) => error);
    await until("the fork goes on", () => live.engine.list().length > others);
    await sandbox.terminate({ subtree: true });
    for (const failed of await Promise.all([exec, code, terminal])) expect(failed).toMatchObject(ended);
    await fork;
    await sandbox.terminate({ subtree: true });
    expect(live.engine.list().map(({ id }) => id)).toEqual([witness.id]);
  });

  it("wins over a pause that is under way", async () => {
    const sandbox = await live.create();
    const pause = sandbox.pause().catch((error: unknown) => error);
    await until("it pauses", () => live.engine.list({ state: "running" }).length === 1);
    await sandbox.terminate();
    await pause;
    expect(live.engine.list().map(({ id }) => id)).toEqual([witness.id]);
    expectRefusal(await post(live, "/v1/resume", { sandbox: sandbox.id }), "idle_timeout");
  });

  it("thirty times over leaves no descriptor behind", async () => {
    const descriptors = () => readdirSync("/proc/self/fd").length;
    const before = descriptors();
    for (let round = 0; round < 10; round += 1) {
      const sandboxes = await Promise.all([live.create(), live.create(), live.create()]);
      await Promise.all(sandboxes.map((sandbox) => sandbox.terminate()));
    }
    expect(live.engine.list().map(({ id }) => id)).toEqual([witness.id]);
    // Two connections for each machine, ready or running; those of `fetch` come and go.
    await until("the descriptors are back", () => descriptors() <= before + 8);
  });
});

describe("a stream that is open while its sandbox pauses", () => {
  it("ends with its reason, and goes on after resume without a lost or repeated byte, five times", async () => {
    await using sandbox = await live.create();
    const pid = await sandbox.execBackground("i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done").started;
    let read = "";
    for (let round = 0; round < 5; round += 1) {
      const exec = sandbox.exec("sleep 771").catch((error: unknown) => error);
      const url = `${live.url}/v1/sandboxes/${sandbox.id}/processes/${pid}/output?follow=true&stdout_from=${read.length}`;
      const response = await fetch(url, { headers: { Connection: "close" } });
      const atStart = read.length;
      let pausing: Promise<void> | undefined;
      let rest = "";
      let last: { error?: { code: string } } = {};
      for await (const chunk of response.body ?? []) {
        const lines = (rest + Buffer.from(chunk).toString()).split("\n");
        rest = lines.pop() ?? "";
        for (const line of lines) {
          last = JSON.parse(line);
          if ("data" in last) read += Buffer.from(String(last.data), "base64").toString();
        }
        if (read.length > atStart) pausing ??= sandbox.pause();
      }
      expect(last.error?.code).toBe("sandbox_not_running");
      await pausing;
      expect(await exec).toMatchObject({ code: expect.stringMatching(/^(sandbox_not_running|failed_precondition)$/) });
      await sandbox.resume();
    }
    const counted = read.trim().split("\n");
    expect(counted).toEqual(counted.map((_, index) => String(index + 1)));
    expect(counted.length).toBeGreaterThanOrEqual(5);
  });
});

describe("a client that sends its headers byte by byte", () => {
  it("is cut, and nobody waits for it", async () => {
    expect((await get(live, "/v1/health")).status).toBe(200);
    await until("all of them are cut", () => slow.open === 0, 60_000);
    expect(slow.cutAfterMs).toBeLessThan(60_000);
  });
});
