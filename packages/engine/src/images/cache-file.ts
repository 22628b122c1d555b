import { rm } from "node:fs/promises";

/** A file that can be had again. */
export interface CacheFile {
  readonly file: string;
  readonly bytes: number;
  readonly usedAtMs: number;
}

/**
 * Removes files that were last used before a time, and the oldest ones beyond a sum.
 *
 * @returns removed bytes
 */
export async function removeOld(
  files: readonly CacheFile[],
  { usedBeforeMs, bytesMax }: { usedBeforeMs: number; bytesMax: number },
): Promise<number> {
  let left = files.reduce((sum, { bytes }) => sum + bytes, 0);
  let removed = 0;
  for (const { file, bytes, usedAtMs } of [...files].sort((a, b) => a.usedAtMs - b.usedAtMs)) {
    if (usedAtMs > usedBeforeMs && left <= bytesMax) break;
    await rm(file, { force: true });
    left -= bytes;
    removed += bytes;
  }
  return removed;
}
