import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { MitosError } from "@mitos/protocol";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { findLayersTool } from "../../packages/engine/src/layers/find.ts";
import type { Layer } from "../../packages/engine/src/layers/layer.ts";
import { LayerStore } from "../../packages/engine/src/layers/store.ts";
import { runTool } from "../../packages/engine/src/layers/tool.ts";
import { quiet } from "../support/live-server.ts";
import { layerOf, sha256 } from "../support/oci.ts";
import { type TarEntry, tarOfEntries } from "../support/tar.ts";

/** A data directory beside a file that nothing may touch. */
let outside: string;
let store: LayerStore;
const canary = () => path.join(outside, "canary");

beforeEach(async () => {
  outside = mkdtempSync(path.join(os.tmpdir(), "mitos-hostile-"));
  writeFileSync(canary(), "untouched");
  mkdirSync(path.join(outside, "data"));
  store = await LayerStore.open({ dataDir: path.join(outside, "data"), log: quiet });
});

afterEach(() => {
  try {
    expect(readFileSync(canary(), "utf8")).toBe("untouched");
    expect(statSync(canary()).nlink).toBe(1);
    expect(readdirSync(outside).toSorted()).toEqual(["canary", "data"]);
    expect(unpackers()).toEqual([]);
  } finally {
    rmSync(outside, { recursive: true, force: true });
  }
});

const hello: TarEntry = { name: "hello", content: "hello" };
const mebibyte = Buffer.alloc(1 << 20);

interface Refusal {
  readonly what: string;
  readonly reason: "hostile" | "corrupt" | "too_large";
  /** Of the entry that the cause names. */
  readonly entry?: string | RegExp;
  readonly tar: () => AsyncIterable<Uint8Array> | Buffer;
}

const refused: Refusal[] = [
  ...(
    [
      ["an absolute path", "hostile", { name: "/tmp/mitos-escaped", content: "x" }],
      ["a path that begins with ..", "hostile", { name: "../canary", content: "x" }],
      ["a path with .. in the middle", "hostile", { name: "a/../../canary", content: "x" }],
      ["a folder named ..", "hostile", { name: "a/..", type: "dir" }],
      ["a path in a pax header with ..", "hostile", { name: "innocent", content: "x", pax: { path: "../canary" } }, "../canary"],
      ["a hard link to a path with ..", "hostile", { name: "link", type: "hardlink", target: "../canary" }, /canary|link/],
      ["a whiteout of .", "hostile", { name: ".wh.." }],
      ["a whiteout of ..", "hostile", { name: "a/.wh..." }],
      ["a whiteout of nothing", "hostile", { name: ".wh." }],
      ["a file inside a whiteout", "hostile", { name: ".wh.a/b", content: "x" }],
      ["a name of 256 bytes", "too_large", { name: "n".repeat(256), content: "x" }],
      ["a path of 4,000 bytes", "too_large", { name: `${"p".repeat(199)}/`.repeat(20), type: "dir" }, /^p+\//],
      ["three hundred folders inside each other", "too_large", { name: "d/".repeat(300), type: "dir" }],
      ["an extended attribute of a mebibyte", "too_large", { ...hello, pax: { "SCHILY.xattr.user.bomb": "x".repeat(1 << 20) } }, /.*/],
      ["an extended attribute of 100 KiB", "too_large", { ...hello, pax: { "SCHILY.xattr.user.bomb": "x".repeat(100 << 10) } }, /.*/],
      ["a symbolic link without a target", "corrupt", { name: "link", type: "symlink" }],
      ["an entry of an unknown kind", "corrupt", { name: "odd", type: "Z" }],
      ["a file that is larger than any disk", "too_large", { ...hello, size: 0o77777777777, pax: { size: String(2 ** 60) } }],
      ["a size below zero", "corrupt", { ...hello, pax: { size: "-1" } }, /.*/],
      ["a hard link to a folder", "corrupt", { name: "link", type: "hardlink", target: "a" }],
    ] as [string, Refusal["reason"], TarEntry, (string | RegExp)?][]
  ).map(([what, reason, entry, named]) => ({
    what,
    reason,
    entry: named ?? entry.name.replace(/\/+$/, ""),
    tar: () => tarOfEntries([{ name: "a", type: "dir" }, entry]),
  })),
  {
    what: "a path through links that lead in a circle",
    reason: "corrupt",
    entry: "one/file",
    tar: () =>
      tarOfEntries([
        { name: "one", type: "symlink", target: "two" },
        { name: "two", type: "symlink", target: "one" },
        { name: "one/file", content: "x" },
      ]),
  },
  {
    what: "a tar that ends in the middle of a file",
    reason: "corrupt",
    tar: () => tarOfEntries([{ name: "f", content: "x".repeat(9000) }]).subarray(0, 3000),
  },
  { what: "a header with a wrong sum", reason: "corrupt", tar: () => withByte(tarOfEntries([hello]), 100, 0x37) },
  { what: "a gzip stream that was cut off", reason: "corrupt", tar: () => Buffer.from(layerOf([hello, noise()]).bytes).subarray(0, -2000) },
  {
    what: "a zstd stream that was cut off",
    reason: "corrupt",
    tar: () => Buffer.from(layerOf([hello, noise()], "zstd").bytes).subarray(0, -2000),
  },
  {
    what: "a gzip stream with garbage behind it",
    reason: "corrupt",
    tar: () => Buffer.concat([layerOf([hello]).bytes, Buffer.from("garbage")]),
  },
  {
    what: "a zstd stream with garbage behind it",
    reason: "corrupt",
    tar: () => Buffer.concat([layerOf([hello], "zstd").bytes, Buffer.from("garbage")]),
  },
  {
    what: "a tar with garbage behind its end",
    reason: "corrupt",
    tar: () => Buffer.concat([tarOfEntries([hello]), Buffer.from("garbage")]),
  },
  { what: "nothing at all", reason: "corrupt", tar: () => Buffer.alloc(0) },
  { what: "what is no tar", reason: "corrupt", tar: () => Buffer.from("<html>not here</html>".repeat(100)) },
  // Each is small, and would fill terabytes.
  { what: "a gzip bomb", reason: "too_large", tar: () => bomb((data) => gzipSync(data, { level: 9 })) },
  { what: "a zstd bomb", reason: "too_large", tar: () => bomb(zstdCompressSync) },
  { what: "a million entries", reason: "too_large", tar: () => repeated(tarOfEntries([{ name: ".wh.gone" }]).subarray(0, 512), 1_000_000) },
  { what: "a million headers before one entry", reason: "too_large", tar: () => repeated(globalHeader(), 3_000_000) },
];

describe("a hostile layer", () => {
  it.each(refused)("is refused, and leaves nothing: $what", async ({ reason, entry, tar }) => {
    const input = tar();
    const failure = await store.add(Buffer.isBuffer(input) ? inPieces(input) : input).then(
      () => undefined,
      (error: unknown) => error,
    );
    expect(failure).toBeInstanceOf(MitosError);
    const { code, detail, entry: catalogued } = failure as MitosError;
    expect({ code, reason: detail.context?.reason }, String(failure)).toEqual({ code: "build_failed", reason });
    if (entry !== undefined) expect(detail.context?.entry).toMatch(typeof entry === "string" ? exactly(entry) : entry);
    expect(detail.cause).toBeTruthy();
    expect(detail.remediation ?? catalogued.remediation).toMatch(/[a-z]/);
    expect(readdirSync(layersFolder())).toEqual([]);
  });

  it("is refused when it is another than the configuration says, and leaves nothing", async () => {
    const { bytes } = layerOf([hello]);
    await expect(store.add(inPieces(Buffer.from(bytes)), { expected: sha256(Buffer.from("another")) })).rejects.toMatchObject({
      code: "build_failed",
    });
    expect(readdirSync(layersFolder())).toEqual([]);
  });

  it("is gone when its reader goes away in the middle", async () => {
    const leaving = new AbortController();
    async function* slow() {
      yield tarOfEntries([{ name: "f", content: "x".repeat(100_000) }]).subarray(0, 50_000);
      leaving.abort();
      yield Buffer.alloc(512);
    }
    await expect(store.add(slow(), { signal: leaving.signal })).rejects.toMatchObject({ code: "canceled" });
    expect(readdirSync(layersFolder())).toEqual([]);
  });
});

describe("a tricky layer", () => {
  it.each([
    ["a relative link out of the root", "../../../../.."],
    ["a link to the root", "/"],
    ["a link to the folder beside", "OUTSIDE"],
  ])("writes inside its root when it writes through %s", async (_, target) => {
    const linked = target === "OUTSIDE" ? outside : target;
    const root = await rootOf([
      { name: "out", type: "symlink", target: linked },
      { name: "out/canary", content: "reached" },
    ]);
    const inside = target === "OUTSIDE" ? path.join(root, outside, "canary") : path.join(root, "canary");
    expect(readFileSync(inside, "utf8")).toBe("reached");
  });

  it.each([
    ["writes", { name: "out/canary", content: "reached" }],
    ["makes a folder", { name: "out/folder", type: "dir" }],
    ["makes a hard link", { name: "out/hard", type: "hardlink", target: "note" }],
    ["removes", { name: "out/.wh.canary" }],
    ["empties", { name: "out/.wh..wh..opq" }],
  ] as [string, TarEntry][])("%s inside its root when a lower layer has put a link there", async (_, entry) => {
    await rootOf(
      [
        { name: "out", type: "symlink", target: outside },
        { name: "note", content: "mine" },
      ],
      [entry],
    );
  });

  it("gets nothing of the host by a hard link to a path that only the host has", async () => {
    await expect(rootOf([{ name: "stolen", type: "hardlink", target: canary() }])).rejects.toMatchObject({ code: "build_failed" });
    await expect(rootOf([{ name: "stolen", type: "hardlink", target: "/etc/passwd" }])).rejects.toMatchObject({ code: "build_failed" });
  });

  it("gets a lower layer's file by a hard link through its link, not the host's", async () => {
    const root = await rootOf(
      [
        { name: "etc", type: "dir" },
        { name: "etc/passwd", content: "the image's own" },
        { name: "way", type: "symlink", target: "/etc" },
      ],
      [{ name: "copy", type: "hardlink", target: "way/passwd" }],
    );
    expect(readFileSync(path.join(root, "copy"), "utf8")).toBe("the image's own");
  });

  it("has no devices, pipes or sockets, and the rest of it", async () => {
    const root = await rootOf([
      { name: "dev", type: "dir" },
      { name: "dev/sda", type: "block", device: [8, 0], mode: 0o666 },
      { name: "dev/mem", type: "char", device: [1, 1], mode: 0o666 },
      { name: "pipe", type: "fifo" },
      hello,
    ]);
    expect(readdirSync(root).toSorted()).toEqual(["dev", "hello"]);
    expect(readdirSync(path.join(root, "dev"))).toEqual([]);
  });

  it("has the last of several entries with one name", async () => {
    const root = await rootOf([
      { name: "it", content: "first" },
      { name: "it", type: "dir" },
      { name: "it/inner", content: "x" },
      { name: "it", type: "symlink", target: "/etc/shadow" },
      { name: "it", content: "last" },
    ]);
    expect(readdirSync(root)).toEqual(["it"]);
    expect(readFileSync(path.join(root, "it"), "utf8")).toBe("last");
  });

  it("lies behind a folder that only we may enter, with its setuid files and capabilities", async () => {
    const layer = await add([
      { name: "su", content: "#!/bin/sh\n", mode: 0o6755 },
      { name: "ping", content: "x", mode: 0o755, pax: { "SCHILY.xattr.security.capability": fileCapabilities } },
    ]);
    expect(statSync(layersFolder()).mode & 0o777).toBe(0o700);
    expect(readFileSync(path.join(layer.dir, "index"), "latin1")).toContain("security.capability");
    expect(modeInIndex(layer, "su")).toBe(0o6755);
  });

  it("keeps no attribute that steers the host's file systems or security modules", async () => {
    const layer = await add([
      {
        ...hello,
        pax: {
          "SCHILY.xattr.user.note": "kept",
          "SCHILY.xattr.trusted.overlay.opaque": "y",
          "SCHILY.xattr.user.overlay.redirect": "/etc",
          "SCHILY.xattr.security.selinux": "unconfined",
          "SCHILY.xattr.security.ima": "x",
        },
      },
    ]);
    const index = readFileSync(path.join(layer.dir, "index"), "latin1");
    expect(index).toContain("user.note");
    for (const name of ["overlay", "selinux", "ima"]) expect(index).not.toContain(name);
  });

  it("may have names of any bytes", async () => {
    const root = await rootOf([
      { name: "-rf *", content: "a" },
      { name: "new\nline", content: "b" },
      { name: "\u001b[31mred", content: "c" },
      { name: "$(touch canary)", content: "d" },
    ]);
    expect(readdirSync(root)).toHaveLength(4);
  });
});

/** `cap_net_raw` as the kernel keeps it: revision 2, effective. */
const fileCapabilities = Buffer.from("0100000200200000000000000000000000000000", "hex");

function layersFolder(): string {
  return path.join(outside, "data/layers");
}

function add(entries: readonly TarEntry[]): Promise<Layer> {
  return store.add(inPieces(tarOfEntries(entries)));
}

/** Layers put on top of each other, as a machine gets them. */
async function rootOf(...layers: readonly TarEntry[][]): Promise<string> {
  const dirs = [];
  for (const entries of layers) dirs.push((await add(entries)).dir);
  const root = path.join(outside, "data/root");
  rmSync(root, { recursive: true, force: true });
  mkdirSync(root);
  await runTool(await findLayersTool(undefined), ["merge", "--into", root, ...dirs.flatMap((dir) => ["--layer", dir])]);
  return root;
}

function modeInIndex({ dir }: Layer, name: string): number | undefined {
  const lines = readFileSync(path.join(dir, "index"), "utf8").trim().split("\n");
  return lines.map((line) => JSON.parse(line)).find((line) => line.path === name)?.meta?.mode;
}

/** Processes that still work on this test's data directory. */
function unpackers(): string[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, "latin1").includes(outside);
      } catch {
        return false; // it has ended meanwhile
      }
    });
}

async function* inPieces(data: Buffer): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < data.length; at += 60_000) yield data.subarray(at, at + 60_000);
}

async function* repeated(block: Buffer, count: number): AsyncGenerator<Uint8Array> {
  const perChunk = 1000;
  const chunk = Buffer.concat(Array.from({ length: perChunk }, () => block));
  for (let done = 0; done < count; done += perChunk) yield chunk;
}

/** One file of 8 TiB, in single compressed mebibytes that are the same each time. */
async function* bomb(compress: (data: Buffer) => Buffer): AsyncGenerator<Uint8Array> {
  yield compress(tarOfEntries([{ name: "bomb", pax: { size: String(8 * 2 ** 40) }, size: 0 }]).subarray(0, -1024));
  const member = compress(mebibyte);
  for (let done = 0; done < 8 << 20; done++) yield member;
}

function globalHeader(): Buffer {
  return tarOfEntries([{ name: "global", type: "g" }]).subarray(0, 512);
}

/** What does not compress. */
function noise(): TarEntry {
  const content = new Uint8Array(20_000);
  for (let at = 0, state = 1; at < content.length; at++) {
    state = (state * 48_271) % 2_147_483_647;
    content[at] = state & 0xff;
  }
  return { name: "noise", content };
}

function withByte(data: Buffer, at: number, value: number): Buffer {
  data[at] = value;
  return data;
}

function exactly(text: string): RegExp {
  return new RegExp(`^/?${RegExp.escape(text)}/?$`);
}
