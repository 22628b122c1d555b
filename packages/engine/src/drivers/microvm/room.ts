import { freeBytes } from "../../free-bytes.ts";

/** What may be left of a disk that has no room: file systems keep a little back, and what failed may have given back what it had. */
const fullBytes = 2 ** 20;

/** Whether a lack of room is what a monitor ran into, which dies of it or fails without a reason. */
export async function isFull(path: string): Promise<boolean> {
  return (await freeBytes(path)) < fullBytes;
}
