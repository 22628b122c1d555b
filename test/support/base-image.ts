import { baseImageFolder, ensureBaseImage } from "../../scripts/lib/base-image.mjs";
import { type Compression, imageOf, type LayerBlob, type OciImage, type RunConfig, readLayout, recompressed } from "./oci.ts";

/**
 * A real Debian, made by mmdebstrap and umoci out of the machine's archive and kept in the checkout's cache folder: `base` is Debian with apt,
 * `python` has Python 3 as a second layer on top of the same first one.
 */
export async function debian(tag: "base" | "python"): Promise<OciImage> {
  await ensureBaseImage();
  return readLayout(baseImageFolder(), tag);
}

/** An image on top of Debian's layers. */
export async function onDebian(
  tag: "base" | "python",
  layers: readonly LayerBlob[],
  run: RunConfig = {},
  { compression }: { compression?: Compression } = {},
): Promise<OciImage> {
  const below = (await debian(tag)).layers.map((layer) => (compression ? recompressed(layer, compression) : layer));
  const all = [...below, ...layers];
  return imageOf(all, { Env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], ...run });
}
