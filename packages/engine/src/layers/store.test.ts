import { createHash } from "node:crypto";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach, expect, test } from "vitest";
import { tarOf } from "../../../../test/support/tar.ts";
import { quiet } from "../testing.ts";
import type { Digest } from "./layer.ts";
import { LayerStore } from "./store.ts";

let dataDir = "";

beforeEach(async () => {
  dataDir = await mkdtemp(path.join(tmpdir(), "mitos-layers-"));
});

afterEach(async () => {
  await rm(dataDir, { recursive: true, force: true });
});

const openStore = () => LayerStore.open({ dataDir, log: quiet });

function digestOf(tar: Uint8Array): Digest {
  return `sha256:${createHash("sha256").update(tar).digest("hex")}`;
}

/** In pieces, as it comes from a network. */
async function* stream(bytes: Uint8Array, pieceBytes = 700): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += pieceBytes) yield bytes.subarray(at, at + pieceBytes);
}

test("unpacks a compressed layer under the digest of its tar", async () => {
  const tar = tarOf({ "etc/motd": "hello", "usr/bin/tool": "#!" });
  const store = await openStore();
  let taken = 0;
  const compressed = gzipSync(tar);
  const layer = await store.add(stream(compressed), { expected: digestOf(tar), onBytes: (bytes) => (taken += bytes) });
  expect(layer).toMatchObject({ id: digestOf(tar), bytes: 7, entries: 2 });
  expect(taken).toBe(compressed.length);
  expect(await readFile(path.join(layer.dir, "tree/etc/motd"), "utf8")).toBe("hello");
  expect(store.get(layer.id)).toEqual(layer);
  expect((await openStore()).get(layer.id)).toEqual(layer);
  expect(await readdir(path.join(dataDir, "layers"))).toEqual([layer.id.slice(7)]);
});
