import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { chmod, chown, mkdir, mkdtemp, readdir, readFile, rm, stat, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { MitosError } from "@mitos/protocol";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { quiet } from "../testing.ts";
import { findLayersTool } from "./find.ts";
import type { Digest, Layer } from "./layer.ts";
import { LayerStore } from "./store.ts";

let dataDir = "";

beforeEach(async () => {
  dataDir = await mkdtemp(path.join(tmpdir(), "mitos-layers-"));
});

afterEach(async () => {
  vi.unstubAllEnvs();
  // What was begun was finished or removed, whatever a test did.
  const names = await readdir(path.join(dataDir, "layers")).catch(() => []);
  await rm(dataDir, { recursive: true, force: true });
  expect(names.filter((name) => !/^[0-9a-f]{64}$/.test(name))).toEqual([]);
});

const openStore = (tool?: string) => LayerStore.open({ dataDir, log: quiet, ...(tool ? { tool } : {}) });

/** A tar with these files, names unchecked. */
function tarOf(files: Readonly<Record<string, string>>): Buffer {
  const blocks = Object.entries(files).flatMap(([name, content]) => {
    const data = Buffer.from(content);
    return [tarHeader(name, data.length), data, Buffer.alloc((512 - (data.length % 512)) % 512)];
  });
  return Buffer.concat([...blocks, Buffer.alloc(1024)]);
}

function tarHeader(name: string, size: number, mode = 0o644, type = "0"): Buffer {
  const block = Buffer.alloc(512);
  block.write(name, 0, 100);
  block.write(mode.toString(8).padStart(7, "0"), 100);
  block.write(size.toString(8).padStart(11, "0"), 124);
  block.write(`        ${type}`, 148);
  block.write("ustar\x0000", 257);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(6, "0")}\0`, 148);
  return block;
}

function digestOf(tar: Uint8Array): Digest {
  return `sha256:${createHash("sha256").update(tar).digest("hex")}`;
}

/** In pieces, as it comes from a network. */
async function* stream(bytes: Uint8Array, pieceBytes = 700): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += pieceBytes) yield bytes.subarray(at, at + pieceBytes);
}

async function collect(chunks: AsyncIterable<Uint8Array>): Promise<Buffer> {
  return Buffer.concat(await Array.fromAsync(chunks));
}

async function failureOf(work: Promise<unknown>): Promise<MitosError> {
  const failure = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(failure).toBeInstanceOf(MitosError);
  return failure as MitosError;
}

/** Time of last use, as after a restart. */
async function lastUsed(layer: Layer, ago: number): Promise<void> {
  const at = new Date(Date.now() - ago);
  await utimes(layer.dir, at, at);
}

test("unpacks a layer under the digest of its tar, however it is compressed", async () => {
  const tar = tarOf({ "etc/motd": "hello", "usr/bin/tool": "#!" });
  for (const compressed of [tar, gzipSync(tar), zstdCompressSync(tar)]) {
    const store = await openStore();
    let taken = 0;
    const expected = digestOf(tar);
    const layer = await store.add(stream(compressed), { expected, onBytes: (bytes) => (taken += bytes) });
    expect(layer).toMatchObject({ id: expected, bytes: 7, entries: 2 });
    expect(taken).toBe(compressed.length);
    expect(await readFile(path.join(layer.dir, "tree/etc/motd"), "utf8")).toBe("hello");
    expect((await stat(layer.dir)).mode & 0o777).toBe(0o700);
    expect([store.has(expected), store.get(expected)]).toEqual([true, layer]);
    await store.collect(new Set(), { olderThanMs: -1 });
    expect(store.has(expected)).toBe(false);
  }
});

test("knows its layers after a restart, and throws away what was not finished", async () => {
  const layer = await (await openStore()).add(stream(tarOf({ a: "1" })));
  const cut = await (await openStore()).add(stream(tarOf({ b: "2" })));
  const index = path.join(cut.dir, "index");
  await writeFile(index, (await readFile(index, "utf8")).slice(0, -9));
  for (const name of [".making-1234", ".removing-1234", "0".repeat(64), "something"]) {
    await mkdir(path.join(dataDir, "layers", name, "tree/deep"), { recursive: true });
  }
  const store = await openStore();
  expect(store.get(layer.id)).toEqual(layer);
  expect(store.has(cut.id)).toBe(false);
  expect(await readdir(path.join(dataDir, "layers"))).toEqual([layer.id.slice(7)]);
});

test("does not read a layer that is here already", async () => {
  const store = await openStore();
  const tar = tarOf({ a: "1" });
  const layer = await store.add(stream(tar));
  const unread = {
    [Symbol.asyncIterator]() {
      throw new Error("it was read");
    },
  };
  expect(await store.add(unread, { expected: digestOf(tar) })).toEqual(layer);
});

test("unpacks equal layers at the same time once, and lets the next one go on when the first fails", async () => {
  const store = await openStore();
  const tar = tarOf({ a: "1" });
  const expected = digestOf(tar);
  const release = Promise.withResolvers<void>();
  const broken = (async function* () {
    yield tar.subarray(0, 600);
    await release.promise;
    throw new MitosError("unavailable", { cause: "the registry went away" });
  })();
  const first = failureOf(store.add(broken, { expected }));
  const started: number[] = [];
  const others = [1, 2, 3].map((number) =>
    store.add(
      (async function* () {
        started.push(number);
        yield* stream(tar);
      })(),
      { expected },
    ),
  );
  expect(started).toEqual([]);
  release.resolve();
  expect((await first).code).toBe("unavailable");
  const layers = await Promise.all(others);
  expect(started).toEqual([1]);
  expect(new Set(layers).size).toBe(1);
});

test("keeps one of two equal layers that nobody announced", async () => {
  const store = await openStore();
  const tar = tarOf({ a: "1" });
  const layers = await Promise.all([store.add(stream(tar)), store.add(stream(gzipSync(tar))), store.add(stream(tar))]);
  expect(new Set(layers).size).toBe(1);
});

test("refuses hostile, damaged and other layers with build_failed and what to do", async () => {
  const store = await openStore();
  const good = tarOf({ a: "1" });
  const cases: [AsyncIterable<Uint8Array>, Digest | undefined, string, string][] = [
    [stream(tarOf({ "../escape": "x" })), undefined, "hostile", "../escape: `..` in a path"],
    [stream(good.subarray(0, 700)), undefined, "corrupt", "in the middle"],
    [stream(gzipSync(good).subarray(0, -4)), undefined, "corrupt", ""],
    [stream(good), digestOf(Buffer.from("other")), "corrupt", `the image says ${digestOf(Buffer.from("other"))}`],
  ];
  for (const [tar, expected, reason, cause] of cases) {
    const { code, detail } = await failureOf(store.add(tar, expected ? { expected } : {}));
    expect([code, detail.context?.reason]).toEqual(["build_failed", reason]);
    expect(detail.cause).toContain(cause);
    expect(detail.remediation).toBeTruthy();
  }
  expect(await readdir(path.join(dataDir, "layers"))).toEqual([]);
  await expect(stat(path.join(dataDir, "escape"))).rejects.toThrow();
});

test("throws what the source of a layer throws, and leaves nothing of it", async () => {
  const store = await openStore();
  const broken = async function* () {
    yield tarOf({ a: "1" }).subarray(0, 512);
    throw new MitosError("unavailable", { cause: "the registry went away" });
  };
  expect((await failureOf(store.add(broken()))).detail.cause).toBe("the registry went away");
});

test("ends with canceled when it is aborted in the middle, also while it waits for another one", async () => {
  const store = await openStore();
  const tar = tarOf({ a: "1" });
  const expected = digestOf(tar);
  let closed = false;
  const endless = async function* () {
    try {
      yield tar.subarray(0, 512);
      for (;;) yield await new Promise<Uint8Array>((resolve) => setImmediate(resolve, tar.subarray(512, 513)));
    } finally {
      closed = true;
    }
  };
  const [first, second] = [new AbortController(), new AbortController()];
  // Of a file that has no end for a long time.
  const header = tarHeader("a", 8 ** 11 - 1);
  const source = (async function* () {
    yield header;
    yield* endless();
  })();
  const adding = failureOf(store.add(source, { expected, signal: first.signal }));
  const waiting = failureOf(store.add(stream(tar), { expected, signal: second.signal }));
  second.abort();
  expect((await waiting).code).toBe("canceled");
  const making = () => readdir(path.join(dataDir, "layers"));
  await expect.poll(making).toHaveLength(1);
  first.abort();
  expect((await adding).code).toBe("canceled");
  await expect.poll(() => closed).toBe(true);
  expect(await making()).toEqual([]);
  expect((await failureOf(store.add(stream(tar), { signal: AbortSignal.abort() }))).code).toBe("canceled");
});

test("takes no more of a layer than the tool reads", async () => {
  const store = await openStore();
  const tar = tarOf({ "../bad": "" });
  let yielded = 0;
  const source = async function* () {
    yield tar.subarray(0, 512);
    for (; yielded < 10_000; yielded += 1) yield new Uint8Array(1 << 20);
  };
  expect((await failureOf(store.add(source()))).code).toBe("build_failed");
  expect(yielded).toBeLessThan(100);
});

test("makes a layer of a machine's changes", async () => {
  const store = await openStore();
  const base = await store.add(stream(tarOf({ "etc/passwd": "root", "etc/old": "" })));
  const changes = tarOf({ new: "n" });
  const layer = await store.addChanges(stream(changes), [base]);
  expect(await readFile(path.join(layer.dir, "index"), "utf8")).toContain('{"path":"etc","kind":"whiteout"}');
  expect(digestOf(await collect(store.pack(layer.id)))).toBe(layer.id);
  expect((await failureOf(store.addChanges(stream(changes.subarray(0, 1024)), [base]))).code).toBe("build_failed");
});

test("makes a layer of copied files, the same one for the same files", async () => {
  const store = await openStore();
  const base = await store.add(stream(tarOf({ "app/old": "" })));
  const context = tarOf({ "a.txt": "A" });
  const copy = () => store.addCopy(stream(context), [base], { dest: "/app", uid: 7, gid: 8 });
  const layer = await copy();
  expect(await readFile(path.join(layer.dir, "tree/app/a.txt"), "utf8")).toBe("A");
  expect(await copy()).toBe(layer);
  expect(digestOf(await collect(store.pack(layer.id)))).toBe(layer.id);
  const refused = await failureOf(store.addCopy(stream(context), [base], { dest: "/app/old/", uid: 0, gid: 0 }));
  expect([refused.code, refused.detail.cause]).toEqual(["build_failed", "/app/old/: the destination is a file in the image"]);
});

test("ends the packing of a layer when nobody reads on", async () => {
  const store = await openStore();
  const layer = await store.add(stream(tarOf({ big: "x".repeat(4 << 20) }), 1 << 16));
  for await (const chunk of store.pack(layer.id)) {
    expect(chunk.length).toBeGreaterThan(0);
    break;
  }
  expect((await store.usage()).map(({ inUse }) => inUse)).toEqual([false]);
  await expect(collect(store.pack(digestOf(Buffer.from("none"))))).rejects.toMatchObject({ code: "not_found" });
});

test("never collects what is used or kept, and the longest unused first", async () => {
  const first = await openStore();
  const layers = await Promise.all(["old", "older", "used", "kept"].map((name) => first.add(stream(tarOf({ [name]: name.repeat(100) })))));
  const [old, older, used, kept] = layers as [Layer, Layer, Layer, Layer];
  await Promise.all([lastUsed(old, 50_000), lastUsed(older, 60_000), lastUsed(used, 90_000), lastUsed(kept, 90_000)]);
  const store = await openStore();
  const use = store.use([used.id, kept.id]);
  expect(use.layers).toEqual([used, kept]);
  await Promise.all([lastUsed(used, 90_000), lastUsed(kept, 90_000)]);
  const keep = new Set([kept.id]);
  // Old enough is only one; the size asks for one more.
  expect(await store.collect(keep, { olderThanMs: 55_000 })).toBe(500);
  expect([store.has(old.id), store.has(older.id), store.has(used.id), store.has(kept.id)]).toEqual([true, false, true, true]);
  expect(await store.collect(keep, { olderThanMs: 1e9, bytesMax: 801 })).toBe(300);
  expect(await store.collect(keep, { olderThanMs: 0, bytesMax: 0 })).toBe(0);
  use[Symbol.dispose]();
  use[Symbol.dispose]();
  expect(await store.collect(keep, { olderThanMs: -1 })).toBe(400);
  expect((await store.usage()).map(({ id, inUse }) => [id, inUse])).toEqual([[kept.id, false]]);
  expect(() => store.use([kept.id, used.id])).toThrow(MitosError);
  // The failed one holds nothing.
  expect(await store.collect(new Set(), { olderThanMs: -1 })).toBe(400);
});

test("keeps layers from the moment in which they come that somebody holds before", async () => {
  const store = await openStore();
  const tar = tarOf({ a: "1" });
  const [one, two] = [store.hold([digestOf(tar)]), store.hold([digestOf(tar)])];
  const { id } = await store.add(stream(tar));
  one[Symbol.dispose]();
  one[Symbol.dispose]();
  await store.collect(new Set(), { olderThanMs: -1 });
  expect((await store.usage()).map((layer) => [layer.id, layer.inUse])).toEqual([[id, true]]);
  two[Symbol.dispose]();
  await store.collect(new Set(), { olderThanMs: -1 });
  expect(store.has(id)).toBe(false);
});

test("remembers when a layer was last used", async () => {
  const layer = await (await openStore()).add(stream(tarOf({ a: "1" })));
  await lastUsed(layer, 3_600_000);
  const [before] = await (await openStore()).usage();
  expect(before?.lastUsedAtMs).toBeLessThan(Date.now() - 3_500_000);
  (await openStore()).use([layer.id])[Symbol.dispose]();
  const [after] = await (await openStore()).usage();
  expect(after?.lastUsedAtMs).toBeGreaterThan(Date.now() - 600_000);
});

test("says what to do where the tool is missing, does not start or is killed", async () => {
  const missing = await failureOf((await openStore("/nowhere/mitos-layers")).add(stream(tarOf({ a: "1" }))));
  expect([missing.code, missing.detail.remediation]).toEqual(["not_supported", expect.stringContaining("npm run setup")]);
  const broken = path.join(dataDir, "broken");
  await writeFile(broken, "#!/nowhere/at-all\n");
  await chmod(broken, 0o755);
  expect((await failureOf((await openStore(broken)).add(stream(tarOf({ a: "1" }))))).code).toBe("internal");
  await writeFile(broken, "#!/bin/sh\nkill -9 $$\n");
  const killed = await failureOf((await openStore(broken)).add(stream(tarOf({ a: "1" }))));
  expect([killed.code, killed.detail.cause]).toEqual(["internal", "mitos-layers unpack was killed by SIGKILL"]);
});

test("tells the tool nothing of the server's environment", async () => {
  const spy = path.join(dataDir, "spy");
  await writeFile(spy, `#!/bin/sh\nenv > ${dataDir}/environment\nexec ${await findLayersTool(undefined)} "$@"\n`);
  await chmod(spy, 0o755);
  vi.stubEnv("MITOS_TEST_SECRET", "secret");
  await (await openStore(spy)).add(stream(tarOf({ a: "1" })));
  const names = (await readFile(path.join(dataDir, "environment"), "utf8"))
    .trim()
    .split("\n")
    .map((line) => line.split("=")[0]);
  expect(names.filter((name) => !["PATH", "PWD", "_", "SHLVL", "OLDPWD"].includes(name ?? ""))).toEqual([]);
});

test("works without root: modes that shut out everybody, and set-user programs, come and go", async ({ skip }) => {
  const asRoot = process.getuid?.() === 0;
  const as = asRoot ? { uid: 65_534, gid: 65_534 } : {};
  const reads = `require("node:fs").readFileSync(${JSON.stringify(import.meta.filename)})`;
  const canRead = await promisify(execFile)(process.execPath, ["--eval", reads], { ...as, cwd: "/" }).catch(() => undefined);
  skip(!canRead, "an ordinary user cannot read this checkout");
  const files = path.join(dataDir, "layer.tar");
  const entries = [tarHeader("shut/", 0, 0, "5"), tarHeader("shut/secret", 0, 0), tarHeader("tool", 0, 0o4755)];
  await writeFile(files, Buffer.concat([...entries, Buffer.alloc(1024)]));
  const program = `
    import { createReadStream } from "node:fs";
    import { stat } from "node:fs/promises";
    const { LayerStore } = await import(${JSON.stringify(path.join(import.meta.dirname, "store.ts"))});
    const nothing = () => {};
    const store = await LayerStore.open({ dataDir: ${JSON.stringify(dataDir)}, log: { debug: nothing, info: nothing, warn: nothing, error: nothing } });
    const layer = await store.add(createReadStream(${JSON.stringify(files)}));
    const modes = await Promise.all(["shut", "shut/secret", "tool"].map(async (name) => (await stat(layer.dir + "/tree/" + name)).mode & 0o7777));
    let packed = 0;
    for await (const chunk of store.pack(layer.id)) packed += chunk.length;
    await store.collect(new Set(), { olderThanMs: -1 });
    console.log(JSON.stringify({ uid: process.getuid(), modes, packed, left: await stat(layer.dir).then(() => 1, () => 0) }));
  `;
  if (asRoot) await chown(dataDir, 65_534, 65_534);
  const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "--eval", program], { ...as, cwd: "/" });
  expect(JSON.parse(stdout)).toEqual({ uid: as.uid ?? process.getuid?.(), modes: [0o700, 0, 0o4755], packed: 5 * 512, left: 0 });
});
