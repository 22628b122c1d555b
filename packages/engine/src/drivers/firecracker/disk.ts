import { constants } from "node:fs";
import { copyFile } from "node:fs/promises";
import { MitosError } from "@mitos/protocol";
import { diskFull } from "../../storage-error.ts";
import { copySparse } from "../microvm/copy-sparse.ts";

const notCloned = new Set(["ENOTSUP", "EOPNOTSUPP", "EXDEV", "EINVAL", "ENOTTY", "ENOSYS"]);

/**
 * A file of its own with the same content: shares its blocks where the file system can (xfs, btrfs: under a millisecond), else a copy that
 * keeps the holes.
 *
 * @param target - must not exist
 * @throws quota_exceeded when the disk is full
 */
export async function cloneFile(source: string, target: string): Promise<void> {
  try {
    await copyFile(source, target, constants.COPYFILE_FICLONE_FORCE | constants.COPYFILE_EXCL);
    return;
  } catch (error) {
    if (!notCloned.has((error as NodeJS.ErrnoException).code ?? "")) throw full(error, target);
  }
  try {
    await copySparse(source, target);
  } catch (error) {
    throw full(error, target);
  }
}

function full(error: unknown, target: string): unknown {
  const { code, message } = error as NodeJS.ErrnoException;
  if (code === "ENOSPC" || code === "EDQUOT" || /no space left on device|disk quota exceeded/i.test(message))
    return diskFull(target, error);
  return new MitosError("internal", { cause: `a disk could not be copied: ${message.split("\n").at(-1)?.slice(0, 256)}`, reason: error });
}
