/** What happens in a sandbox, over the wire of the published clients, against the real engine. */

import { createHash, randomBytes } from "node:crypto";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { sandbox as pb } from "@mitos/protocol/proto";
import type { Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { b64, collect, envelope, type Frame, parseFrames, stream, text } from "../../packages/server/src/testing/harness.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { until } from "../support/until.ts";

let live: LiveServer;
let sandbox: Sandbox;
beforeAll(async () => {
  live = await startLiveServer();
  sandbox = await live.create();
});
afterAll(() => live.close());

const headers = () => ({ "X-Sandbox-Id": sandbox.id });

async function frames(method: string, ...messages: unknown[]): Promise<Frame[]> {
  return collect((await stream(live, method, messages, { headers: headers() })).frames);
}

const exec = (command: string, more: object = {}) => frames("ExecStream", { command, ...more });
const exitOf = (all: Frame[]) => all.at(-2)?.message.exit;

describe("exec", () => {
  it("gives output of both streams and the exit code, and ends cleanly", async () => {
    const all = await exec("printf out; printf err >&2; exit 7");
    expect([text(all, "stdout"), text(all, "stderr")]).toEqual(["out", "err"]);
    expect(exitOf(all)).toMatchObject({ exitCode: 7, execTimeMs: expect.any(Number) });
    expect(all.at(-1)).toEqual({ flags: 2, message: {} });
  });

  it("runs a command with args without a shell", async () => {
    expect(text(await exec("printf", { args: ["%s|%s", "a b", "$HOME;"] }), "stdout")).toBe("a b|$HOME;");
  });

  it("starts in /workspace with the environment of the request", async () => {
    expect(text(await exec("pwd; echo $A", { env: [{ key: "A", value: "b c" }] }), "stdout")).toBe("/workspace\nb c\n");
  });

  it("answers 124 after the time-out, with the whole group killed", async () => {
    expect(exitOf(await exec("sleep 977 & sleep 977", { timeoutSeconds: 1 }))).toMatchObject({ exitCode: 124 });
    expect(text(await exec("pgrep -c -f '^sleep 977' || true"), "stdout").trim()).toBe("0");
  });

  it("answers -1 for a program that a signal ended, and 1 with an error for a folder that is missing", async () => {
    expect(exitOf(await exec("kill -9 $$")).exitCode).toBe(-1);
    expect(exitOf(await exec("true", { cwd: "/no/such" }))).toMatchObject({ exitCode: 1, error: expect.stringMatching(/./) });
  });

  it("kills the whole group when the client goes away", async () => {
    const client = new AbortController();
    const opened = await stream(live, "ExecStream", [{ command: "sleep 988 & echo ready; sleep 988" }], {
      headers: headers(),
      signal: client.signal,
    });
    expect((await opened.frames.next()).value?.message).toEqual({ stdout: b64("ready\n") });
    client.abort();
    await until("both have ended", async () => text(await exec("pgrep -c -f '^sleep 988' || true"), "stdout").trim() === "0");
  });

  it("loses and repeats nothing of a large output", async () => {
    const all = await exec("seq 1 400000");
    const expected = Array.from({ length: 400_000 }, (_, i) => `${i + 1}\n`).join("");
    expect(createHash("sha256").update(text(all, "stdout")).digest("hex")).toBe(createHash("sha256").update(expected).digest("hex"));
  });

  it("carries stdin over HTTP/2 until its half-close", async () => {
    const sessionManager = new Http2SessionManager(live.url);
    const client = createClient(pb.Sandbox, createConnectTransport({ baseUrl: live.url, httpVersion: "2", sessionManager }));
    const requests = (async function* () {
      yield { msg: { case: "open" as const, value: { command: "wc -c" } } };
      for (let i = 0; i < 100; i += 1) yield { msg: { case: "stdin" as const, value: new Uint8Array(10_000).fill(97) } };
    })();
    const answers = await collect(client.exec(requests, { headers: headers() }), ({ msg }) =>
      msg.case === "stdout" ? Buffer.from(msg.value).toString().trim() : msg.case,
    );
    sessionManager.abort();
    expect(answers).toEqual(["1000000", "exit"]);
  });
});

describe("a terminal over the WebSocket", () => {
  it("echoes, resizes, and tells the exit", async () => {
    const socket = new WebSocket(`${live.url.replace("http", "ws")}/sandbox.v1.Sandbox/Exec?sandbox=${sandbox.id}`, "connect.sandbox.v1");
    socket.binaryType = "arraybuffer";
    const seen: Frame[] = [];
    socket.addEventListener("message", ({ data }) => seen.push(...parseFrames(Buffer.from(data as ArrayBuffer)).frames));
    const closed = new Promise<number>((resolve) => socket.addEventListener("close", ({ code }) => resolve(code)));
    await new Promise((resolve) => socket.addEventListener("open", resolve));
    const say = (message: unknown) => socket.send(envelope(message));
    say({ open: { pty: { size: { cols: 80, rows: 24 } } } });
    say({ resize: { cols: 123, rows: 45 } });
    say({ stdin: b64("stty size; echo $((6*7))\n") });
    await until("the terminal answers", () => /45 123\r\n42\r\n/.test(text(seen, "stdout")));
    say({ stdin: b64("exit 5\n") });
    expect(await closed).toBe(1000);
    expect(seen.at(-1)).toMatchObject({ flags: 2, message: { exit: { exitCode: 5 } } });
  });
});

describe("files", () => {
  it("come back byte for byte, whole and in ranges, through both doors", async () => {
    const data = randomBytes(5_000_000);
    const url = `${live.url}/v1/sandboxes/${sandbox.id}/files?path=/workspace/deep/er/big.bin&mode=600`;
    const put = await fetch(url, { method: "PUT", body: data, headers: { Connection: "close" } });
    expect(await put.json()).toEqual({ bytes_written: data.length });
    const part = await fetch(url, { headers: { Range: "bytes=1000000-1000099", Connection: "close" } });
    expect([part.status, part.headers.get("content-range")]).toEqual([206, `bytes 1000000-1000099/${data.length}`]);
    expect(Buffer.from(await part.arrayBuffer()).equals(data.subarray(1_000_000, 1_000_100))).toBe(true);
    const chunks = await frames("ReadFile", { path: "/workspace/deep/er/big.bin" });
    expect(Buffer.concat(chunks.slice(0, -1).map(({ message }) => Buffer.from(message.data, "base64"))).equals(data)).toBe(true);
    expect(text(await exec("stat -c %a /workspace/deep/er/big.bin"), "stdout").trim()).toBe("600");
  });

  it("that are missing are not_found", async () => {
    expect((await frames("ReadFile", { path: "/none" })).at(-1)?.message.error.code).toBe("not_found");
    const response = await fetch(`${live.url}/v1/sandboxes/${sandbox.id}/files?path=/none`, { headers: { Connection: "close" } });
    expect([response.status, ((await response.json()) as { error: { code: string } }).error.code]).toEqual([404, "not_found"]);
  });
});

describe("run_code", () => {
  it("keeps its state from call to call and gives results as clients read them", async () => {
    await frames("RunCodeStream", { code: "x = 41" });
    const all = await frames("RunCodeStream", { code: "print('hi')\nx + 1" });
    expect(text(all, "stdout")).toBe("hi\n");
    expect(all.find(({ message }) => message.result)?.message.result).toMatchObject({ text: "42", data: { "text/plain": b64("42") } });
    expect(all.at(-2)?.message).toEqual({ exitCode: 0 });
  });

  it("answers an unknown language with KernelUnavailable and 127", async () => {
    const all = await frames("RunCodeStream", { code: "puts 1", language: "ruby" });
    expect(all.map(({ message }) => message.error?.name ?? message.exitCode).filter(Boolean)).toEqual(["KernelUnavailable", 127]);
  });
});

describe("background processes", () => {
  it("run on, and their output is read again from any offset", async () => {
    const base = `${live.url}/v1/sandboxes/${sandbox.id}/processes`;
    const json = { "Content-Type": "application/json", Connection: "close" };
    const start = await fetch(base, {
      method: "POST",
      headers: json,
      body: JSON.stringify({ command: "read line; echo got $line", stdin: true }),
    });
    const { pid } = (await start.json()) as { pid: number };
    await fetch(`${base}/${pid}/stdin`, { method: "POST", headers: json, body: JSON.stringify({ data: b64("it\n") }) });
    const read = async (from: number) =>
      (await (await fetch(`${base}/${pid}/output?follow=true&stdout_from=${from}`, { headers: json })).text())
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line));
    expect(await read(0)).toMatchObject([{ stream: "stdout", offset: 0, data: b64("got it\n") }, { exit: { exit_code: 0 } }]);
    expect(await read(4)).toMatchObject([{ stream: "stdout", offset: 4, data: b64("it\n") }, { exit: { exit_code: 0 } }]);
  });
});

describe("fork by a published 0.1.x client, which creates another sandbox from the parent's template_id", () => {
  it("continues from the live parent: its files and its interpreter", async () => {
    const create = async (id: string, template: string) => {
      const response = await fetch(`${live.url}/v1/fork`, {
        method: "POST",
        headers: { Connection: "close" },
        body: JSON.stringify({ id, template }),
      });
      return (await response.json()) as { id: string; template_id: string };
    };
    const run = async (id: string, code: string) =>
      collect((await stream(live, "RunCodeStream", [{ code }], { headers: { "X-Sandbox-Id": id } })).frames);
    const parent = await create("old-parent", "python");
    await run(parent.id, "token = 'only here'; open('/workspace/f', 'w').write('kept')");
    const child = await create("old-child", parent.template_id);
    const seen = await run(child.id, "token + ' ' + open('/workspace/f').read()");
    expect(seen.find(({ message }) => message.result)?.message.result.text).toBe("'only here kept'");
    for (const { id } of [parent, child]) {
      const response = await fetch(`${live.url}/v1/sandboxes/${id}`, { method: "DELETE", headers: { Connection: "close" } });
      expect(response.status).toBe(200);
    }
  });
});
