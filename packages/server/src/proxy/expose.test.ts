import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { type AddressInfo, connect, createServer as createTcpServer, type Socket } from "node:net";
import { limits } from "@mitos/protocol";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { WebSocket, WebSocketServer } from "ws";
import { type Answer, get, post, send, useServer, webSocketHead } from "../testing/harness.ts";
import { LoopbackTunnels } from "../testing/loopback-tunnel.ts";

let program: Server;
let webSockets: WebSocketServer;
let answer: (request: IncomingMessage, response: ServerResponse) => void;
beforeAll(async () => {
  program = createServer((request, response) => answer(request, response)).listen(0, "127.0.0.1");
  webSockets = new WebSocketServer({ server: program });
  webSockets.on("connection", (socket) => socket.on("message", (data) => socket.send(String(data))));
  await once(program, "listening");
});
afterAll(async () => {
  webSockets.close();
  await new Promise((resolve) => program.close(resolve));
});

const at = useServer();
const tunnels = new LoopbackTunnels();
beforeEach(() => {
  at.runtime.tunnel = tunnels.tunnel as never;
  answer = ({ method, url, headers }, response) => response.end(JSON.stringify({ method, url, headers }));
});
afterEach(() => expect.poll(() => tunnels.open, { timeout: 3000 }).toBe(0));

const base = (id = "sb-1") => `/v1/sandboxes/${id}/expose/${(program.address() as AddressInfo).port}`;
const asked = ({ text }: Answer) => JSON.parse(text) as { method: string; url: string; headers: Record<string, string> };

describe("expose", () => {
  it.each([
    ["", "/"],
    ["/", "/"],
    ["?a=%ff", "/?a=%ff"],
    ["/a%2E//b%2Fc?x=1&x", "/a%2E//b%2Fc?x=1&x"],
  ])("asks for what stands behind the port: %j is %s", async (rest, url) => {
    expect(asked(await get(at, `${base()}${rest}`))).toMatchObject({ method: "GET", url });
  });

  it.each(["PUT", "DELETE", "OPTIONS", "PROPFIND"])("passes %s", async (method) => {
    expect(asked(await send(at, method, `${base()}/x`)).method).toBe(method);
  });

  it("names the public host, keeps what a proxy in front has said, and keeps the key to itself", async () => {
    const plain = asked(await get(at, base(), { Authorization: "Bearer key" })).headers;
    const host = new URL(at.url).host;
    expect(plain).toMatchObject({ host, "x-forwarded-host": host, "x-forwarded-proto": "http", "x-forwarded-prefix": base() });
    expect(plain).not.toHaveProperty("authorization");
    const said = { "X-Forwarded-Host": "public.example", "X-Forwarded-Proto": "https" };
    expect(asked(await get(at, base(), said)).headers).toMatchObject({
      "x-forwarded-host": "public.example",
      "x-forwarded-proto": "https",
    });
  });

  it.each(["0", "65536", "-1", "8080x", "1e3"])("answers the port %s with 400 in plain text", async (port) => {
    const refused = await get(at, `/v1/sandboxes/sb-1/expose/${port}/`);
    expect([refused.status, refused.headers["content-type"]]).toEqual([400, "text/plain; charset=utf-8"]);
  });

  it("answers 502 when nothing listens, 404 for an unknown sandbox and 409 for a paused one, in plain text", async () => {
    const status = async (path: string) => {
      const { status, headers } = await get(at, path);
      expect(headers["content-type"]).toBe("text/plain; charset=utf-8");
      return status;
    };
    expect(await status("/v1/sandboxes/sb-1/expose/1")).toBe(502);
    expect(await status(base("none"))).toBe(404);
    await post(at, "/v1/pause", { sandbox: "sb-1" });
    expect(await status(base())).toBe(409);
  });

  it("passes server-sent events while they are made", async () => {
    const go = Promise.withResolvers<void>();
    answer = async (_request, response) => {
      response.writeHead(200, { "Content-Type": "text/event-stream" }).write("data: 1\n\n");
      await go.promise;
      response.end("data: 2\n\n");
    };
    const response = await fetch(`${at.url}${base()}`, { headers: { Connection: "close" } });
    const reader = response.body!.getReader();
    expect(Buffer.from((await reader.read()).value!).toString()).toBe("data: 1\n\n");
    go.resolve();
    expect(Buffer.from((await reader.read()).value!).toString()).toBe("data: 2\n\n");
    await reader.read();
  });

  it("refuses one request above the cap of a sandbox, and takes it when another is over", async () => {
    await post(at, "/v1/fork", { id: "sb-2", template: "python" });
    at.engine.runtimes.get("sb-2")!.tunnel = tunnels.tunnel as never;
    const held: ServerResponse[] = [];
    answer = (request, response) => void (request.url === "/held" ? held.push(response) : response.end("done"));
    const first = Array.from({ length: limits.exposedRequestsPerSandboxMax }, () => get(at, `${base()}/held`));
    await expect.poll(() => held.length).toBe(limits.exposedRequestsPerSandboxMax);
    const refused = await get(at, base());
    expect([refused.status, refused.headers["content-type"], refused.headers["retry-after"]]).toEqual([
      429,
      "text/plain; charset=utf-8",
      "1",
    ]);
    expect((await get(at, base("sb-2"))).text).toBe("done");
    held[0]!.end();
    await first[0];
    await expect.poll(async () => (await get(at, base())).status).toBe(200);
    for (const response of held) response.end();
    await Promise.all(first);
  });

  it("passes a WebSocket", async () => {
    const socket = new WebSocket(`${at.url.replace("http", "ws")}${base()}/ws`);
    await once(socket, "open");
    socket.send("hello");
    expect(String((await once(socket, "message"))[0])).toBe("hello");
    socket.close();
    await once(socket, "close");
  });

  it("shows no browser a page under the address of the API, and no script of an older one runs", async () => {
    for (const headers of [
      { "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-Site": "none" },
      { "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty", "Sec-Fetch-Site": "same-origin", Origin: at.url },
    ]) {
      const refused = await get(at, base(), headers);
      expect([refused.status, refused.headers["content-type"]]).toEqual([403, "text/plain; charset=utf-8"]);
      expect(refused.text).toMatch(/POST \/v1\/preview/);
    }
    expect((await get(at, base())).headers["content-security-policy"]).toBe("sandbox");
  });
});

describe("a program that does not keep to HTTP", () => {
  let say: (socket: Socket) => void;
  const hostile = createTcpServer((socket) => {
    socket.on("error", () => {});
    socket.once("data", () => say(socket));
  });
  beforeAll(async () => {
    hostile.listen(0, "127.0.0.1");
    await once(hostile, "listening");
  });
  afterAll(() => new Promise((resolve) => hostile.close(resolve)));

  const to = () => `/v1/sandboxes/sb-1/expose/${(hostile.address() as AddressInfo).port}`;
  /** What a client that offers to become a WebSocket is sent until the connection ends. */
  const offer = async (): Promise<string> => {
    const { host, port } = new URL(at.url);
    const socket = connect(Number(port), "127.0.0.1");
    socket.write(webSocketHead(to(), host));
    let text = "";
    socket.on("data", (bytes) => {
      text += bytes;
    });
    await once(socket, "close");
    return text;
  };

  it.each(["HTTP/1.1 099 X", "HTTP/1.1 000 X", "nothing of the kind"])("is not passed on: %j", async (line) => {
    say = (socket) => socket.end(`${line}\r\nContent-Length: 0\r\n\r\n`);
    expect(await offer()).toMatch(/^HTTP\/1\.1 502 Bad Gateway\r\n/);
    expect((await get(at, to())).status).toBe(502);
  });

  it("cannot take a connection out of HTTP that did not ask for it", async () => {
    say = (socket) => socket.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    expect((await get(at, to())).status).toBe(502);
  });

  it("may announce its answer a few times, and not without end", async () => {
    const hint = `HTTP/1.1 103 Early Hints\r\nLink: </${"x".repeat(1000)}.css>; rel=preload\r\n\r\n`;
    say = (socket) => socket.end(`${hint.repeat(3)}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone`);
    expect(await get(at, to())).toMatchObject({ status: 200, text: "done" });
    for (const line of [hint, "HTTP/1.1 100 Continue\r\n\r\n"]) {
      say = (socket) => {
        while (socket.writable && socket.write(line.repeat(10)));
        if (socket.writable) socket.once("drain", () => say(socket));
      };
      expect((await get(at, to())).status).toBe(502);
    }
  });
});

it("takes a WebSocket on a connection that has had its answer", async () => {
  const { host, port } = new URL(at.url);
  const socket = connect(Number(port), "127.0.0.1");
  socket.write(`GET /healthz HTTP/1.1\r\nHost: ${host}\r\n\r\n`);
  expect(String((await once(socket, "data"))[0])).toMatch(/^HTTP\/1\.1 200/);
  socket.write(webSocketHead(base(), host));
  expect(String((await once(socket, "data"))[0])).toMatch(/^HTTP\/1\.1 101/);
  socket.destroy();
});
