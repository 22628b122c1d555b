import { mkdtemp, readdir, rm, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { filesIn, removeOld } from "./cache-file.ts";

const longAgo = new Date(1_000_000_000_000);

describe("removing old files", () => {
  let dir: string;
  const at = (name: string) => path.join(dir, name);
  beforeEach(async () => {
    dir = await mkdtemp(path.join(tmpdir(), "mitos-cache-"));
    for (const name of ["a", "b", "c"]) {
      await writeFile(at(name), "12345");
      await utimes(at(name), longAgo, longAgo);
    }
  });
  afterEach(() => rm(dir, { recursive: true }));

  it("leaves alone what was used, or is in use, since it was looked at", async () => {
    const files = await filesIn(dir);
    await utimes(at("b"), new Date(), new Date());
    const isInUse = (file: string) => file === at("c");
    expect(await removeOld(files, { usedBeforeMs: Date.now() - 60_000, bytesMax: 0, isInUse })).toBe(5);
    expect(await readdir(dir)).toEqual(["b", "c"]);
  });
});
