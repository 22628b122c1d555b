import { readdir, rm, stat } from "node:fs/promises";
import path from "node:path";

/** A file that can be had again. */
export interface CacheFile {
  readonly file: string;
  readonly bytes: number;
  readonly usedAtMs: number;
}

/** Those that are there; one may go meanwhile. */
export async function filesIn(dir: string): Promise<CacheFile[]> {
  const found = await Promise.all(
    (await readdir(dir)).map(async (name) => {
      const file = path.join(dir, name);
      const there = await stat(file).catch(() => undefined);
      return there && { file, bytes: there.size, usedAtMs: there.mtimeMs };
    }),
  );
  return found.filter((file) => file !== undefined);
}

/**
 * Removes files that were last used before a time, and the oldest ones beyond a sum. Each is looked at again when its turn comes: one that was used
 * meanwhile stays.
 *
 * @param options.isInUse - of a file that its time of last use does not tell of
 * @returns removed bytes
 */
export async function removeOld(
  files: readonly CacheFile[],
  { usedBeforeMs, bytesMax, isInUse }: { usedBeforeMs: number; bytesMax: number; isInUse: (file: string) => boolean },
): Promise<number> {
  let left = files.reduce((sum, { bytes }) => sum + bytes, 0);
  let removed = 0;
  for (const { file, bytes, usedAtMs } of [...files].sort((a, b) => a.usedAtMs - b.usedAtMs)) {
    if (usedAtMs > usedBeforeMs && left <= bytesMax) break;
    const now = await stat(file).catch(() => undefined);
    if (now && (now.mtimeMs !== usedAtMs || isInUse(file))) continue;
    await rm(file, { force: true });
    left -= bytes;
    removed += bytes;
  }
  return removed;
}
