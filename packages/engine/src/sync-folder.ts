import { open } from "node:fs/promises";

/** Which names a folder has is on the disk afterwards. */
export async function syncFolder(dir: string): Promise<void> {
  await using folder = await open(dir, "r");
  await folder.sync();
}
