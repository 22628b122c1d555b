import { mkdtemp, readFile, rm, truncate, utimes, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { Snapshot } from "../../driver.ts";
import { requireIntact, sealFiles } from "./seal.ts";

let dir: string;
const pages = () => path.join(dir, "pages.img");
beforeEach(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), "mitos-seal-"));
  await writeFile(pages(), Buffer.alloc(3 * 1024 * 1024 + 17, 7));
  await writeFile(path.join(dir, "mitos.json"), "{}");
});
afterEach(() => rm(dir, { recursive: true }));

async function sealed(durable: boolean): Promise<Snapshot> {
  const { files, bytes } = await sealFiles(dir, { durable });
  expect(bytes).toBeGreaterThanOrEqual(3 * 1024 * 1024);
  return { dir, bytes, files, requirements: {} as Snapshot["requirements"] };
}

const damaged = (cause: RegExp) => ({
  code: "snapshot_incompatible",
  detail: { cause: expect.stringMatching(cause), context: { file: pages() } },
});

it.each([true, false])("accepts what nobody touched (durable: %s)", async (durable) => {
  const snapshot = await sealed(durable);
  await requireIntact(snapshot, { content: true });
});

it.each([true, false])("names a file that was cut, grew, or is gone (durable: %s)", async (durable) => {
  const snapshot = await sealed(durable);
  await truncate(pages(), 100);
  await expect(requireIntact(snapshot, { content: false })).rejects.toMatchObject(damaged(/it has 100 bytes instead of 3145745/));
  await truncate(pages(), 4 * 1024 * 1024);
  await expect(requireIntact(snapshot, { content: false })).rejects.toMatchObject(damaged(/instead of 3145745/));
  await rm(pages());
  await expect(requireIntact(snapshot, { content: false })).rejects.toMatchObject(damaged(/it is gone/));
});

it("finds one changed bit in what is durable, whatever the times of the file, when the content is asked for", async () => {
  const snapshot = await sealed(true);
  const content = await readFile(pages());
  content[2_500_000]! ^= 4;
  await writeFile(pages(), content);
  await requireIntact(snapshot, { content: false });
  await expect(requireIntact(snapshot, { content: true })).rejects.toMatchObject(damaged(/its content has changed/));
  content[2_500_000]! ^= 4;
  await writeFile(pages(), content);
  await utimes(pages(), 1, 1);
  await requireIntact(snapshot, { content: true });
});

it("notices that what lies in memory was written to", async () => {
  const snapshot = await sealed(false);
  await utimes(pages(), 1, 1);
  await expect(requireIntact(snapshot, { content: false })).rejects.toMatchObject(damaged(/it was written to/));
});

it("refuses a snapshot of which no record was kept", async () => {
  const { files: _files, ...earlier } = await sealed(true);
  await expect(requireIntact(earlier, { content: false })).rejects.toMatchObject({
    code: "snapshot_incompatible",
    detail: { cause: expect.stringContaining("earlier version") },
  });
});
