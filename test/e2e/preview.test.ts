/** Ways into the ports of a real sandbox: previews in both forms, expose and forwards, and that nothing of them is left open. */

import { execFile } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { request as httpRequest } from "node:http";
import path from "node:path";
import { promisify } from "node:util";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import type { Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { PreviewSigner } from "../../packages/server/src/preview/token.ts";
import { type Answer, get, post, send } from "../../packages/server/src/testing/harness.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { until } from "../support/until.ts";

const run = promisify(execFile);
const program = readFileSync(path.join(import.meta.dirname, "../fixtures/ports.py"), "utf8");
const port = 8123;

let live: LiveServer;
let sandbox: Sandbox;
let listeners: number;
beforeAll(async () => {
  listeners = openListeners();
  live = await startLiveServer();
  sandbox = await live.create();
  await sandbox.files.write("/workspace/ports.py", program);
  await startProgram(sandbox);
});
afterAll(async () => {
  await live.close();
  await until("no listener is left", () => openListeners() === listeners);
});

async function startProgram(of: Sandbox): Promise<void> {
  let printed = "";
  of.execBackground(`python3 /workspace/ports.py ${port}`, {
    onStdout: (data) => {
      printed += new TextDecoder().decode(data);
    },
  });
  await until("the program listens", () => printed.includes(String(port)));
}

function openListeners(): number {
  return process.getActiveResourcesInfo().filter((name) => name === "TCPServerWrap").length;
}

/** Connections to the program that the sandbox knows, both ends of each. */
async function connectionsInside(): Promise<number> {
  const { stdout } = await sandbox.exec("cat /proc/net/tcp");
  const suffix = `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  const established = "01";
  return stdout.split("\n").filter((line) => {
    const [, local, remote, state] = line.trim().split(/\s+/);
    return state === established && (local?.endsWith(suffix) || remote?.endsWith(suffix));
  }).length;
}

/** What this process, server and client, holds on to; garbage does not count. */
function heldBytes(): number {
  setFlagsFromString("--expose-gc");
  (runInNewContext("gc") as () => void)();
  const { arrayBuffers, heapUsed } = process.memoryUsage();
  return arrayBuffers + heapUsed;
}

interface Preview {
  url: string;
  path_url: string;
  browser_url: string;
  expires_unix: number;
}

const preview = async (id = sandbox.id, at = port) => (await post(live, "/v1/preview", { sandbox: id, port: at })).json as Preview;
/** The host form for a client that cannot resolve it: the name goes into Host, the connection to where the server is. */
function onHost({ browser_url }: Preview): { host: string; token: string } {
  const { host, searchParams } = new URL(browser_url);
  return { host, token: searchParams.get("token")! };
}
const inPath = (url: string, rest = "/") => {
  const { pathname, search } = new URL(url);
  return `${pathname.replace(/\/$/, "")}${rest}${search}`;
};
const asked = (answer: Answer) => answer.json as { path: string; headers: Record<string, string>; remembered: string };

describe("a preview", () => {
  it("is opened by a Python program with nothing but the URL of get_host", async () => {
    const url = await sandbox.getHost(port);
    const code = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())";
    const { stdout } = await run("python3", ["-c", code, url]);
    expect(JSON.parse(stdout).path).toBe("/");
    const posted = await run("python3", ["-c", code.replace("(sys.argv[1])", "(sys.argv[1], b'posted')"), url]);
    expect(JSON.parse(posted.stdout).bytes).toBe(6);
  });

  it("takes a browser from the token to a cookie of its own host, and the page's own requests come in by that", async () => {
    const { host, token } = onHost(await preview());
    const navigation = { Host: host, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "none", "Sec-Fetch-Dest": "document" };
    const led = await get(live, `/app?token=${token}`, navigation);
    expect([led.status, led.headers.location]).toEqual([302, `http://${host}/app`]);
    const cookie = led.headers["set-cookie"]![0]!.split(";")[0]!;
    const page = await get(live, "/app", { Host: host, Cookie: `own=1; ${cookie}`, "Sec-Fetch-Site": "same-origin" });
    expect(asked(page)).toMatchObject({ path: "/app", headers: { Cookie: "own=1", Host: host } });
    expect(page.text).not.toContain(token);
  });

  it("carries a WebSocket in both forms", async () => {
    const made = await preview();
    const { host, token } = onHost(made);
    const ws = live.url.replace("http", "ws");
    await echo(new WebSocket(`${ws}${inPath(made.path_url, "/ws")}`));
    await echo(new WebSocket(`${ws}/ws?token=${token}`, { headers: { Host: host } }));
  });

  it("passes events while they are made", async () => {
    await expectEvents(inPath((await preview()).path_url, "/events"), inPath((await preview()).path_url, "/go"));
  });

  it("streams an upload of 200 MB without keeping it", async () => {
    const bytes = 200 * 1024 * 1024;
    const part = randomBytes(1024 * 1024);
    const digest = createHash("sha256");
    const { path_url } = await preview();
    const upload = httpRequest(`${live.url}${inPath(path_url, "/upload")}`, {
      method: "POST",
      headers: { "Content-Length": bytes },
      agent: false,
    });
    const answered = once(upload, "response");
    let heldMax = 0;
    const before = heldBytes();
    for (let sent = 0; sent < bytes; sent += part.length) {
      digest.update(part);
      if (!upload.write(part)) await once(upload, "drain");
      if (sent % (25 * part.length) === 0) heldMax = Math.max(heldMax, heldBytes() - before);
    }
    upload.end();
    const [response] = await answered;
    let text = "";
    for await (const piece of response) text += piece;
    expect(JSON.parse(text)).toEqual({ bytes, sha256: digest.digest("hex") });
    // What is on its way fills the buffers of client, server and link, all in this process; an upload that is kept would be three times this.
    expect(heldMax).toBeLessThan(64 * 1024 * 1024);
  });

  it("of a port where nothing listens is 503 with what to do, and works once something does", async () => {
    const later = await preview(sandbox.id, 8124);
    const none = await get(live, inPath(later.path_url));
    expect([none.status, none.json.error.code]).toEqual([503, "unavailable"]);
    expect(none.json.error.remediation).toMatch(/port 8124/);
    sandbox.execBackground("python3 -m http.server 8124 --directory /workspace");
    await until("it listens", async () => (await get(live, inPath(later.path_url, "/ports.py"))).text === program);
  });

  it("is refused with 401 after its time and 403 with the token of another port", async () => {
    const signer = new PreviewSigner(live.engine.storedSecret("preview", 32));
    const { id } = live.engine.list()[0]!;
    const expired = signer.sign({ sandbox: id, port, expiresUnix: Math.floor(Date.now() / 1000) - 1 });
    const { pathname } = new URL((await preview()).path_url);
    const other = new URL((await preview(sandbox.id, 8124)).path_url).searchParams.get("token");
    const answers = [await get(live, `${pathname}?token=${expired}`), await get(live, `${pathname}?token=${other}`)];
    expect(answers.map(({ status, json }) => [status, json.error.code])).toEqual([
      [401, "unauthorized"],
      [403, "forbidden"],
    ]);
  });
});

describe("expose", () => {
  const base = () => `/v1/sandboxes/${sandbox.id}/expose/${port}`;

  it("passes requests, events and a WebSocket", async () => {
    expect(asked(await get(live, `${base()}/a?b=1`)).path).toBe("/a?b=1");
    await expectEvents(`${base()}/events`, `${base()}/go`);
    await echo(new WebSocket(`${live.url.replace("http", "ws")}${base()}/ws`));
  });

  it("answers 502 in plain text where nothing listens", async () => {
    const answer = await get(live, `/v1/sandboxes/${sandbox.id}/expose/9`);
    expect([answer.status, answer.headers["content-type"]]).toEqual([502, "text/plain; charset=utf-8"]);
  });
});

describe("a client that leaves", () => {
  it("leaves no connection in the sandbox, whichever way it came", async () => {
    await until("earlier ones are closed", async () => (await connectionsInside()) === 0);
    const { path_url } = await preview();
    const { host } = (await post(live, `/v1/sandboxes/${sandbox.id}/forward`, { guest_port: port })).json as { host: string };
    const client = new AbortController();
    const events = [
      `${live.url}${inPath(path_url, "/events")}`,
      `${live.url}/v1/sandboxes/${sandbox.id}/expose/${port}/events`,
      `http://${host}/events`,
    ];
    await Promise.all(events.map((url) => fetch(url, { signal: client.signal })));
    const socket = new WebSocket(`${live.url.replace("http", "ws")}${inPath(path_url, "/ws")}`);
    await once(socket, "open");
    expect(await connectionsInside()).toBe(8);
    client.abort();
    socket.terminate();
    // The program's own ends of event streams close when it next writes to them.
    await until("the connections are closed", async () => {
      await send(live, "POST", inPath(path_url, "/go"), "");
      return (await connectionsInside()) === 0;
    });
  });
});

describe("over the life of a sandbox", () => {
  it("a child's program is reached by the child's URL and the parent's by the parent's", async () => {
    const remember = async (made: Preview, text: string) => send(live, "POST", inPath(made.path_url, "/remember"), text);
    const recall = async (made: Preview) => asked(await get(live, inPath(made.path_url))).remembered;
    const own = await preview();
    await remember(own, "before");
    const [child] = await sandbox.fork();
    const childs = await preview(child!.id);
    expect(await recall(childs)).toBe("before");
    await remember(childs, "in the child");
    expect([await recall(own), await recall(childs)]).toEqual(["before", "in the child"]);
    await child!.terminate();
    const gone = await get(live, inPath(childs.path_url));
    expect([gone.status, gone.json.error.code]).toEqual([410, "idle_timeout"]);
  });

  it("a preview and a forward are there again after a pause, and say why they are not during it", async () => {
    const made = await preview();
    const { host } = (await post(live, `/v1/sandboxes/${sandbox.id}/forward`, { guest_port: port })).json as { host: string };
    const again = (await post(live, `/v1/sandboxes/${sandbox.id}/forward`, { guest_port: port })).json as { host: string };
    expect(again.host).toBe(host);
    const through = { url: `http://${host}` };
    expect(asked(await get(through, "/forwarded")).path).toBe("/forwarded");

    await sandbox.pause();
    const paused = await get(live, inPath(made.path_url));
    expect([paused.status, paused.json.error.code]).toEqual([409, "sandbox_not_running"]);
    await expect(get(through, "/")).rejects.toThrow();

    await sandbox.resume();
    expect((await get(live, inPath(made.path_url))).status).toBe(200);
    expect(asked(await get(through, "/forwarded")).path).toBe("/forwarded");
  });

  it("a WebSocket and a forward end with their sandbox", async () => {
    const [child] = await sandbox.fork();
    const { host } = (await post(live, `/v1/sandboxes/${child!.id}/forward`, { guest_port: port })).json as { host: string };
    const socket = new WebSocket(`${live.url.replace("http", "ws")}${inPath((await preview(child!.id)).path_url, "/ws")}`);
    await once(socket, "open");
    const closed = once(socket, "close");
    await child!.terminate();
    await closed;
    await expect(get({ url: `http://${host}` }, "/")).rejects.toMatchObject({ code: "ECONNREFUSED" });
  });
});

async function echo(socket: WebSocket): Promise<void> {
  await once(socket, "open");
  const text = "x".repeat(1000);
  socket.send(text);
  expect(String((await once(socket, "message"))[0])).toBe(text);
  socket.close(1000);
  expect((await once(socket, "close"))[0]).toBe(1000);
}

/** The second event is made only after the first one has been seen. */
async function expectEvents(events: string, go: string): Promise<void> {
  const response = await fetch(`${live.url}${events}`, { headers: { Connection: "close" } });
  const reader = response.body!.getReader();
  expect(Buffer.from((await reader.read()).value!).toString()).toBe("data: first\n\n");
  await send(live, "POST", go, "");
  expect(Buffer.from((await reader.read()).value!).toString()).toBe("data: second\n\n");
  expect((await reader.read()).done).toBe(true);
}
