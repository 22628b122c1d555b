import { once } from "node:events";
import { describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { b64, get, useServer } from "../testing/harness.ts";

interface Line {
  kind: string;
  data?: string;
  exit_code?: number;
  error?: string;
}

describe("the terminal of the 0.1.0 client", () => {
  const at = useServer({ maxStreamsPerSandbox: 1 });

  function dial(query = "?sandbox=sb-1", headers: Record<string, string> = {}) {
    const socket = new WebSocket(`${at.url.replace("http", "ws")}/v1/pty${query}`, "mitos.pty.v1", { headers });
    const lines: Line[] = [];
    socket.on("message", (data: Buffer, isBinary) => lines.push(isBinary ? { kind: "binary" } : JSON.parse(data.toString())));
    socket.on("error", () => {});
    const closed = new Promise<number>((resolve) => socket.on("close", (code) => resolve(code)));
    return { socket, lines, closed, send: (message: unknown) => socket.send(JSON.stringify(message)) };
  }

  async function connected(...args: Parameters<typeof dial>) {
    const client = dial(...args);
    await once(client.socket, "open");
    return client;
  }

  it("runs a shell: input, size, output and the exit as JSON texts, then closes", async () => {
    const client = await connected("?sandbox=sb-1&cols=120&rows=40", { Authorization: "Bearer anything", Origin: at.url });
    expect(client.socket.protocol).toBe("mitos.pty.v1");
    client.send({ kind: "input", data: b64("hello-pty\n") });
    client.send({ kind: "resize", cols: 100, rows: 30 });
    client.send({ kind: "input", data: b64("exit\n") });
    expect(await client.closed).toBe(1000);
    expect(client.lines).toEqual([
      { kind: "output", data: b64("hello-pty\n") },
      { kind: "output", data: b64("exit\n") },
      { kind: "exit", exit_code: 0 },
    ]);
    expect(at.runtime.starts).toMatchObject([{ shellCommand: "/bin/sh", pty: { cols: 120, rows: 40 }, stdin: true, timeoutMs: 0 }]);
    expect(at.runtime.signals).toEqual([["resize", 100, 30]]);
  });

  it.each(["", "&cols=&rows=", "&cols=0&rows=x", "&cols=100001&rows=-1", "&cols=1e2&rows=70000"])(
    "reads the size %j as 80 by 24",
    async (size) => {
      const client = await connected(`?sandbox=sb-1${size}`);
      client.send({ kind: "input", data: b64("exit\n") });
      await client.closed;
      expect(at.runtime.starts).toMatchObject([{ pty: { cols: 80, rows: 24 } }]);
    },
  );

  it("ignores what is not a message of this protocol", async () => {
    const client = await connected();
    client.socket.send("{");
    client.socket.send(Buffer.from([1, 2]), { binary: true });
    for (const message of [
      { kind: "later" },
      { kind: "input", data: "%" },
      { kind: "resize", cols: 0, rows: 1 },
      { kind: "resize" },
      [],
      null,
    ])
      client.send(message);
    client.send({ kind: "input", data: b64("exit\n") });
    await client.closed;
    expect([client.lines.at(-1), at.runtime.signals, at.runtime.stdin]).toEqual([{ kind: "exit", exit_code: 0 }, [], ["exit\n"]]);
  });

  it("kills the shell of a client that leaves", async () => {
    const client = await connected();
    client.socket.terminate();
    await expect.poll(() => at.runtime.killed).toBe(1);
  });

  it.each([
    ["", 400, "invalid_input"],
    ["?sandbox=a%2fb", 400, "invalid_input"],
    ["?sandbox=nope", 404, "not_found"],
  ])("answers %j before the upgrade with %i", async (query, status, code) => {
    expect(await refusalOf(dial(query).socket)).toEqual([status, code]);
  });

  it("answers 429 before the upgrade above the cap of streams, and gives the place back at the end", async () => {
    const first = await connected();
    expect(await refusalOf(dial().socket)).toEqual([429, "too_many_streams"]);
    first.send({ kind: "input", data: b64("exit\n") });
    await first.closed;
    (await connected()).socket.terminate();
  });

  it("gives the place back when the upgrade itself is not valid", async () => {
    const headers = { Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "short" };
    expect((await get(at, "/v1/pty?sandbox=sb-1", headers)).status).toBe(400);
    (await connected()).socket.terminate();
  });

  it("answers a plain GET with what it should have been", async () => {
    const answer = await get(at, "/v1/pty?sandbox=sb-1");
    expect([answer.status, answer.headers.upgrade]).toEqual([426, "websocket"]);
  });

  async function refusalOf(socket: WebSocket): Promise<[number, string]> {
    const [, response] = await once(socket, "unexpected-response");
    let body = "";
    for await (const chunk of response) body += chunk;
    return [response.statusCode, JSON.parse(body).error.code];
  }
});
