import { constants } from "node:fs";
import { open } from "node:fs/promises";
import path from "node:path";
import { limits, MitosError } from "@mitos/protocol";

/**
 * The end of what a machine's shim has kept of its console, at most `limits.consoleBytesMax`: what comes out of the machine beside the link, and
 * what the programs that run it say.
 *
 * @throws unavailable when its folder is gone: the machine has just ended
 */
export async function readConsole(dir: string): Promise<Uint8Array> {
  try {
    await using file = await open(path.join(dir, "machine.log"), constants.O_RDONLY | constants.O_NOFOLLOW);
    const { size } = await file.stat();
    const length = Math.min(size, limits.consoleBytesMax);
    const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, size - length);
    return buffer.subarray(0, bytesRead);
  } catch (reason) {
    throw new MitosError("unavailable", { cause: "the machine has no console any more", reason });
  }
}
