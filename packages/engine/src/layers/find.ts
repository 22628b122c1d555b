import { constants } from "node:fs";
import { access } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";

/** The checkout (or the installed tree) that this file lies in. */
const repositoryRoot = path.resolve(import.meta.dirname, "../../../..");

/**
 * Path of `mitos-layers`: as asked for, else `MITOS_LAYERS`, else beside `MITOS_GUEST`, else what the setup has built.
 *
 * @throws not_supported
 */
export async function findLayersTool(explicit: string | undefined): Promise<string> {
  const { MITOS_LAYERS, MITOS_GUEST } = process.env;
  const triple = `${process.arch === "arm64" ? "aarch64" : "x86_64"}-unknown-linux-gnu`;
  const built = MITOS_GUEST ? path.dirname(MITOS_GUEST) : path.join(repositoryRoot, "guest/target", triple, "release");
  const tool = explicit ?? MITOS_LAYERS ?? path.join(built, "mitos-layers");
  try {
    await access(tool, constants.X_OK);
    return tool;
  } catch (reason) {
    throw new MitosError("not_supported", {
      message: "images cannot be unpacked here",
      cause: `${tool} cannot be run`,
      remediation: "Run `npm run setup`, which builds it, or set MITOS_LAYERS to the path of mitos-layers.",
      reason,
    });
  }
}
