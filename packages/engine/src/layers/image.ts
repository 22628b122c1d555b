import { findLayersTool } from "./find.ts";
import type { Layer } from "./layer.ts";
import { runTool } from "./tool.ts";

/** What the tool answers. */
export interface Image {
  readonly entries: number;
  /** Length of the file; one with holes takes less of the disk. */
  readonly bytes: number;
}

/**
 * Writes a read-only file system (EROFS) of layers, for a machine with a kernel of its own. The file is whole, synced and of mode 0444 when it has its
 * name; a killed server leaves `<out>.partial-<number>` beside it.
 *
 * @param layers - lowest first; they must stay until this settles
 * @param out - in a folder that exists; what is there is replaced
 * @param options.tool - path of `mitos-layers`, default as `findLayersTool` finds it
 * @throws quota_exceeded (the disk), build_failed (too large: more than 64 GiB), not_supported without the tool, canceled
 */
export async function writeImage(
  layers: readonly Pick<Layer, "dir">[],
  out: string,
  { tool, signal }: { tool?: string | undefined; signal?: AbortSignal | undefined } = {},
): Promise<Image> {
  const args = ["image", "--out", out, ...layers.map(({ dir }) => dir)];
  return JSON.parse(await runTool(await findLayersTool(tool), args, { signal })) as Image;
}
