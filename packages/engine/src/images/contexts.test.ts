import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Contexts } from "./contexts.ts";
import { digestOf } from "./registry.ts";

/** A file of one block, as any tar has it. */
function tarOf(content: string): Buffer {
  const header = Buffer.alloc(512);
  header.write("file.txt");
  header.write("0000644\0", 100);
  header.write(`${content.length.toString(8).padStart(11, "0")}\0`, 124);
  header.fill(" ", 148, 156);
  header.write("0", 156);
  header.write("ustar\x0000", 257);
  header.write(
    `${header
      .reduce((sum, byte) => sum + byte, 0)
      .toString(8)
      .padStart(6, "0")}\0 `,
    148,
  );
  const body = Buffer.alloc(512);
  body.write(content);
  return Buffer.concat([header, body, Buffer.alloc(1024)]);
}

async function* inPieces(bytes: Buffer, size = 100): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

describe("the files of a copy step", () => {
  let dir: string;
  let contexts: Contexts;
  beforeEach(async () => {
    dir = await mkdtemp(path.join(tmpdir(), "mitos-contexts-"));
    contexts = await Contexts.open(dir);
  });
  afterEach(() => rm(dir, { recursive: true }));

  async function read(digest: `sha256:${string}`): Promise<Buffer> {
    const chunks: Uint8Array[] = [];
    for await (const chunk of contexts.read(digest)) chunks.push(chunk);
    return Buffer.concat(chunks);
  }

  it("are read as they were put, also after a restart", async () => {
    const tar = tarOf("hello");
    expect(await contexts.has(digestOf(tar))).toBe(false);
    await contexts.put(digestOf(tar), inPieces(tar));
    expect(await contexts.has(digestOf(tar))).toBe(true);
    contexts = await Contexts.open(dir);
    expect(await read(digestOf(tar))).toEqual(tar);
  });

  it("may be none", async () => {
    const empty = Buffer.alloc(1024);
    await contexts.put(digestOf(empty), inPieces(empty));
    expect(await read(digestOf(empty))).toEqual(empty);
  });

  it("may be put by two at once", async () => {
    const tar = tarOf("hello");
    await Promise.all([contexts.put(digestOf(tar), inPieces(tar)), contexts.put(digestOf(tar), inPieces(tar, 7))]);
    expect(await read(digestOf(tar))).toEqual(tar);
    expect(await readdir(dir)).toHaveLength(1);
  });

  it.each([
    ["another digest", digestOf(Buffer.from("x")), tarOf("hello")],
    ["no tar", digestOf(Buffer.from("{}")), Buffer.from("{}")],
    ["a compressed tar", digestOf(Buffer.alloc(1024, 0x1f)), Buffer.alloc(1024, 0x1f)],
    ["a tar that is cut", digestOf(tarOf("hello").subarray(0, 600)), tarOf("hello").subarray(0, 600)],
    ["nothing", digestOf(Buffer.alloc(0)), Buffer.alloc(0)],
  ])("with %s are refused, and nothing is kept", async (_, digest, bytes) => {
    await expect(contexts.put(digest, inPieces(bytes))).rejects.toMatchObject({ code: "invalid_input" });
    expect(await readdir(dir)).toEqual([]);
  });

  it("are refused at the first block that is no tar, before the rest is taken", async () => {
    let taken = 0;
    async function* endless() {
      for (;;) {
        taken += 1;
        yield Buffer.alloc(512, "x");
      }
    }
    await expect(contexts.put(digestOf(Buffer.from("x")), endless())).rejects.toMatchObject({ code: "invalid_input" });
    expect(taken).toBe(1);
  });

  it("that stop coming leave nothing", async () => {
    const tar = tarOf("hello");
    async function* broken() {
      yield tar.subarray(0, 600);
      throw new Error("the client has left");
    }
    await expect(contexts.put(digestOf(tar), broken())).rejects.toThrow("the client has left");
    const abort = new AbortController();
    async function* aborted() {
      yield tar.subarray(0, 600);
      abort.abort();
      yield tar.subarray(600);
    }
    await expect(contexts.put(digestOf(tar), aborted(), abort.signal)).rejects.toMatchObject({ code: "canceled" });
    expect(await readdir(dir)).toEqual([]);
  });

  it("that a crash has left unfinished are removed", async () => {
    await writeFile(path.join(dir, ".unfinished-0123"), "x");
    await Contexts.open(dir);
    expect(await readdir(dir)).toEqual([]);
  });

  it("that are not there are not_found", async () => {
    await expect(read(digestOf(Buffer.from("x")))).rejects.toMatchObject({ code: "not_found" });
  });

  it.each(["sha256:../../etc/passwd", "sha256:", "x", `sha512:${"a".repeat(64)}`, `sha256:${"A".repeat(64)}`])(
    "have no name like %j",
    async (name) => {
      const digest = name as `sha256:${string}`;
      await expect(contexts.has(digest)).rejects.toMatchObject({ code: "invalid_input" });
      await expect(contexts.put(digest, inPieces(tarOf("x")))).rejects.toMatchObject({ code: "invalid_input" });
      await expect(read(digest)).rejects.toMatchObject({ code: "invalid_input" });
    },
  );
});
