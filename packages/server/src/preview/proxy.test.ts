import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { connect as connectHttp2 } from "node:http2";
import { type AddressInfo, connect } from "node:net";
import { limits, type SandboxId } from "@mitos/protocol";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { WebSocket, WebSocketServer } from "ws";
import { type Answer, get, post, send, useServer } from "../testing/harness.ts";
import { LoopbackTunnels } from "../testing/loopback-tunnel.ts";
import { PreviewSigner } from "./token.ts";

const secret = Buffer.from("0123456789abcdef0123456789abcdef");
const signer = new PreviewSigner(secret);
const inAnHour = () => Math.floor(Date.now() / 1000) + 3600;
const navigation = { "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-Site": "none" };
const ownPage = { "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty", "Sec-Fetch-Site": "same-origin" };

/** A program in a sandbox: answers with what it was asked, unless a test says otherwise. */
interface Program {
  server: Server;
  port: number;
  answer: (request: IncomingMessage, response: ServerResponse) => void;
  seen: IncomingMessage[];
}

function useProgram(): Program {
  const program = {} as Program;
  let webSockets: WebSocketServer;
  beforeAll(async () => {
    const onRequest = (request: IncomingMessage, response: ServerResponse) => {
      program.seen.push(request);
      program.answer(request, response);
    };
    program.server = createServer(onRequest).on("checkContinue", onRequest).listen(0, "127.0.0.1");
    await once(program.server, "listening");
    program.port = (program.server.address() as AddressInfo).port;
    webSockets = new WebSocketServer({ server: program.server });
    webSockets.on("connection", (socket, request) => {
      program.seen.push(request);
      socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary }));
    });
  });
  beforeEach(() => {
    program.seen = [];
    program.answer = async (request, response) => {
      const parts: Buffer[] = [];
      for await (const part of request) parts.push(part as Buffer);
      const { method, url, headers } = request;
      response.setHeader("Content-Type", "application/json");
      response.end(JSON.stringify({ method, url, headers, body: Buffer.concat(parts).toString() }));
    };
  });
  afterAll(async () => {
    webSockets.close();
    await new Promise((resolve) => program.server.close(resolve));
  });
  return program;
}

const program = useProgram();
const at = useServer({ previewSecret: secret });
const tunnels = new LoopbackTunnels();
beforeEach(() => {
  at.runtime.tunnel = tunnels.tunnel as never;
});
afterEach(() => expect.poll(() => tunnels.open, { timeout: 3000 }).toBe(0));

const ownPort = () => new URL(at.url).port;
/** Of one test: its tokens for one place are the same, however long it takes. */
let expiresAtUnix: number;
beforeEach(() => {
  expiresAtUnix = inAnHour();
});
const token = (port = program.port, sandbox = "sb-1", expiresUnix = expiresAtUnix): string =>
  signer.sign({ sandbox: sandbox as SandboxId, port, expiresUnix });
const hostOf = (port = program.port, name = "sb-1") => `p${port}-${name}.localhost:${ownPort()}`;
const onHost = (headers: Record<string, string> = {}, host = hostOf()) => ({ Host: host, ...headers });
const pathOf = (port = program.port, name = "sb-1") => `/v1/preview/p${port}-${name}`;
const cookie = (value = token()) => ({ Cookie: `mitos_preview=${value}` });
/** What the program was asked. */
const asked = (answer: Answer) => answer.json as { method: string; url: string; headers: Record<string, string>; body: string };

describe("POST /v1/preview", () => {
  it("gives a URL below the address that the client used, and one of an origin of its own", async () => {
    const answer = await post(at, "/v1/preview", { sandbox: "sb-1", port: 8080 });
    expect(answer.status).toBe(200);
    const { url, path_url, browser_url, expires_unix } = answer.json;
    const value = new URL(url).searchParams.get("token")!;
    expect(url).toBe(`${at.url}/v1/preview/p8080-sb-1/?token=${value}`);
    expect(path_url).toBe(url);
    expect(browser_url).toBe(`http://p8080-sb-1.localhost:${ownPort()}/?token=${value}`);
    expect(signer.verify(value, 0)).toEqual({ grant: { sandbox: "sb-1", port: 8080, expiresUnix: expires_unix } });
    expect(Math.abs(expires_unix - inAnHour())).toBeLessThan(10);
  });

  it.each([
    [{ sandbox: "sb-1", port: 0 }, 400, "invalid_input"],
    [{ sandbox: "sb-1", port: 65_536 }, 400, "invalid_input"],
    [{ sandbox: "sb-1", port: "8080" }, 400, "invalid_input"],
    [{ sandbox: "", port: 8080 }, 400, "invalid_input"],
    [{ sandbox: "none", port: 8080 }, 404, "not_found"],
    [{ sandbox: "../x", port: 8080 }, 404, "not_found"],
    [{ sandbox: "../x", port: 0 }, 400, "invalid_input"],
  ])("answers %j with %i", async (body, status, code) => {
    const answer = await post(at, "/v1/preview", body);
    expect([answer.status, answer.json.error.code]).toEqual([status, code]);
  });
});

describe("a program without cookies", () => {
  it.each([
    ["in the query", () => [`/a%20b?x=1&token=${token()}&y=%2F`, {}]],
    ["as a bearer", () => ["/a%20b?x=1&y=%2F", { Authorization: `Bearer ${token()}` }]],
    ["in a header", () => ["/a%20b?x=1&y=%2F", { "Mitos-Preview-Token": token() }]],
  ] as const)("is served with the token %s, in both forms, and the sandbox does not see it", async (_where, make) => {
    const [path, headers] = make() as [string, Record<string, string>];
    const answers = [await get(at, path, onHost(headers)), await get(at, `${pathOf()}${path}`, headers)];
    for (const answer of answers) {
      expect(answer.status).toBe(200);
      expect(asked(answer).url).toBe("/a%20b?x=1&y=%2F");
      expect(answer.text).not.toContain(token().split(".")[0]);
      expect(asked(answer).headers).not.toHaveProperty("authorization");
    }
    expect(asked(answers[0]!).headers).toMatchObject({ host: hostOf(), "x-forwarded-host": hostOf(), "x-forwarded-proto": "http" });
    expect(asked(answers[1]!).headers).toMatchObject({ "x-forwarded-prefix": pathOf() });
  });

  it("may send a body with any method", async () => {
    const answer = await send(at, "POST", `${pathOf()}/?token=${token()}`, "the body", { "Content-Type": "text/plain" });
    expect(asked(answer)).toMatchObject({ method: "POST", url: "/", body: "the body", headers: { "content-length": "8" } });
    const none = await send(at, "DELETE", `${pathOf()}?token=${token()}`);
    expect(asked(none)).toMatchObject({ method: "DELETE", url: "/", body: "" });
    const chunked = await send(at, "PUT", `/?token=${token()}`, "chunked", onHost({ "Transfer-Encoding": "chunked" }));
    expect(asked(chunked)).toMatchObject({ body: "chunked", headers: { "transfer-encoding": "chunked" } });
  });

  it("keeps its token over a redirect of the program, and is not led out of the preview", async () => {
    const to = async (location: string, path: string, headers = {}) => {
      program.answer = (_request, response) => response.writeHead(302, { Location: location }).end();
      return (await get(at, path, headers)).headers.location;
    };
    const query = `?token=${token()}`;
    expect(await to("/login?a=1", `${pathOf()}/${query}`)).toBe(`${pathOf()}/login?a=1&token=${token()}`);
    expect(await to("next#part", `${pathOf()}/${query}`)).toBe(`next?token=${token()}#part`);
    expect(await to(`http://${hostOf()}/in`, `/${query}`, onHost())).toBe(`/in?token=${token()}`);
    expect(await to("https://example.com/", `/${query}`, onHost())).toBe("https://example.com/");
    expect(await to("//example.com/", `/${query}`, onHost())).toBe("//example.com/");
    expect(await to("/login", "/", onHost(cookie()))).toBe("/login");
  });

  it("keeps a parameter named token that is the program's own", async () => {
    const answer = await get(at, "/lab?token=c3d1f0", onHost(cookie()));
    expect(asked(answer).url).toBe("/lab?token=c3d1f0");
  });
});

describe("a browser", () => {
  it("that opens the URL gets a cookie of that host and is led to the address without the token", async () => {
    const answer = await get(at, `/app?x=1&token=${token()}`, onHost(navigation));
    expect(answer.status).toBe(302);
    expect(answer.headers.location).toBe(`http://${hostOf()}/app?x=1`);
    expect(answer.headers["set-cookie"]).toEqual([
      expect.stringMatching(new RegExp(`^mitos_preview=${token()}; Path=/; HttpOnly; SameSite=Lax; Max-Age=(3600|35\\d\\d)$`)),
    ]);
    expect(answer.headers["referrer-policy"]).toBe("no-referrer");
    expect(program.seen).toEqual([]);
  });

  it("is led nowhere else by a path that looks like another host", async () => {
    const answer = await get(at, `//example.com/?token=${token()}`, onHost(navigation));
    expect(answer.headers.location).toBe(`http://${hostOf()}//example.com/`);
  });

  it("comes in by the cookie afterwards; the sandbox sees the page's own cookies and Authorization only", async () => {
    const headers = { Cookie: `a=1; mitos_preview=${token()}; b=2`, Authorization: "Bearer of-the-page", Origin: `http://${hostOf()}` };
    const answer = await send(
      at,
      "POST",
      "/api",
      "{}",
      onHost({ ...headers, ...ownPage, Referer: `http://${hostOf()}/?token=${token()}` }),
    );
    expect(answer.status).toBe(200);
    expect(asked(answer).headers).toMatchObject({
      cookie: "a=1; b=2",
      authorization: "Bearer of-the-page",
      referer: `http://${hostOf()}/`,
    });
    expect(answer.text).not.toContain("mitos_preview");
  });

  it.each([
    ["another site's request", { Origin: "http://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors" }],
    ["another preview's request", { Origin: "http://p1-other.localhost", "Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors" }],
    ["a form of another site", { Origin: "null", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate" }],
    ["an image in another site", { "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image" }],
  ])("does not lend its cookie to %s", async (_what, headers) => {
    const answer = await get(at, "/", onHost({ ...cookie(), ...headers }));
    expect([answer.status, answer.json.error.code]).toEqual([403, "forbidden"]);
    expect(program.seen).toEqual([]);
  });

  it("follows a link of another site with its cookie", async () => {
    const answer = await get(at, "/", onHost({ ...cookie(), ...navigation, "Sec-Fetch-Site": "cross-site" }));
    expect(answer.status).toBe(200);
  });

  it("that opens the path form is led to the host form", async () => {
    const answer = await get(at, `${pathOf()}/app?x=1&token=${token()}`, navigation);
    expect([answer.status, answer.headers.location]).toEqual([302, `http://${hostOf()}/app?x=1&token=${token()}`]);
    expect(program.seen).toEqual([]);
  });

  it("gets nothing of a sandbox under the address of the API, and what older ones would get runs no script", async () => {
    for (const headers of [ownPage, { ...ownPage, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script" }]) {
      const answer = await get(at, `${pathOf()}/app.js?token=${token()}`, headers);
      expect([answer.status, answer.json.error.code]).toEqual([403, "forbidden"]);
    }
    expect(program.seen).toEqual([]);
    const old = await get(at, `${pathOf()}/?token=${token()}`, { Accept: "text/html" });
    expect(old.headers["content-security-policy"]).toBe("sandbox");
  });

  it("is not given a cookie by a program for its neighbours, nor ours", async () => {
    program.answer = (_request, response) => {
      response.writeHead(200, { "Set-Cookie": ["a=1; Path=/in; Domain=localhost; HttpOnly", "mitos_preview=x", "b=2"] }).end();
    };
    expect((await get(at, "/", onHost(cookie()))).headers["set-cookie"]).toEqual(["a=1; Path=/in; HttpOnly", "b=2"]);
    const inPath = await get(at, `${pathOf()}/`, { "Mitos-Preview-Token": token() });
    expect(inPath.headers["set-cookie"]).toEqual([`a=1; Path=${pathOf()}/in; HttpOnly`, "b=2"]);
  });

  it("that opens a port where nothing listens yet is shown a page that tries again", async () => {
    const host = hostOf(1);
    const answer = await get(at, "/", onHost({ ...cookie(token(1)), ...navigation, Accept: "text/html" }, host));
    expect([answer.status, answer.headers["content-type"]]).toEqual([503, "text/html; charset=utf-8"]);
    expect(answer.text).toContain("nothing answers on port 1 of the sandbox");
    expect(answer.text).toContain('http-equiv="refresh"');
    const forProgram = await get(at, "/", onHost(cookie(token(1)), host));
    expect([forProgram.status, forProgram.json.error.code, forProgram.headers["retry-after"]]).toEqual([503, "unavailable", "1"]);
    expect(forProgram.json.error.remediation).toMatch(/listens on port 1 /);
  });
});

describe("a token", () => {
  const refused: [string, () => string, number, RegExp][] = [
    ["is missing", () => "", 401, /has none/],
    ["is not ours", () => "not-a-token", 401, /not one of this server's/],
    ["has expired", () => token(program.port, "sb-1", inAnHour() - 3601), 401, /expired/],
    ["is for another port", () => token(1), 403, /another sandbox or port/],
    ["is for another sandbox", () => token(program.port, "sb-2"), 403, /another sandbox or port/],
  ];
  it.each(refused)("that %s is refused in JSON in both forms", async (_what, make, status, cause) => {
    for (const answer of await Promise.all([get(at, `/?token=${make()}`, onHost()), get(at, `${pathOf()}/?token=${make()}`)])) {
      expect([answer.status, answer.headers["content-type"]]).toEqual([status, "application/json"]);
      expect(answer.json.error.cause).toMatch(cause);
      expect(answer.json.error.remediation).toMatch(/POST \/v1\/preview/);
    }
    expect(program.seen).toEqual([]);
  });

  it("is found among cookies that somebody else has set", async () => {
    const answer = await get(at, "/", onHost({ Cookie: `mitos_preview=${token(1)}; mitos_preview=${token()}` }));
    expect(answer.status).toBe(200);
  });

  it("appears in no log line and no audit line", async () => {
    await post(at, "/v1/preview", { sandbox: "sb-1", port: program.port });
    await get(at, `${pathOf()}/?token=${token()}`);
    await get(at, `/?token=${token()}x`, onHost());
    expect(at.logLines.join("\n")).toContain("answered");
    expect(at.logLines.join("\n")).not.toContain(token().split(".")[1]);
  });
});

describe("a sandbox", () => {
  it("that is gone is 404, and one that is paused 409, with what to do", async () => {
    const gone = await get(at, `${pathOf(80, "none")}/?token=${token(80, "none")}`);
    expect([gone.status, gone.json.error.code]).toEqual([404, "not_found"]);
    await post(at, "/v1/pause", { sandbox: "sb-1" });
    const paused = await get(at, `/?token=${token()}`, onHost());
    expect([paused.status, paused.json.error.code]).toEqual([409, "sandbox_not_running"]);
    expect(paused.json.error.remediation).toMatch(/Resume/);
  });

  it("is not opened by the token of an earlier one of its id", async () => {
    const [earlier, own] = [token(program.port, "sb-1", inAnHour()), token(program.port, "sb-1", inAnHour() + 60)];
    at.engine.earlierUntilUnix = inAnHour() + 30;
    for (const [target, headers] of [
      [`/?token=${earlier}`, onHost()],
      ["/", onHost(cookie(earlier))],
      ["/", onHost({ ...navigation, ...cookie(earlier) })],
      [`${pathOf()}/?token=${earlier}`, {}],
    ] as const) {
      const refused = await get(at, target, headers);
      expect([refused.status, refused.json.error.cause]).toEqual([401, "the token is for an earlier sandbox of this id"]);
    }
    expect(program.seen).toEqual([]);
    expect((await get(at, `/?token=${own}`, onHost(cookie(earlier)))).status).toBe(200);
  });

  it("whose id is no label is reached by its hash", async () => {
    await post(at, "/v1/fork", { id: "My_Box", template: "python" });
    at.engine.runtimes.get("My_Box")!.tunnel = tunnels.tunnel as never;
    const { url } = (await post(at, "/v1/preview", { sandbox: "My_Box", port: program.port })).json;
    expect(url).toMatch(/\/p\d+-h-[0-9a-f]{32}\//);
    expect((await get(at, url.slice(at.url.length))).status).toBe(200);
  });
});

describe("the hosts of previews", () => {
  it("reach no route of the API, whoever asks", async () => {
    for (const path of ["/v1/health", "/v1/sandboxes", "/metrics", "/sandbox.v1.Sandbox/Stat", "/v1/sandboxes/sb-1/expose/80/", pathOf()]) {
      expect((await get(at, path, onHost())).status).toBe(401);
      expect(asked(await get(at, path, onHost(cookie()))).url).toBe(path);
    }
    const destroy = await send(at, "DELETE", "/v1/sandboxes/sb-1", undefined, onHost(cookie()));
    expect(asked(destroy).method).toBe("DELETE");
    expect((await get(at, "/v1/sandboxes/sb-1")).status).toBe(200);
  });

  it("are labels below localhost with our port; other names below localhost reach nothing", async () => {
    const refused = (host: string): Promise<Answer> => get(at, `/v1/health?token=${token()}`, { Host: host });
    const label = `p${program.port}-sb-1`;
    for (const host of [
      `${label}.localhost`,
      `${label}.localhost:1`,
      `a.${label}.localhost:${ownPort()}`,
      `${label}.evil.example:${ownPort()}`,
    ]) {
      expect((await refused(host)).status).toBe(403);
    }
    for (const host of [`-x.localhost:${ownPort()}`, `a_b.localhost:${ownPort()}`]) expect((await refused(host)).status).toBe(404);
  });

  it("give their pages no right to drive the API", async () => {
    for (const origin of [`http://${hostOf()}`, "null"]) {
      for (const headers of [{ Origin: origin }, { Origin: origin, ...ownPage, "Sec-Fetch-Site": "cross-site" }]) {
        expect((await post(at, "/v1/fork", { id: "x", template: "python" }, headers)).status).toBe(403);
      }
    }
  });

  it("work over HTTP/2 without TLS", async () => {
    const session = connectHttp2(at.url);
    const stream = session.request({ ":method": "POST", ":path": `/in?token=${token()}`, ":authority": hostOf() }, { endStream: false });
    stream.end("over h2");
    const [headers] = await once(stream, "response");
    let text = "";
    for await (const part of stream) text += part;
    expect([headers[":status"], JSON.parse(text)]).toMatchObject([
      200,
      { method: "POST", url: "/in", body: "over h2", headers: { host: hostOf() } },
    ]);
    session.close();
  });
});

describe("what travels", () => {
  it("is an answer as it comes: status, reason for caching, ranges, several headers of a name, and no hop-by-hop ones", async () => {
    program.answer = (request, response) => {
      expect(request.headers).toMatchObject({ range: "bytes=0-1", connection: "close" });
      expect(request.headers).not.toHaveProperty("x-hop");
      response.writeHead(
        206,
        [
          ["Content-Range", "bytes 0-1/9"],
          ["X-A", "1"],
          ["X-A", "2"],
          ["X-Hop", "1"],
          ["Connection", "x-hop"],
        ].flat(),
      );
      response.end("ab");
    };
    const answer = await get(at, "/", onHost({ ...cookie(), Range: "bytes=0-1", Connection: "x-hop, close", "X-Hop": "1" }));
    expect(answer).toMatchObject({ status: 206, text: "ab", headers: { "content-range": "bytes 0-1/9", "x-a": "1, 2" } });
    expect(answer.headers).not.toHaveProperty("x-hop");
  });

  it("is HEAD without a body and with its length", async () => {
    program.answer = (_request, response) => response.writeHead(200, { "Content-Length": "12345" }).end();
    const answer = await send(at, "HEAD", "/", undefined, onHost(cookie()));
    expect([answer.status, answer.headers["content-length"], answer.text]).toEqual([200, "12345", ""]);
  });

  it("arrives piece by piece", async () => {
    const go = Promise.withResolvers<void>();
    program.answer = async (_request, response) => {
      response.writeHead(200, { "Content-Type": "text/event-stream" }).write("data: 1\n\n");
      await go.promise;
      response.end("data: 2\n\n");
    };
    const response = await fetch(`${at.url}${pathOf()}/?token=${token()}`, { headers: { Connection: "close" } });
    const reader = response.body!.getReader();
    expect(Buffer.from((await reader.read()).value!).toString()).toBe("data: 1\n\n");
    go.resolve();
    expect(Buffer.from((await reader.read()).value!).toString()).toBe("data: 2\n\n");
    expect((await reader.read()).done).toBe(true);
  });

  it("is cut off visibly when the program dies in mid-answer, and 503 when it dies before", async () => {
    program.answer = (request, response) => {
      response.writeHead(200, { "Content-Length": "10" }).write("half", () => request.socket.destroy());
    };
    await expect(get(at, "/", onHost(cookie()))).rejects.toThrow(/aborted|socket hang up/);
    program.answer = (request) => request.socket.destroy();
    const answer = await get(at, "/", onHost(cookie()));
    expect([answer.status, answer.json.error.message]).toEqual([503, "the program in the sandbox gave no answer"]);
  });

  it("is 503 when what listens does not speak HTTP", async () => {
    program.answer = (request) => request.socket.end("SSH-2.0-OpenSSH\r\n\r\n");
    const answer = await get(at, "/", onHost(cookie()));
    expect([answer.status, answer.json.error.cause]).toEqual([503, "what it sent is not HTTP"]);
  });

  it("goes no further when the client leaves", async () => {
    const left = Promise.withResolvers<void>();
    program.answer = (request, response) => {
      response.write("begun");
      request.socket.on("close", () => left.resolve());
    };
    const client = new AbortController();
    await fetch(`${at.url}${pathOf()}/?token=${token()}`, { signal: client.signal });
    client.abort();
    await left.promise;
  });

  it("waits for the program's word when the client asks before it sends", async () => {
    const talk = async (answer: typeof program.answer) => {
      program.answer = answer;
      const socket = connect(Number(ownPort()), "127.0.0.1");
      let seen = "";
      socket.on("data", (data) => {
        seen += data;
        if (data.includes("100 Continue")) socket.write("hello");
      });
      socket.write(
        `PUT / HTTP/1.1\r\nHost: ${hostOf()}\r\nCookie: mitos_preview=${token()}\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n`,
      );
      await once(socket, "close");
      return seen;
    };
    expect(await talk((_request, response) => response.writeHead(413).end())).toMatch(/^HTTP\/1.1 413/);
    const taken = await talk(async (request, response) => {
      response.writeContinue();
      for await (const part of request) response.write(part);
      response.end();
    });
    expect(taken).toMatch(/^HTTP\/1.1 100 Continue\r\n\r\nHTTP\/1.1 200[\s\S]*hello/);
  });

  it("waits for a place rather than fail when a page has many parts", async () => {
    const count = limits.previewRequestsPerSandboxMax + 20;
    let open = 0;
    let openMax = 0;
    const go = Promise.withResolvers<void>();
    program.answer = async (_request, response) => {
      openMax = Math.max(openMax, ++open);
      if (open === limits.previewRequestsPerSandboxMax) go.resolve();
      await go.promise;
      open -= 1;
      response.end("part");
    };
    const answers = await Promise.all(Array.from({ length: count }, () => get(at, "/", onHost(cookie()))));
    expect(answers.map(({ status }) => status)).toEqual(Array(count).fill(200));
    expect(openMax).toBe(limits.previewRequestsPerSandboxMax);
  });
});

describe("the end of the server", () => {
  it("ends what is open, and the client sees that it is not complete", async () => {
    program.answer = (_request, response) => void response.write("begun");
    const response = await fetch(`${at.url}${pathOf()}/?token=${token()}`);
    const socket = new WebSocket(`${at.url.replace("http", "ws")}/ws`, { headers: onHost(cookie()) });
    await once(socket, "open");
    const closed = once(socket, "close");
    const read = expect(response.text()).rejects.toThrow();
    await at.server.close();
    await Promise.all([closed, read]);
  }, 10_000);
});

describe("a WebSocket", () => {
  const dial = (path: string, headers: Record<string, string> = {}) => new WebSocket(`${at.url.replace("http", "ws")}${path}`, { headers });
  const echoes = async (socket: WebSocket) => {
    await once(socket, "open");
    socket.send("hello");
    const [data] = await once(socket, "message");
    socket.close(4001);
    const [code] = await once(socket, "close");
    return [String(data), code];
  };

  it("passes by cookie from the preview's own page, and by token from a program in both forms", async () => {
    expect(await echoes(dial("/ws", onHost({ ...cookie(), Origin: `http://${hostOf()}` })))).toEqual(["hello", 4001]);
    expect(await echoes(dial(`/ws?token=${token()}`, onHost()))).toEqual(["hello", 4001]);
    expect(await echoes(dial(`${pathOf()}/ws?token=${token()}`))).toEqual(["hello", 4001]);
    expect(program.seen.map(({ url }) => url)).toEqual(["/ws", "/ws", "/ws"]);
  });

  it.each([
    ["without a token", "/ws", () => onHost(), 401],
    ["of another site's page with the cookie", "/ws", () => onHost({ ...cookie(), Origin: "http://evil.example" }), 403],
    ["of a page, in the path form", "", () => ({ Origin: at.url, "Sec-Fetch-Site": "same-origin", "Mitos-Preview-Token": token() }), 403],
    ["to a port where nothing listens", "/", () => onHost({ "Mitos-Preview-Token": token(1) }, hostOf(1)), 503],
  ] as const)("%s is refused with the error in JSON", async (_what, path, headers, status) => {
    const [, response] = await once(dial(path || `${pathOf()}/ws`, headers()), "unexpected-response");
    const parts: Buffer[] = [];
    for await (const part of response as IncomingMessage) parts.push(part as Buffer);
    expect([(response as IncomingMessage).statusCode, typeof JSON.parse(Buffer.concat(parts).toString()).error.code]).toEqual([
      status,
      "string",
    ]);
  });

  it("ends with the sandbox's side, and ends it with the client's", async () => {
    const socket = dial("/ws", onHost(cookie()));
    await once(socket, "open");
    expect(tunnels.open).toBe(1);
    socket.terminate();
    await expect.poll(() => tunnels.open).toBe(0);
    const other = dial("/ws", onHost(cookie()));
    await once(other, "open");
    program.server.closeAllConnections();
    for (const request of program.seen) request.socket.destroy();
    await once(other, "close");
  });
});
