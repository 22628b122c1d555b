import { mkdtemp, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { untilOver } from "./scratch.ts";

const MiB = 1024 * 1024;
let dir: string;
beforeEach(async () => {
  dir = await mkdtemp("/tmp/mitos-scratch-");
});
afterEach(() => rm(dir, { recursive: true }));

it("tells when the file has grown beyond its limit, by what it takes on the disk and not by its length", async () => {
  const file = path.join(dir, "file");
  await writeFile(file, Buffer.alloc(MiB));
  const ended = new AbortController();
  const over = untilOver(file, dir, { bytesMax: 2 * MiB, freeBytesMin: 0 }, ended.signal);
  await writeFile(file, Buffer.alloc(3 * MiB));
  expect(await over).toBe("it wrote more to the disk than 2 MiB");
});

it("tells when the disk is full, whoever has filled it", async () => {
  const limits = { bytesMax: 1024 * MiB, freeBytesMin: Number.MAX_SAFE_INTEGER };
  expect(await untilOver(path.join(dir, "none"), dir, limits, new AbortController().signal)).toBe(
    "it has filled the disk of the data directory",
  );
});

it("stops when the machine has ended", async () => {
  const ended = new AbortController();
  const over = untilOver(path.join(dir, "none"), dir, { bytesMax: MiB, freeBytesMin: 0 }, ended.signal);
  ended.abort();
  expect(await over).toBeUndefined();
});
