import { freeBytes } from "../../free-bytes.ts";

/** What may be left of a disk that has no room: file systems keep a little back, and what failed may have given back what it had. */
const fullBytes = 2 ** 20;

/** The first folder on a disk that has no room. */
export async function fullOne(folders: readonly string[]): Promise<string | undefined> {
  for (const folder of folders) if (await isFull(folder)) return folder;
  return undefined;
}

/** Whether a lack of room is what a monitor ran into, which dies of it or fails without a reason. */
export async function isFull(path: string): Promise<boolean> {
  return (await freeBytes(path)) < fullBytes;
}
