import { randomBytes } from "node:crypto";
import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { download } from "./download.ts";
import { type Answer, FakeRegistry, HastyClock } from "./fake-registry.ts";
import { ociLayerGzip } from "./manifest.ts";
import { digestOf } from "./registry.ts";

const content = randomBytes(300_000);
const blob = { mediaType: ociLayerGzip, digest: digestOf(content), bytes: content.length };

/** All of it, or the part that was asked for. */
const honest: Answer = ({ headers }, response) => {
  const from = Number(/^bytes=(\d+)-$/.exec(headers.range ?? "")?.[1] ?? 0);
  if (from > 0) response.writeHead(206, { "content-range": `bytes ${from}-${content.length - 1}/${content.length}` });
  response.end(content.subarray(from));
};

describe("a download of a blob", () => {
  let dir: string;
  let file: string;
  let clock: HastyClock;
  beforeEach(async () => {
    dir = await mkdtemp(path.join(tmpdir(), "mitos-download-"));
    file = path.join(dir, "blob");
    clock = new HastyClock();
  });
  afterEach(() => rm(dir, { recursive: true }));

  function from(registry: FakeRegistry, options: { signal?: AbortSignal; onBytes?: (bytes: number) => void } = {}): Promise<void> {
    return download(registry.client(clock), "team/tool", blob, file, { clock, ...options });
  }

  const ranges = (registry: FakeRegistry) => registry.asked.map(({ headers }) => headers.range);

  it("is in the file, whole", async () => {
    await using registry = await FakeRegistry.start(honest);
    const seen: number[] = [];
    await from(registry, { onBytes: (bytes) => seen.push(bytes) });
    expect(await readFile(file)).toEqual(content);
    expect(seen.at(-1)).toBe(content.length);
    expect(registry.asked[0]?.url).toBe(`/v2/team/tool/blobs/${blob.digest}`);
  });

  it("goes on where a connection broke", async () => {
    let breakIt = () => {};
    await using registry = await FakeRegistry.start(({ headers }, response) => {
      const from = Number(/^bytes=(\d+)-$/.exec(headers.range ?? "")?.[1] ?? 0);
      const range = { "content-range": `bytes ${from}-${content.length - 1}/${content.length}` };
      response.writeHead(from > 0 ? 206 : 200, { "content-length": content.length - from, ...(from > 0 ? range : {}) });
      response.write(content.subarray(from, from + 100_000));
      breakIt = () => response.destroy();
    });
    await from(registry, { onBytes: (bytes) => bytes > 0 && bytes % 100_000 === 0 && breakIt() });
    expect(await readFile(file)).toEqual(content);
    expect(ranges(registry)).toEqual([undefined, "bytes=100000-", "bytes=200000-"]);
    expect(clock.pausesMs).toHaveLength(2);
  });

  it("goes on with what an earlier server has got", async () => {
    await writeFile(file, content.subarray(0, 250_000));
    await using registry = await FakeRegistry.start(honest);
    await from(registry);
    expect(await readFile(file)).toEqual(content);
    expect(ranges(registry)).toEqual(["bytes=250000-"]);
  });

  it("asks for nothing when all of it is there already", async () => {
    await writeFile(file, content);
    await using registry = await FakeRegistry.start(honest);
    await from(registry);
    expect(registry.asked).toEqual([]);
  });

  it("begins anew, once, when what was there is damaged", async () => {
    await writeFile(file, Buffer.concat([Buffer.from("x"), content.subarray(1, 1000)]));
    await using registry = await FakeRegistry.start(honest);
    await from(registry);
    expect(await readFile(file)).toEqual(content);
    expect(ranges(registry)).toEqual(["bytes=1000-", undefined]);
  });

  it("takes all of it from a registry that ignores Range", async () => {
    await writeFile(file, content.subarray(0, 1000));
    await using registry = await FakeRegistry.start((_, response) => response.end(content));
    await from(registry);
    expect(await readFile(file)).toEqual(content);
  });

  it.each([
    ["refuses the range", (response: Parameters<Answer>[1]) => response.writeHead(416).end()],
    [
      "sends another range",
      (response: Parameters<Answer>[1]) =>
        response.writeHead(206, { "content-range": `bytes 5-${content.length - 1}/*` }).end(content.subarray(5)),
    ],
  ])("begins anew with a registry that %s", async (_, misbehave) => {
    await writeFile(file, content.subarray(0, 1000));
    await using registry = await FakeRegistry.start((asked, response) =>
      asked.headers.range ? misbehave(response) : honest(asked, response),
    );
    await from(registry);
    expect(await readFile(file)).toEqual(content);
  });

  it("refuses other content with build_failed, and keeps none of it", async () => {
    const other = randomBytes(content.length);
    await using registry = await FakeRegistry.start((_, response) => response.end(other));
    await expect(from(registry)).rejects.toMatchObject({ code: "build_failed", message: expect.stringContaining("another digest") });
    expect((await stat(file)).size).toBe(0);
    expect(registry.asked).toHaveLength(1);
  });

  it("stops at the first byte too many of a body without end", async () => {
    let sent = 0;
    await using registry = await FakeRegistry.start((_, response) => {
      const more = () => {
        while (!response.destroyed && response.write(content)) sent += content.length;
      };
      response.on("drain", more);
      more();
    });
    await expect(from(registry)).rejects.toMatchObject({ code: "build_failed", message: expect.stringContaining("more than") });
    expect((await stat(file)).size).toBe(0);
    // What the sockets hold on the way, and no more.
    expect(sent).toBeLessThan(100 * content.length);
  });

  it("gives up after five attempts that bring nothing, with unavailable, and keeps what it has", async () => {
    await writeFile(file, content.subarray(0, 1000));
    await using registry = await FakeRegistry.start((_, response) => response.destroy());
    await expect(from(registry)).rejects.toMatchObject({ code: "unavailable" });
    expect(registry.asked).toHaveLength(5);
    expect((await stat(file)).size).toBe(1000);
  });

  it("does not count a body that ends early, but properly, as the whole", async () => {
    await using registry = await FakeRegistry.start((_, response) => response.end(content.subarray(0, 10)));
    await expect(from(registry)).rejects.toMatchObject({ code: "unavailable" });
    expect(registry.asked).toHaveLength(5);
  });

  it("tries again when nothing comes for thirty seconds", async () => {
    await using registry = await FakeRegistry.start((asked, response) => {
      if (registry.asked.length > 1) return honest(asked, response);
      response.writeHead(200, { "content-length": content.length });
      response.write(content.subarray(0, 1000));
    });
    const done = from(registry, { onBytes: (bytes) => bytes === 1000 && setImmediate(() => clock.reachLimits()) });
    await done;
    expect(await readFile(file)).toEqual(content);
    expect(ranges(registry)).toEqual([undefined, "bytes=1000-"]);
    expect(clock.limitsWaiting).toBe(0);
  });

  it("keeps what it has when it is canceled", async () => {
    const abort = new AbortController();
    await using registry = await FakeRegistry.start((_, response) => {
      response.writeHead(200, { "content-length": content.length });
      response.write(content.subarray(0, 1000));
    });
    await expect(from(registry, { signal: abort.signal, onBytes: (bytes) => bytes > 0 && abort.abort() })).rejects.toMatchObject({
      code: "canceled",
    });
    expect((await stat(file)).size).toBeGreaterThan(0);
    expect(registry.asked).toHaveLength(1);
  });

  it("asks a busy registry again when it says so, and a failing one with growing pauses", async () => {
    const answers = [
      (response: Parameters<Answer>[1]) => response.writeHead(429, { "retry-after": "7" }).end(),
      (response: Parameters<Answer>[1]) => response.writeHead(503).end("down"),
      (response: Parameters<Answer>[1]) => response.writeHead(500).end(),
    ];
    await using registry = await FakeRegistry.start((asked, response) => {
      const next = answers.shift();
      if (next) next(response);
      else honest(asked, response);
    });
    await from(registry);
    expect(clock.pausesMs[0]).toBe(7000);
    expect(clock.pausesMs[2]).toBeGreaterThan(clock.pausesMs[1]!);
  });

  it("does not wait for a registry that wants an hour of quiet", async () => {
    await using registry = await FakeRegistry.start((_, response) => response.writeHead(429, { "retry-after": "3600" }).end());
    await expect(from(registry)).rejects.toMatchObject({ code: "unavailable", detail: { retryAfterMs: 3_600_000 } });
    expect(registry.asked).toHaveLength(1);
  });

  it("says not_found for a blob that is not there, at once", async () => {
    await using registry = await FakeRegistry.start((_, response) => response.writeHead(404).end('{"errors":[{"code":"BLOB_UNKNOWN"}]}'));
    await expect(from(registry)).rejects.toMatchObject({ code: "not_found", message: expect.stringContaining("BLOB_UNKNOWN") });
    expect(registry.asked).toHaveLength(1);
  });
});
