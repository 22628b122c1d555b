import { open, readFile, rename, stat } from "node:fs/promises";
import path from "node:path";
import type { SealedFile, Snapshot } from "../../driver.ts";
import { isDiskFull } from "../../storage-error.ts";
import { syncFolder } from "../../sync-folder.ts";
import { incompatible } from "./facts.ts";
import { sealFiles } from "./seal.ts";

const detailsFile = "mitos.json";

/**
 * Makes a folder with a saved machine the snapshot: whole when it is there.
 *
 * @param partial - beside `dir`, on the same file system
 * @param details - what is ours of it
 * @param durable - everything is on the disk when this resolves
 * @param names - of the files in it. Default: it is looked
 */
export async function commitSnapshot(
  partial: string,
  dir: string,
  details: { readonly version: 1 },
  { durable, names }: { durable: boolean; names?: readonly string[] },
): Promise<{ files: Record<string, SealedFile>; bytes: number }> {
  const file = await open(path.join(partial, detailsFile), "wx", 0o600);
  try {
    await file.writeFile(JSON.stringify(details));
  } finally {
    await file.close();
  }
  const sealed = await sealFiles(partial, { durable, ...(names && { names: [detailsFile, ...names] }) });
  if (durable) await syncFolder(partial);
  await rename(partial, dir);
  if (durable) await syncFolder(path.dirname(dir));
  return sealed;
}

/**
 * @param isOurs - whether it has what this driver's have
 * @throws snapshot_incompatible
 */
export async function readDetails<T extends { readonly version: 1 }>(
  { dir }: Snapshot,
  { bytesMax, isOurs }: { bytesMax: number; isOurs: (details: T) => boolean },
): Promise<T> {
  const file = path.join(dir, detailsFile);
  try {
    if ((await stat(file)).size > bytesMax) throw new Error("it is too large");
    const details = JSON.parse(await readFile(file, "utf8")) as T;
    if (details.version !== 1 || !isOurs(details)) throw new Error("it is of another version");
    return details;
  } catch (reason) {
    throw incompatible(`the snapshot's description cannot be read: ${reason instanceof Error ? reason.message : String(reason)}`, reason);
  }
}

/** Said by a call of ours, or by what runs the machine in its own words. */
export function saysDiskFull(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  const isTold = isDiskFull(error) || (error as NodeJS.ErrnoException).code === "ENOSPC";
  return isTold || /no space left on device|disk quota exceeded/i.test(`${error.message} ${String(error.cause)}`);
}
