import { mkdir } from "node:fs/promises";
import path from "node:path";
import { type HostLayout, hostLayout, makeHostFolders, removeHostFoldersIfEmpty } from "../host/layout.ts";

/** Beside what every driver has: `r` in the runtime directory for runsc; in the data directory roots, scratch files by container, and the probe's answer. */
export interface Layout extends HostLayout {
  readonly runscRoot: string;
  readonly state: string;
  readonly scratch: string;
}

/** Makes the folders. @throws MitosError when one of them belongs to somebody else */
export async function openLayout(dataDir: string, runtimeDir: string): Promise<Layout> {
  const layout: Layout = {
    ...(await hostLayout(dataDir, runtimeDir)),
    runscRoot: path.join(runtimeDir, "r"),
    state: path.join(dataDir, "gvisor"),
    scratch: path.join(dataDir, "gvisor", "scratch"),
  };
  await makeFolders(layout);
  await mkdir(layout.state, { recursive: true, mode: 0o700 });
  return layout;
}

export function makeFolders(layout: Layout): Promise<void> {
  return makeHostFolders(layout, [layout.runscRoot]);
}

/** Removes the runtime directory when no machine is left in it. */
export function removeFoldersIfEmpty(layout: Layout): Promise<void> {
  return removeHostFoldersIfEmpty(layout, [layout.runscRoot]);
}

/** Holds what the machine writes, when that lies on the disk. runsc takes the file's name away at once, so that nothing is left of a killed one. */
export function scratchOf(layout: Layout, containerId: string): string {
  return path.join(layout.scratch, containerId);
}
