import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer, type ServerResponse } from "node:http";
import { type AddressInfo, createServer as createTcpServer, type Server } from "node:net";
import { promisify } from "node:util";
import { describe, expect, it, vi } from "vitest";
import { type FakeServer, type Respond, startFakeServer } from "../test/fake-server.ts";
import { newNodeHttp, nodeHttp } from "./node-http.ts";

async function served<T>(respond: Respond, use: (url: string, server: FakeServer) => Promise<T>): Promise<T> {
  await using server = await startFakeServer(respond);
  return await use(server.url, server);
}

function urlOf(server: Server): string {
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

const ask = newNodeHttp()!;

function get(url: string, { headers = {}, signal }: { headers?: Record<string, string>; signal?: AbortSignal } = {}) {
  return ask(`${url}/file`, { method: "GET", headers, signal });
}

/** All pieces are there before the first one is looked at: none may change when others come. */
async function bytesOf(response: Response): Promise<Buffer> {
  return Buffer.concat(await Array.fromAsync(response.body!));
}

describe("what comes is what was sent", () => {
  const framings = {
    "a length": (response: ServerResponse, content: Buffer) => response.writeHead(200, { "content-length": content.length }).end(content),
    chunks: async (response: ServerResponse, content: Buffer) => {
      for (let at = 0; at < content.length; at += 10_007)
        if (!response.write(content.subarray(at, at + 10_007))) await once(response, "drain");
      response.end();
    },
    "the end of the connection": ({ socket }: ServerResponse, content: Buffer) => {
      socket?.write("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
      socket?.end(content);
    },
  };

  for (const [framing, send] of Object.entries(framings)) {
    it.each([0, 1, 65_536, 300_000, 5_000_000])(`with ${framing}: %i bytes`, async (length) => {
      const content = randomBytes(length);
      await served(
        (_request, response) => void send(response, content),
        async (url) => {
          const response = await get(url);
          expect(response.status).toBe(200);
          expect((await bytesOf(response)).equals(content)).toBe(true);
        },
      );
    });
  }

  it("with several at once", async () => {
    const contents = Array.from({ length: 6 }, () => randomBytes(2_000_000));
    await served(
      (request, response) => response.end(contents[Number(request.headers["x-which"])]),
      async (url) => {
        const all = contents.map(async (_, which) => bytesOf(await get(url, { headers: { "X-Which": String(which) } })));
        for (const [which, bytes] of (await Promise.all(all)).entries()) expect(bytes.equals(contents[which]!)).toBe(true);
      },
    );
  });

  it("with its status and headers, and what was asked with", async () => {
    await served(
      ({ method, path, headers: { range, authorization } }, response) =>
        response.writeHead(206, { "x-asked": `${method} ${path} ${range} ${authorization}`, "set-cookie": ["a=1", "b=2"] }).end("part"),
      async (url) => {
        const response = await get(url, { headers: { Range: "bytes=0-3", Authorization: "Bearer key" } });
        expect(response.status).toBe(206);
        expect(response.headers.get("x-asked")).toBe("GET /file bytes=0-3 Bearer key");
        expect(response.headers.getSetCookie()).toEqual(["a=1", "b=2"]);
        expect(await response.text()).toBe("part");
      },
    );
  });
});

describe("what is sent", () => {
  it.each([
    ["nothing", undefined, ""],
    ["an empty text", "", ""],
    ["a text", "grüße", "grüße"],
    ["bytes", Buffer.from("bytes"), "bytes"],
    ["many bytes", new Uint8Array(8_000_000).fill(97), "a".repeat(8_000_000)],
  ])("arrives: %s", async (_what, body, expected) => {
    await served(
      (_request, response) => response.end(),
      async (url, { requests }) => {
        await ask(url, { method: "POST", headers: {}, body });
        expect(requests[0]?.headers["content-length"]).toBe(String(Buffer.byteLength(expected)));
        expect(requests[0]?.body.toString() === expected).toBe(true);
      },
    );
  });

  it("is given up when the answer comes before it, and the answer counts", async () => {
    const { promise: closed, resolve } = Promise.withResolvers<void>();
    const server = createServer((request, response) => {
      request.socket.once("close", resolve);
      response.writeHead(413).end("too much");
    }).listen(0, "127.0.0.1");
    await once(server, "listening");
    const response = await ask(urlOf(server), { method: "PUT", headers: {}, body: new Uint8Array(40_000_000) });
    expect([response.status, await response.text()]).toEqual([413, "too much"]);
    await closed;
    server.close();
  });
});

describe("a reader", () => {
  /** As fast as it is taken; without `content` it never ends. */
  async function send(response: ServerResponse, content?: Buffer, onSent?: (bytes: number) => void) {
    const endless = Buffer.alloc(65_536);
    const closed = once(response, "close");
    for (let at = 0; !response.destroyed && at < (content?.length ?? Number.POSITIVE_INFINITY); at += 65_536) {
      if (!response.write(content?.subarray(at, at + 65_536) ?? endless)) await Promise.race([once(response, "drain"), closed]);
      onSent?.(at);
    }
    response.end();
  }

  it("that stops is not sent to without end, and goes on", async () => {
    let sent = 0;
    const content = randomBytes(60_000_000);
    await served(
      (_request, response) => void send(response, content, (bytes) => (sent = bytes)),
      async (url) => {
        const reader = (await get(url)).body!.getReader();
        const pieces = [(await reader.read()).value!];
        for (let before = -1; sent !== before; ) {
          before = sent;
          await new Promise((resolve) => setTimeout(resolve, 300));
        }
        // Of which nearly all is in the buffers of the host's own sockets.
        expect(sent).toBeLessThan(30_000_000);
        for (;;) {
          const { done, value } = await reader.read();
          if (done) break;
          pieces.push(value);
        }
        expect(Buffer.concat(pieces).equals(content)).toBe(true);
      },
    );
  });

  it("that leaves closes the connection", async () => {
    const { promise: closed, resolve } = Promise.withResolvers<void>();
    await served(
      (_request, response) => {
        response.on("close", resolve);
        void send(response);
      },
      async (url) => {
        for await (const piece of (await get(url)).body!) {
          expect(piece.length).toBeGreaterThan(0);
          break;
        }
        await closed;
        // What the connection says at its end is nobody's concern any more, and not an error that ends the program.
        await new Promise((resolve) => setTimeout(resolve, 50));
      },
    );
  });

  it("hears of the reason when its signal fires, before the answer and within it", async () => {
    const reason = new Error("enough");
    await served(
      (request, response) => void (request.headers["x-answer"] && send(response)),
      async (url) => {
        const silent = get(url, { signal: AbortSignal.timeout(50) });
        await expect(silent).rejects.toThrow();
        const controller = new AbortController();
        const response = await get(url, { headers: { "X-Answer": "1" }, signal: controller.signal });
        const read = bytesOf(response);
        setTimeout(() => controller.abort(reason), 50);
        await expect(read).rejects.toBe(reason);
      },
    );
  });

  it("hears of an answer that breaks off", async () => {
    await served(
      (_request, response) => {
        response.writeHead(200, { "content-length": "100" }).write("half");
        setTimeout(() => response.destroy(), 50);
      },
      async (url) => {
        await expect(get(url).then(bytesOf)).rejects.toThrow();
      },
    );
  });
});

describe("connections", () => {
  it("are used again, and do not keep a program from ending", async () => {
    await served(
      (_request, response) => response.end("content"),
      async (url, { requests }) => {
        for (let time = 0; time < 3; time++) await bytesOf(await get(url));
        expect(requests.map(({ connection }) => connection)).toEqual([0, 0, 0]);
        const module = JSON.stringify(import.meta.resolve("./node-http.ts"));
        const asks = `await nodeHttp("${url}")("${url}", { method: "GET", headers: {} })`;
        const program = `const { nodeHttp } = await import(${module}); console.log(await (${asks}).text());`;
        const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "--eval", program], { timeout: 20_000 });
        expect(stdout).toBe("content\n");
      },
    );
  });

  it("that nobody uses are closed, and those in use are not, however silent", async () => {
    const hasty = newNodeHttp({ idleMs: 200 })!;
    const { promise: closed, resolve } = Promise.withResolvers<void>();
    await served(
      (request, response) => {
        response.write("begun ");
        if (request.headers["x-silent"]) setTimeout(() => response.end("ended"), 600);
        else {
          response.socket?.once("close", resolve);
          response.end();
        }
      },
      async (url) => {
        const silent = hasty(url, { method: "GET", headers: { "X-Silent": "1" } });
        await (await hasty(url, { method: "GET", headers: {} })).text();
        await closed;
        expect(await (await silent).text()).toBe("begun ended");
      },
    );
  });

  it("that the server closes just when they are to be used again are replaced, unless what was asked may have been done", async () => {
    let answered = 0;
    const server = createTcpServer((socket) => {
      let asked = 0;
      socket.on("error", () => undefined);
      socket.on("data", () => {
        asked += 1;
        if (asked > 1) return socket.resetAndDestroy();
        answered += 1;
        return socket.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
      });
    }).listen(0, "127.0.0.1");
    await once(server, "listening");
    const url = urlOf(server);
    for (let time = 0; time < 3; time++) expect(await (await get(url)).text()).toBe("ok");
    expect(answered).toBe(3);
    await expect(ask(url, { method: "POST", headers: {}, body: "create" })).rejects.toMatchObject({ code: "ECONNRESET" });
    expect(answered).toBe(3);
    server.close();
  });

  it("to nobody fail, and so does an answer that leads elsewhere", async () => {
    const gone = await served(
      (_request, response) => response.writeHead(307, { location: "/elsewhere" }).end(),
      async (url) => {
        await expect(get(url)).rejects.toThrow("unexpected redirect (307)");
        return url;
      },
    );
    await expect(get(gone)).rejects.toMatchObject({ code: "ECONNREFUSED" });
  });
});

it("is left to fetch over TLS, and where something stands in the place of fetch", () => {
  expect(nodeHttp("https://127.0.0.1")).toBeUndefined();
  expect(nodeHttp("http://127.0.0.1")).toBeDefined();
  vi.stubGlobal("fetch", async () => new Response());
  expect(nodeHttp("http://127.0.0.1")).toBeUndefined();
  vi.unstubAllGlobals();
});
