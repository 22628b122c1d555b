import { once } from "node:events";
import http from "node:http";
import { afterEach, describe, expect, it } from "vitest";
import { type HttpOptions, type HttpServer, startHttp } from "../../packages/mcp/src/http/server.ts";
import { until } from "../support/until.ts";
import { conformanceServer } from "./support/conformance-server.ts";
import { initialize, request } from "./support/programs.ts";

// The HTTP transport by itself: what comes in, sessions, and their end. Its clients with real tools: clients.test.ts.
const token = "token-of-the-clients-0123456789";
const open = new Set<HttpServer>();
afterEach(async () => {
  for (const server of open) await server.close();
  open.clear();
});

async function start(options: Partial<HttpOptions> = {}) {
  const ended: number[] = [];
  let sessions = 0;
  const openSession = () => {
    const number = sessions++;
    return { createServer: conformanceServer, end: async () => void ended.push(number) };
  };
  const server = await startHttp({ host: "127.0.0.1", port: 0, openSession, onerror: () => {}, ...options });
  open.add(server);
  return { url: new URL(server.url), ended, close: () => server.close() };
}

interface Answer {
  status: number;
  headers: http.IncomingHttpHeaders;
  text: string;
}

/** By node:http, since fetch sets Host itself. */
async function send(
  url: URL,
  { method = "POST", headers = {}, body }: { method?: string; headers?: http.OutgoingHttpHeaders; body?: string } = {},
) {
  const defaults = { "Content-Type": "application/json", Accept: "application/json, text/event-stream" };
  const outgoing = http.request(url, { method, headers: { ...defaults, ...headers } });
  outgoing.end(body);
  const [response] = (await once(outgoing, "response")) as [http.IncomingMessage];
  const text = await new Response(response as never).text();
  return { status: response.statusCode!, headers: response.headers, text } satisfies Answer;
}

async function initialized(url: URL, headers = {}): Promise<string> {
  const answer = await send(url, { body: initialize, headers });
  expect(answer.status, answer.text).toBe(200);
  return answer.headers["mcp-session-id"] as string;
}

const ping = (url: URL, session: string) => send(url, { body: request(1, "ping"), headers: { "Mcp-Session-Id": session } });

/** The stream that a client may hold open beside its calls. */
async function hold(url: URL, session: string): Promise<AsyncDisposable> {
  const outgoing = http.get(url, { headers: { Accept: "text/event-stream", "Mcp-Session-Id": session } });
  const [response] = (await once(outgoing, "response")) as [http.IncomingMessage];
  expect(response.statusCode).toBe(200);
  response.on("error", () => {});
  outgoing.on("error", () => {});
  return {
    async [Symbol.asyncDispose]() {
      response.resume().destroy();
    },
  };
}

describe("without a token", () => {
  it.each([
    [{}, 200],
    [{ Host: "localhost:1" }, 200],
    [{ Host: "[::1]:8090" }, 200],
    [{ Host: "evil.example" }, 403],
    [{ Host: "127.0.0.1.evil.example" }, 403],
    [{ Host: "p8080-sb-1.localhost" }, 403],
    [{ Host: "localhost/x" }, 403],
    [{ Host: "localhost@evil.example" }, 403],
    [{ Host: "127.0.0.1:8090", Origin: "http://127.0.0.1:8090" }, 200],
    [{ Host: "127.0.0.1:8090", Origin: "http://localhost:8090" }, 200],
    [{ Host: "127.0.0.1:8090", Origin: "http://127.0.0.1:5173" }, 403],
    [{ Host: "127.0.0.1:8090", Origin: "http://localhost" }, 403],
    [{ Origin: "http://localhost:5173" }, 403],
    [{ Origin: "http://evil.example" }, 403],
    [{ Origin: "http://localhost.evil.example" }, 403],
    [{ Origin: "http://p8080-sb-1.localhost:8080" }, 403],
    [{ Origin: "null" }, 403],
    [{ Origin: "file://" }, 403],
    [{ Host: "evil.example", Origin: "http://evil.example" }, 403],
  ])("a request with %j is answered %i", async (headers, status) => {
    const { url } = await start();
    const answer = await send(url, { body: initialize, headers });
    expect(answer.status, answer.text).toBe(status);
    if (status === 403) expect(JSON.parse(answer.text)).toMatchObject({ jsonrpc: "2.0", id: null, error: { code: -32_000 } });
  });
});

describe("with a token", () => {
  it.each([
    [{}, 401],
    [{ Authorization: "Bearer" }, 401],
    [{ Authorization: `Bearer ${token}x` }, 401],
    [{ Authorization: `Bearer ${token.slice(0, -1)}` }, 401],
    [{ Authorization: `Basic ${token}` }, 401],
    [{ Authorization: `Bearer ${token}` }, 200],
    [{ Authorization: `bearer ${token}`, Host: "mcp.example.org" }, 200],
    [{ Authorization: `Bearer ${token}`, Host: "mcp.example.org", Origin: "https://mcp.example.org" }, 200],
    [{ Authorization: `Bearer ${token}`, Host: "mcp.example.org", Origin: "https://other.example.org" }, 403],
  ])("a request with %j is answered %i", async (headers, status) => {
    const { url } = await start({ token });
    const answer = await send(url, { body: initialize, headers });
    expect(answer.status, answer.text).toBe(status);
    expect(answer.headers["www-authenticate"]).toBe(status === 401 ? "Bearer" : undefined);
    expect(answer.text).not.toContain(token);
  });

  it("every request of a session needs it, of every method", async () => {
    const { url } = await start({ token });
    const session = await initialized(url, { Authorization: `Bearer ${token}` });
    for (const method of ["POST", "GET", "DELETE"]) {
      expect((await send(url, { method, headers: { "Mcp-Session-Id": session } })).status).toBe(401);
    }
  });
});

describe("a request", () => {
  it("that is no message is answered with the code of JSON-RPC", async () => {
    const { url } = await start();
    const session = await initialized(url);
    for (const [body, status, code] of [
      ["nonsense", 400, -32_700],
      ["", 400, -32_700],
      ["[]", 400, -32_600],
      ["{}", 400, -32_600],
      ['{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}', 400, -32_602],
      [request(1, "nope"), 200, -32_601],
      [request(1, "tools/call", {}), 200, -32_602],
    ] as const) {
      const answer = await send(url, { body, headers: { "Mcp-Session-Id": session } });
      expect(answer.status, body).toBe(status);
      expect(JSON.parse(answer.text.replace(/^[\s\S]*^data: (?=\{)/m, ""))).toMatchObject({ error: { code } });
    }
  });

  it("to another path, of another kind, without a session or with one that has ended is refused", async () => {
    const { url } = await start();
    const session = await initialized(url);
    const headers = { "Mcp-Session-Id": session };
    const body = request(1, "ping");
    expect((await send(new URL("/other", url), { body: initialize })).status).toBe(404);
    expect((await send(url, { body, headers: { ...headers, "Content-Type": "text/plain" } })).status).toBe(415);
    expect((await send(url, { body, headers: { ...headers, Accept: "text/html" } })).status).toBe(406);
    expect((await send(url, { body, headers: { ...headers, "MCP-Protocol-Version": "1999-01-01" } })).status).toBe(400);
    for (const method of ["PUT", "OPTIONS", "TRACE"]) {
      expect(await send(url, { method, headers })).toMatchObject({ status: 405, headers: { allow: "GET, POST, DELETE" } });
    }
    for (const method of ["POST", "GET", "DELETE"]) {
      expect((await send(url, { method, ...(method === "POST" ? { body } : {}) })).status, method).toBe(400);
      const unknown = await send(url, { method, headers: { "Mcp-Session-Id": "unknown" }, ...(method === "POST" ? { body } : {}) });
      expect(unknown.status).toBe(404);
      expect(JSON.parse(unknown.text)).toMatchObject({ error: { code: -32_001 } });
    }
    expect((await ping(url, session)).status).toBe(200);
  });

  it("is refused with 503 while others hold too much, which is free again when they leave", async () => {
    const { url } = await start();
    const session = await initialized(url);
    const ping = (bytes: number) =>
      send(url, { body: request(1, "ping", { padding: "x".repeat(bytes) }), headers: { "Mcp-Session-Id": session } });
    const MiB = 1024 * 1024;
    const outgoing = Array.from({ length: 4 }, () => {
      const headers = { "Content-Type": "application/json", "Content-Length": 16 * MiB };
      return http.request(url, { method: "POST", headers }).on("error", () => {});
    });
    await Promise.all(outgoing.map((one) => new Promise((resolve) => one.write("x".repeat(13 * MiB), resolve))));
    await until("they are held", async () => (await ping(12 * MiB)).status === 503);
    expect(await ping(12 * MiB)).toMatchObject({ status: 503, headers: { "retry-after": "1" } });
    expect((await ping(MiB)).status).toBe(200);
    for (const one of outgoing) one.destroy();
    await until("there is room again", async () => (await ping(12 * MiB)).status === 200);
    // Each was let go of with its answer.
    for (let round = 0; round < 6; round++) expect((await ping(12 * MiB)).status).toBe(200);
  });

  it("of more than 16 MiB is answered 413, whether it says so or not", async () => {
    const { url } = await start();
    const session = await initialized(url);
    const headers = { "Mcp-Session-Id": session };
    const body = request(1, "ping", { padding: "x".repeat(16 * 1024 * 1024) });
    for (const said of [{ "Content-Length": body.length }, { "Transfer-Encoding": "chunked" }]) {
      const answer = await send(url, { headers: { ...headers, ...said }, body });
      expect(answer.status).toBe(413);
      expect(JSON.parse(answer.text)).toMatchObject({ error: { code: -32_600 } });
    }
    expect((await ping(url, session)).status).toBe(200);
  });
});

describe("a session", () => {
  it("has an id that nobody can guess, and ends when its client deletes it", async () => {
    const { url, ended } = await start();
    const [one, other] = [await initialized(url), await initialized(url)];
    expect(one).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$/);
    expect(one).not.toBe(other);
    expect((await send(url, { method: "DELETE", headers: { "Mcp-Session-Id": one } })).status).toBe(200);
    expect(ended).toHaveLength(1);
    expect((await ping(url, one)).status).toBe(404);
    expect((await ping(url, other)).status).toBe(200);
  });

  it("is not left behind by an initialize that is refused", async () => {
    const { url, ended } = await start();
    expect((await send(url, { body: initialize, headers: { Accept: "text/html" } })).status).toBe(406);
    expect(ended).toHaveLength(1);
  });

  it("makes room for a new one when it has been idle for longest, and not while a stream of it is open", async () => {
    const { url } = await start({ limits: { sessionsMax: 2, idleMs: 3_600_000 } });
    const [first, second] = [await initialized(url), await initialized(url)];
    expect((await ping(url, first)).status).toBe(200);
    const third = await initialized(url);
    expect((await ping(url, second)).status).toBe(404);
    await using _first = await hold(url, first);
    await using _third = await hold(url, third);
    const refused = await send(url, { body: initialize });
    expect(refused).toMatchObject({ status: 503, headers: { "retry-after": "60" } });
    expect(JSON.parse(refused.text)).toMatchObject({ error: { message: expect.stringContaining("sessions") } });
  });

  it("ends when it has been idle for too long, and not while a stream of it is open", async () => {
    const { url, ended } = await start({ limits: { sessionsMax: 10, idleMs: 50 } });
    const held = await initialized(url);
    const stream = await hold(url, held);
    const idle = await initialized(url);
    await until("the idle session has ended", () => ended.length === 1);
    expect((await ping(url, idle)).status).toBe(404);
    expect((await ping(url, held)).status).toBe(200);
    await stream[Symbol.asyncDispose]();
    await until("the other has ended too", () => ended.length === 2);
  });

  it("lets a client whose connection broke read on with Last-Event-ID, and nobody read what was never sent", async () => {
    const { url } = await start();
    const session = await initialized(url);
    const headers = { "Mcp-Session-Id": session, "MCP-Protocol-Version": "2025-11-25", Accept: "application/json, text/event-stream" };
    const broken = new AbortController();
    const call = request(5, "tools/call", { name: "test_tool_with_progress", _meta: { progressToken: "p" } });
    const response = await fetch(url, {
      method: "POST",
      headers: { ...headers, "Content-Type": "application/json" },
      body: call,
      signal: broken.signal,
    });
    const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
    let seen = "";
    while (!seen.includes('"progress":0')) seen += (await reader.read()).value;
    broken.abort();
    const last = [...seen.matchAll(/^id: (\d+)$/gm)].at(-1)![1]!;
    const rest = await (await fetch(url, { headers: { ...headers, "Last-Event-ID": last } })).text();
    expect([...(seen + rest).matchAll(/"progress":(\d+)/g)].map(([, progress]) => progress)).toEqual(["0", "50", "100"]);
    expect(rest).toContain('"text":"done"');
    expect((await fetch(url, { headers: { ...headers, "Last-Event-ID": "4711" } })).status).toBe(400);
  });

  it("ends with the server, which does not wait for open streams", async () => {
    const { url, ended, close } = await start();
    const session = await initialized(url);
    await using _stream = await hold(url, session);
    await close();
    // One of them is that of the clients without a session.
    expect(ended).toHaveLength(2);
    await expect(send(url, { body: initialize })).rejects.toThrow();
  });
});
