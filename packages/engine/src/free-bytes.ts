import { statfs } from "node:fs/promises";

/** What may still be written on the file system of this path by an ordinary user of it. */
export async function freeBytes(path: string): Promise<number> {
  const { bavail, bsize } = await statfs(path);
  return bavail * bsize;
}
