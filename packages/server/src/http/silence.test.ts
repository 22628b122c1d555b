/** Clients that begin something and then say nothing, and clients that leave or read nothing, at every door. */

import { once } from "node:events";
import { connect as connectHttp2 } from "node:http2";
import { connect, type Socket } from "node:net";
import { describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { envelope, get, useServer } from "../testing/harness.ts";

const at = useServer({ bodySilenceMs: 100 });
const MiB = 1024 * 1024;

function dial(): Socket {
  return connect(Number(new URL(at.url).port), "127.0.0.1").on("error", () => {});
}

function head(method: string, target: string, headers: Record<string, string> = {}): string {
  const all = { Host: new URL(at.url).host, ...headers };
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}`);
  return `${[`${method} ${target} HTTP/1.1`, ...lines].join("\r\n")}\r\n\r\n`;
}

async function until(what: string, holds: () => boolean): Promise<void> {
  await expect.poll(holds, { timeout: 10_000, message: what }).toBe(true);
}

/** Until a call that begins now has been given up for its silence: by the same clock, an earlier one would have been before it. */
async function aSilenceLater(): Promise<void> {
  const socket = dial();
  let answer = "";
  socket.on("data", (chunk) => {
    answer += chunk;
  });
  socket.write(head("POST", rpc("List"), { ...unaryHeaders, "Content-Length": "1000" }));
  await until("a silent call is refused", () => answer.includes("no byte of the request's body came"));
  socket.destroy();
}

const rpc = (name: string) => `/sandbox.v1.Sandbox/${name}`;
const unaryHeaders = { "Content-Type": "application/json", "X-Sandbox-Id": "sb-1" };
const streamHeaders = { "Content-Type": "application/connect+json", "X-Sandbox-Id": "sb-1" };

describe("a request whose body does not come", () => {
  it.each([
    ["List", unaryHeaders],
    ["Stat", unaryHeaders],
    ["Signal", unaryHeaders],
    ["ExecStream", streamHeaders],
    ["RunCodeStream", streamHeaders],
    ["ReadFile", streamHeaders],
    ["Archive", streamHeaders],
    ["Watch", streamHeaders],
    ["Vitals", streamHeaders],
    ["WriteFile", streamHeaders],
    ["Upload", streamHeaders],
  ])("is refused by %s, whether nothing or a part of it has come", async (name, headers) => {
    for (const part of ["", "{", "\0\0\0\0\u0020{"]) {
      const socket = dial();
      let answer = "";
      socket.on("data", (chunk) => {
        answer += chunk;
      });
      socket.write(head("POST", rpc(name), { ...headers, "Content-Length": "1000" }) + part);
      await until("it is refused", () => answer.includes("invalid_argument"));
      expect(answer).toContain("no byte of the request's body came for 0.1 s");
      socket.destroy();
    }
  });

  it.each(["Exec", "RunCode", "PortForward"])("is refused by %s, which needs HTTP/2", async (name) => {
    const session = connectHttp2(at.url);
    const stream = session.request({
      ":method": "POST",
      ":path": rpc(name),
      "content-type": "application/connect+json",
      "x-sandbox-id": "sb-1",
    });
    let answer = "";
    stream.on("data", (chunk) => {
      answer += chunk;
    });
    stream.on("error", () => {});
    await until("it is refused", () => answer.includes("invalid_argument"));
    session.destroy();
  });

  it("goes on for as long as it likes when what it was to begin has begun", async () => {
    const session = connectHttp2(at.url);
    const stream = session.request({
      ":method": "POST",
      ":path": rpc("Exec"),
      "content-type": "application/connect+json",
      "x-sandbox-id": "sb-1",
    });
    let answer = "";
    stream.on("data", (chunk) => {
      answer += chunk;
    });
    stream.write(envelope({ open: { command: "cat" } }));
    await until("it runs", () => at.runtime.starts.length === 1);
    await aSilenceLater();
    stream.end(envelope({ stdin: Buffer.from("late").toString("base64") }));
    await until("it has answered", () => answer.includes("exitCode") || answer.includes("exit"));
    expect(answer).not.toContain('error":{');
    expect(at.runtime.stdin).toEqual(["late"]);
    session.destroy();
  });

  it("is waited for while a slow sandbox takes what has come", async () => {
    const socket = dial();
    let answer = "";
    socket.on("data", (chunk) => {
      answer += chunk;
    });
    const open = envelope({ open: { path: "/slow" } });
    const data = envelope({ data: Buffer.from("x").toString("base64") });
    socket.write(head("POST", rpc("WriteFile"), { ...streamHeaders, "Content-Length": String(open.length + 2 * data.length) }));
    socket.write(Buffer.concat([open, data, data]));
    await until("the sandbox has some of it", () => at.runtime.floodBytes === 1);
    await aSilenceLater();
    at.runtime.gate.resolve();
    await until("it is answered", () => answer.includes("bytesWritten"));
    expect(at.runtime.floodBytes).toBe(2);
    socket.destroy();
  });

  it("does not begin a program over a WebSocket that never says which", async () => {
    const socket = new WebSocket(`${at.url.replace("http", "ws")}${rpc("Exec")}?sandbox=sb-1`);
    const [code] = await once(socket, "close");
    expect(code).toBe(1003);
    expect(at.runtime.starts).toEqual([]);
  });
});

type Door = readonly [name: string, request: () => string | Buffer];

function streamOf(name: string, message: object): () => Buffer {
  return () => {
    const body = envelope(message);
    return Buffer.concat([Buffer.from(head("POST", rpc(name), { ...streamHeaders, "Content-Length": String(body.length) })), body]);
  };
}

function json(target: string, body: object): () => string {
  const text = JSON.stringify(body);
  return () => head("POST", target, { "Content-Length": String(text.length) }) + text;
}

const upgrade = {
  Connection: "Upgrade",
  Upgrade: "websocket",
  "Sec-WebSocket-Version": "13",
  "Sec-WebSocket-Key": `${"A".repeat(22)}==`,
};

/** Masked with zeros: what is sent is what is meant. */
function message(text: Buffer): Buffer {
  return Buffer.concat([Buffer.from([0x82, 0x80 | text.length, 0, 0, 0, 0]), text]);
}

describe("a client that takes nothing of an endless answer, then leaves", () => {
  const floods: readonly Door[] = [
    ["a program of ExecStream", streamOf("ExecStream", { command: "flood" })],
    ["ReadFile", streamOf("ReadFile", { path: "/endless" })],
    ["GET of a file", () => head("GET", "/v1/sandboxes/sb-1/files?path=/endless")],
    ["a program of the first client", json("/v1/exec/stream", { sandbox: "sb-1", command: "flood" })],
    [
      "a program over a WebSocket",
      () =>
        Buffer.concat([
          Buffer.from(head("GET", `${rpc("Exec")}?sandbox=sb-1`, upgrade)),
          message(envelope({ open: { command: "flood" } })),
        ]),
    ],
  ];

  it.each(floods)("holds up what makes it, and ends it: %s", async (name, request) => {
    const socket = dial();
    socket.pause();
    socket.write(request());
    await until("it floods", () => at.runtime.floodBytes > 0);
    let last = -1;
    await until("it stands still", () => {
      const still = at.runtime.floodBytes === last;
      last = at.runtime.floodBytes;
      return still;
    });
    expect(at.runtime.floodBytes).toBeLessThan(64 * MiB);
    expect((await get(at, "/healthz")).status).toBe(200);
    socket.destroy();
    if (name.startsWith("a program")) await until("it is killed", () => at.runtime.killed === 1);
  });
});

describe("a client that leaves in the middle", () => {
  const running: readonly Door[] = [
    ["ExecStream", streamOf("ExecStream", { command: "forever" })],
    ["the stream of the first client", json("/v1/exec/stream", { sandbox: "sb-1", command: "forever" })],
    ["the exec of the first client", json("/v1/exec", { sandbox: "sb-1", command: "forever" })],
    ["the terminal of the first client", () => head("GET", "/v1/pty?sandbox=sb-1", upgrade)],
    [
      "a WebSocket",
      () =>
        Buffer.concat([
          Buffer.from(head("GET", `${rpc("Exec")}?sandbox=sb-1`, upgrade)),
          message(envelope({ open: { command: "forever" } })),
        ]),
    ],
  ];

  it.each(running)("of %s takes its program with it", async (_name, request) => {
    const socket = dial();
    socket.resume();
    socket.write(request());
    await until("it runs", () => at.runtime.starts.length === 1);
    socket.resetAndDestroy();
    await until("it is killed", () => at.runtime.killed === 1);
  });
});
