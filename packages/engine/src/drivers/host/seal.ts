import { type FileHandle, open, readdir, stat } from "node:fs/promises";
import path from "node:path";
import { crc32 } from "node:zlib";
import { MitosError } from "@mitos/protocol";
import type { SealedFile, Snapshot } from "../../driver.ts";

const chunkBytes = 1024 * 1024;

/**
 * What the files of a finished snapshot are, so that one that is no longer whole is noticed before a machine is made of it. With `durable` they
 * are on the disk when this resolves, and their content has a checksum: disks lose bits, and backups are copied. What lies in memory for
 * a while is only asked whether it was written to since.
 *
 * @param names - of files in `dir`. Default: all
 */
export async function sealFiles(
  dir: string,
  { durable, names }: { durable: boolean; names?: readonly string[] },
): Promise<{ files: Record<string, SealedFile>; bytes: number }> {
  const sealed: { name: string; file: SealedFile; blocks: bigint }[] = [];
  const all = names ?? (await readdir(dir)).sort();
  // What is read in full, one after the other: it all comes from one disk.
  if (durable) for (const name of all) sealed.push(await sealDurably(dir, name));
  else sealed.push(...(await Promise.all(all.map((name) => seal(dir, name)))));
  return {
    files: Object.fromEntries(sealed.map(({ name, file }) => [name, file])),
    bytes: sealed.reduce((sum, { blocks }) => sum + Number(blocks) * 512, 0),
  };
}

async function seal(dir: string, name: string) {
  const { size, mtimeNs, blocks } = await stat(path.join(dir, name), { bigint: true });
  return { name, file: { bytes: Number(size), mtimeNs: String(mtimeNs) }, blocks };
}

async function sealDurably(dir: string, name: string) {
  const handle = await open(path.join(dir, name));
  try {
    const [crc32] = await Promise.all([checksum(handle), handle.sync()]);
    const { size, blocks } = await handle.stat({ bigint: true });
    return { name, file: { bytes: Number(size), crc32 }, blocks };
  } finally {
    await handle.close();
  }
}

/**
 * @param content - whether the checksums are compared as well, for which everything is read
 * @throws snapshot_incompatible naming the first file that is not what it was
 */
export async function requireIntact({ dir, files }: Pick<Snapshot, "dir" | "files">, { content }: { content: boolean }): Promise<void> {
  // Of a record that an earlier version has written.
  if (!files) throw damaged(dir, "it was saved by an earlier version of Mitos, which kept no record of its files");
  const looked = Object.entries(files).map(async ([name, sealed]) => {
    const target = path.join(dir, name);
    return { target, sealed, found: await stat(target, { bigint: true }).catch(() => undefined) };
  });
  for (const { target, sealed, found } of await Promise.all(looked)) {
    if (!found) throw damaged(target, "it is gone");
    if (Number(found.size) !== sealed.bytes) throw damaged(target, `it has ${found.size} bytes instead of ${sealed.bytes}`);
    if (sealed.mtimeNs !== undefined && String(found.mtimeNs) !== sealed.mtimeNs) throw damaged(target, "it was written to");
    if (content && sealed.crc32 !== undefined && (await checksumOf(target)) !== sealed.crc32)
      throw damaged(target, "its content has changed");
  }
}

async function checksumOf(target: string): Promise<number> {
  let file: FileHandle;
  try {
    file = await open(target);
  } catch (error) {
    throw damaged(target, error instanceof Error ? error.message : String(error));
  }
  try {
    return await checksum(file);
  } catch (error) {
    throw damaged(target, `it cannot be read: ${error instanceof Error ? error.message : String(error)}`);
  } finally {
    await file.close();
  }
}

/** Chunk by chunk, so that neither memory nor other requests suffer. */
async function checksum(file: FileHandle): Promise<number> {
  const buffer = Buffer.allocUnsafe(chunkBytes);
  let sum = 0;
  for (let at = 0; ; ) {
    const { bytesRead } = await file.read(buffer, 0, chunkBytes, at);
    if (bytesRead === 0) return sum;
    sum = crc32(buffer.subarray(0, bytesRead), sum);
    at += bytesRead;
  }
}

function damaged(target: string, what: string): MitosError {
  return new MitosError("snapshot_incompatible", {
    message: "the saved state is not whole any more",
    cause: `${target}: ${what}`,
    remediation: "Put that file back from a backup, or terminate the sandbox and create a new one from the template.",
    context: { file: target },
  });
}
