/** Every generation of clients at once on one port and one sandbox, byte by byte as they send it. */

import { once } from "node:events";
import { type ClientHttp2Session, connect as connectHttp2 } from "node:http2";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { sandbox as pb } from "@mitos/protocol/proto";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";

let live: LiveServer;
let http2: ClientHttp2Session;
let sandbox: string;
beforeAll(async () => {
  live = await startLiveServer();
  sandbox = (await live.create()).id;
  http2 = connectHttp2(live.url);
});
afterAll(async () => {
  http2?.close();
  await live?.close();
});

async function post(path: string, body: object): Promise<{ status: number; text: string }> {
  const answer = await fetch(live.url + path, { method: "POST", body: JSON.stringify(body) });
  return { status: answer.status, text: await answer.text() };
}

const base64 = (text: string) => Buffer.from(text).toString("base64");
const decoded = (value: string | undefined) => Buffer.from(value ?? "", "base64").toString();

function envelope(payload: Uint8Array | string): Buffer {
  const bytes = Buffer.from(payload as Uint8Array);
  const head = Buffer.alloc(5);
  head.writeUInt32BE(bytes.length, 1);
  return Buffer.concat([head, bytes]);
}

function envelopes(body: Buffer): { flags: number; payload: Buffer }[] {
  const found = [];
  for (let at = 0; at < body.length; ) {
    const end = at + 5 + body.readUInt32BE(at + 1);
    found.push({ flags: body[at]!, payload: body.subarray(at + 5, end) });
    at = end;
  }
  return found;
}

async function connectRpc(contentType: string, payload: Uint8Array | string): Promise<{ flags: number; payload: Buffer }[]> {
  const answer = await fetch(`${live.url}/sandbox.v1.Sandbox/ExecStream`, {
    method: "POST",
    headers: { "Content-Type": contentType, "X-Sandbox-Id": sandbox },
    body: envelope(payload),
  });
  return envelopes(Buffer.from(await answer.arrayBuffer()));
}

async function overHttp2(path: string, headers: Record<string, string>, body: Uint8Array | string): Promise<Buffer> {
  const stream = http2.request({ ":method": "POST", ":path": path, ...headers });
  stream.end(body);
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

/** A session over a WebSocket from its first message to its end. */
async function webSocket(path: string, subprotocol: string, messages: (string | Uint8Array)[]): Promise<(string | Buffer)[]> {
  const socket = new WebSocket(`${live.url.replace("http", "ws")}${path}`, subprotocol);
  socket.binaryType = "arraybuffer";
  const received: (string | Buffer)[] = [];
  socket.addEventListener("message", ({ data }) => received.push(typeof data === "string" ? data : Buffer.from(data as ArrayBuffer)));
  const closed = once(socket, "close");
  await once(socket, "open");
  for (const message of messages) socket.send(message as string);
  await closed;
  return received;
}

/** What each generation does to run `command`, and what it gets as standard output. */
const generations: Record<string, (command: string) => Promise<string>> = {
  "0.1.0: exec": async (command) => JSON.parse((await post("/v1/exec", { sandbox, command })).text).stdout,

  "0.1.0: exec as lines": async (command) => {
    const lines = (await post("/v1/exec/stream", { sandbox, command })).text
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines.at(-1)).toMatchObject({ exit_code: 0, error: "" });
    return lines.map((line) => decoded(line.data)).join("");
  },

  "0.1.0: run_code": async (command) => {
    const code = `import subprocess; print(subprocess.run(${JSON.stringify(command)}, shell=True, capture_output=True, text=True).stdout, end="")`;
    const { text } = await post("/v1/run_code/stream", { sandbox, code });
    const lines = text
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines.at(-1)).toEqual({ kind: "exit", exit_code: 0 });
    return lines.map((line) => decoded(line.stdout)).join("");
  },

  "0.1.0: terminal": async (command) => {
    const input = `stty -echo; PS1=; echo begin; ${command}; exit\n`;
    const received = await webSocket(`/v1/pty?sandbox=${sandbox}`, "mitos.pty.v1", [
      JSON.stringify({ kind: "input", data: base64(input) }),
    ]);
    const lines = received.map((line) => JSON.parse(line as string));
    expect(lines.at(-1)).toEqual({ kind: "exit", exit_code: 0 });
    return ofTerminal(lines.map((line) => decoded(line.data)).join(""));
  },

  "Connect with JSON": async (command) => {
    const frames = await connectRpc("application/connect+json", JSON.stringify({ command }));
    expect(frames.at(-1)).toEqual({ flags: 2, payload: Buffer.from("{}") });
    return frames.map(({ payload }) => decoded(JSON.parse(payload.toString()).stdout)).join("");
  },

  "Connect with protobuf": async (command) => {
    const request = toBinary(pb.ExecStreamRequestSchema, create(pb.ExecStreamRequestSchema, { command }));
    const frames = await connectRpc("application/connect+proto", request);
    return frames
      .filter(({ flags }) => flags === 0)
      .map(({ payload }) => fromBinary(pb.ExecResponseSchema, payload).msg)
      .map((msg) => (msg.case === "stdout" ? Buffer.from(msg.value).toString() : ""))
      .join("");
  },

  "WebSocket Exec": async (command) => {
    const messages = [{ open: { command: "sh" } }, { stdin: base64(`${command}\nexit\n`) }].map((message) =>
      envelope(JSON.stringify(message)),
    );
    const received = await webSocket(`/sandbox.v1.Sandbox/Exec?sandbox=${sandbox}`, "connect.sandbox.v1", messages);
    const frames = received.flatMap((message) => envelopes(message as Buffer));
    expect(frames.at(-1)?.flags).toBe(2);
    return frames.map(({ payload }) => decoded(JSON.parse(payload.toString()).stdout)).join("");
  },

  "0.1.0 over HTTP/2": async (command) =>
    JSON.parse((await overHttp2("/v1/exec", {}, JSON.stringify({ sandbox, command }))).toString()).stdout,

  "Connect in both directions over HTTP/2": async (command) => {
    const messages = [{ open: { command: "sh" } }, { stdin: base64(command) }].map((message) => envelope(JSON.stringify(message)));
    const headers = { "content-type": "application/connect+json", "x-sandbox-id": sandbox };
    const frames = envelopes(await overHttp2("/sandbox.v1.Sandbox/Exec", headers, Buffer.concat(messages)));
    return frames.map(({ payload }) => decoded(JSON.parse(payload.toString()).stdout)).join("");
  },
};

/** Behind the line that marks the beginning, as a terminal ends lines. */
function ofTerminal(shown: string): string {
  return shown.slice(shown.lastIndexOf("begin\r\n") + "begin\r\n".length).replaceAll("\r\n", "\n");
}

const names = Object.keys(generations);

describe("on one port and one sandbox", () => {
  it.each(names)("%s runs a program", async (name) => {
    expect(await generations[name]!("echo 'häß €'")).toBe("häß €\n");
  });

  it("all of them at once, each getting its own answer", async () => {
    const rounds = [1, 2];
    const runs = rounds.flatMap((round) => names.map((name, index) => ({ name, mark: `mark-${round}-${index}` })));
    const answers = await Promise.all(
      runs.map(({ name, mark }) => generations[name]!(`for i in 1 2 3; do echo ${mark}-$i; done; touch /workspace/${mark}`)),
    );
    expect(answers).toEqual(runs.map(({ mark }) => `${mark}-1\n${mark}-2\n${mark}-3\n`));
    const { entries } = JSON.parse((await post("/v1/files/list", { sandbox, path: "/workspace" })).text);
    expect(entries.map((entry: { name: string }) => entry.name).sort()).toEqual(runs.map(({ mark }) => mark).sort());
  });

  it("a program of one generation is seen and ended by another", async () => {
    const abort = new AbortController();
    const running = await fetch(`${live.url}/v1/exec/stream`, {
      method: "POST",
      body: JSON.stringify({ sandbox, command: "echo ready; exec sleep 4321" }),
      signal: abort.signal,
    });
    await running.body!.getReader().read();
    const count = "pgrep -c -x -f 'sleep 4321' || true";
    expect(await generations["Connect with JSON"]!(count)).toBe("1\n");
    abort.abort();
    await expect.poll(() => generations["Connect with JSON"]!(count), { timeout: 20_000 }).toBe("0\n");
  });

  it("vitals of the sandbox are those of the sandbox", async () => {
    const { sandbox_id, vitals } = JSON.parse((await post("/v1/vitals", { sandbox })).text);
    expect(sandbox_id).toBe(sandbox);
    expect(vitals.process_count).toBeGreaterThan(0);
    expect(vitals.mem_used_kb).toBeGreaterThan(0);
    expect(vitals.mem_total_kb).toBe(vitals.mem_used_kb + vitals.mem_available_kb);
  });
});
