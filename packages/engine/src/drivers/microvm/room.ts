import { statfs } from "node:fs/promises";

/** What may be left of a disk that has no room: file systems keep a little back, and what failed may have given back what it had. */
const fullBytes = 2 ** 20;

/** Whether that much can be written. */
export async function hasRoom(path: string, bytes: number): Promise<boolean> {
  const { bavail, bsize } = await statfs(path);
  return bavail * bsize >= bytes;
}

/** Whether a lack of room is what a monitor ran into, which dies of it or fails without a reason. */
export async function isFull(path: string): Promise<boolean> {
  return !(await hasRoom(path, fullBytes));
}
