import { describe, expect, it } from "vitest";
import { base64, endOfStream, frame, json, type Respond, startFakeServer, stream } from "../test/fake-server.ts";
import { NotFoundError } from "./errors.ts";
import { Sandbox } from "./sandbox.ts";

async function withFiles<T>(
  respond: Respond,
  use: (files: Sandbox["files"], server: Awaited<ReturnType<typeof startFakeServer>>) => Promise<T>,
) {
  await using server = await startFakeServer(respond);
  return await use(new Sandbox({ id: "sb", endpoint: server.url }).files, server);
}

describe("read", () => {
  const parts: Respond = (_request, response) =>
    stream(response, frame({ data: base64("part-one ") }), frame({ data: base64("part-two"), eof: true }), endOfStream);

  it("joins the parts of a file", async () => {
    expect(await withFiles(parts, (files) => files.read("/a"))).toBe("part-one part-two");
  });

  it("keeps bytes as they are", async () => {
    const respond: Respond = (_request, response) =>
      stream(response, frame({ data: base64(Uint8Array.of(0, 255, 128)), eof: true }), endOfStream);
    expect(await withFiles(respond, (files) => files.readBytes("/a"))).toEqual(Uint8Array.of(0, 255, 128));
  });

  it("does not take a file that was cut off for the whole", async () => {
    const cut: Respond = (_request, response) => stream(response, frame({ data: base64("half") }), endOfStream);
    await expect(withFiles(cut, (files) => files.read("/a"))).rejects.toMatchObject({ code: "file_failed" });
  });

  it("as a stream asks for a range of the raw file", async () => {
    const respond: Respond = (_request, response) => response.writeHead(206).end("cde");
    await withFiles(respond, async (files, server) => {
      expect(await new Response(await files.readStream("/a b", { offset: 2, length: 3 })).text()).toBe("cde");
      expect(server.requests[0]).toMatchObject({ method: "GET", path: "/v1/sandboxes/sb/files?path=%2Fa+b" });
      expect(server.requests[0]?.headers.range).toBe("bytes=2-4");
    });
  });
});

describe("a part of a file", () => {
  /** As the server answers: a range that begins behind the end is refused, one without a last byte goes to the end. */
  const serve =
    (content: string): Respond =>
    ({ headers: { range } }, response) => {
      const [, first = "0", last] = /^bytes=(\d+)-(\d*)$/.exec(range ?? "") ?? [];
      if (range === undefined || (last && Number(last) < Number(first))) return response.writeHead(200).end(content);
      if (Number(first) >= content.length) return json(response, 416, { error: { code: "invalid_input", message: "m", remediation: "r" } });
      return response.writeHead(206).end(content.slice(Number(first), last ? Number(last) + 1 : undefined));
    };

  it.each([
    ["nothing", "content", { length: 0 }, ""],
    ["nothing of the middle", "content", { offset: 3, length: 0 }, ""],
    ["the beginning", "content", { length: 3 }, "con"],
    ["the end", "content", { offset: 3 }, "tent"],
    ["the beginning of an empty file", "", { length: 3 }, ""],
  ])("%s is exactly that", async (_what, content, part, expected) => {
    expect(await withFiles(serve(content), async (files) => new Response(await files.readStream("/a", part)).text())).toBe(expected);
  });

  it("that begins behind the end is refused", async () => {
    await expect(withFiles(serve("content"), (files) => files.readStream("/a", { offset: 7 }))).rejects.toMatchObject({ status: 416 });
  });
});

describe("a stream that does not reach its end", () => {
  const half: Respond = (_request, response) => response.writeHead(200, { "Content-Length": "8" }).write("half");

  it("fails with transport_error when the server goes away", async () => {
    const respond: Respond = (request, response) => {
      half(request, response);
      setTimeout(() => response.destroy(), 50);
    };
    await withFiles(respond, async (files) => {
      const stream = await files.readStream("/a");
      await expect(new Response(stream).text()).rejects.toMatchObject({ code: "transport_error" });
    });
  });

  it("fails with canceled when its signal fires", async () => {
    await withFiles(half, async (files) => {
      const controller = new AbortController();
      const stream = await files.readStream("/a", { signal: controller.signal });
      setTimeout(() => controller.abort(), 50);
      await expect(new Response(stream).text()).rejects.toMatchObject({ code: "canceled" });
    });
  });

  it("closes its request when it is left early", async () => {
    const { promise: closed, resolve } = Promise.withResolvers<void>();
    const respond: Respond = (request, response) => {
      response.on("close", resolve);
      half(request, response);
    };
    await withFiles(respond, async (files) => {
      for await (const part of await files.readStream("/a")) {
        expect(Buffer.from(part).toString()).toBe("half");
        break;
      }
      await closed;
    });
  });
});

describe("write", () => {
  const written: Respond = (request, response) => {
    const data = request.messages()[1]?.data as string;
    stream(response, frame({ bytesWritten: String(Buffer.from(data, "base64").length) }), endOfStream);
  };

  it("sends an open frame and a data frame, and the mode only when it is given", async () => {
    await withFiles(written, async (files, server) => {
      await files.write("/a", "hello");
      await files.write("/b", Uint8Array.of(0, 1, 2), { mode: 0o600 });
      expect(server.requests[0]?.messages()).toEqual([{ open: { path: "/a" } }, { data: base64("hello") }]);
      expect(server.requests[1]?.messages()).toEqual([{ open: { path: "/b", mode: 384 } }, { data: "AAEC" }]);
    });
  });

  it("notices when less was written than sent", async () => {
    const short: Respond = (_request, response) => stream(response, frame({ bytesWritten: "2" }), endOfStream);
    await expect(withFiles(short, (files) => files.write("/a", "hello"))).rejects.toMatchObject({ code: "file_failed" });
  });

  it.each([
    ["large bytes", () => new Uint8Array(3 * 1024 * 1024).fill(7), 3 * 1024 * 1024],
    ["a stream", () => new Blob(["stream"]).stream(), 6],
    ["a blob", () => new Blob(["blob"]), 4],
    [
      "an iterable",
      async function* () {
        yield Buffer.from("one ");
        yield Buffer.from("two");
      },
      7,
    ],
  ] as const)("streams %s to the raw file", async (_title, content, length) => {
    await withFiles(
      (request, response) => json(response, 200, { bytes_written: request.body.length }),
      async (files, server) => {
        await files.write("/big", content(), { mode: 0o755 });
        expect(server.requests[0]).toMatchObject({ method: "PUT", path: "/v1/sandboxes/sb/files?path=%2Fbig&mode=755" });
        expect(server.requests[0]?.body).toHaveLength(length);
      },
    );
  });
});

it("list maps the members of the wire, and asks for / by default", async () => {
  const entry = { name: "a.txt", path: "/a.txt", size: "2", mode: 33_188, modifiedAtUnix: "1700000000" };
  await withFiles(
    (_request, response) => json(response, 200, { entries: [entry, { name: "d", isDir: true }] }),
    async (files, server) => {
      expect(await files.list()).toEqual([
        { name: "a.txt", path: "/a.txt", isDir: false, size: 2, mode: 33_188, modifiedAt: "1700000000" },
        { name: "d", isDir: true, size: 0, mode: 0 },
      ]);
      expect(server.requests[0]?.json()).toEqual({ parent: "/" });
    },
  );
});

describe("exists", () => {
  const respond =
    (sandboxLives: boolean): Respond =>
    (request, response) => {
      const found = request.json().path === "/there" || (request.json().path === "/" && sandboxLives);
      if (found) json(response, 200, { name: "there" });
      else json(response, 404, { code: "not_found", message: "no" });
    };

  it("tells a path that is there from one that is not", async () => {
    expect(await withFiles(respond(true), (files) => files.exists("/there"))).toBe(true);
    expect(await withFiles(respond(true), (files) => files.exists("/missing"))).toBe(false);
  });

  it("does not take a sandbox that is gone for a missing file", async () => {
    await expect(withFiles(respond(false), (files) => files.exists("/missing"))).rejects.toBeInstanceOf(NotFoundError);
  });
});

it("mkdir and remove are unary calls", async () => {
  await withFiles(
    (_request, response) => json(response, 200, {}),
    async (files, server) => {
      await files.mkdir("/d");
      await files.remove("/d");
      expect(server.requests.map(({ path }) => path)).toEqual(["/sandbox.v1.Sandbox/Mkdir", "/sandbox.v1.Sandbox/Remove"]);
    },
  );
});

it("watch yields events until the iteration is left, and then closes its request", async () => {
  const { promise: closed, resolve } = Promise.withResolvers<void>();
  const respond: Respond = (_request, response) => {
    response.on("close", resolve);
    response
      .writeHead(200)
      .write(Buffer.concat([frame({ kind: "CREATE", path: "/w/a" }), frame({ kind: "RENAME", path: "/w/a", newPath: "/w/b" })]));
  };
  await withFiles(respond, async (files) => {
    const events: unknown[] = [];
    for await (const event of files.watch("/w")) {
      events.push(event);
      if (events.length === 2) break;
    }
    expect(events).toEqual([
      { kind: "create", path: "/w/a" },
      { kind: "rename", path: "/w/a", newPath: "/w/b" },
    ]);
    await closed;
  });
});
