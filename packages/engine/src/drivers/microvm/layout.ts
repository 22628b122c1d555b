import { mkdir, realpath } from "node:fs/promises";
import path from "node:path";
import { type HostLayout, hostLayout, makeHostFolders } from "../host/layout.ts";

/** Beside what every driver has, in the data directory: root images, memory files that machines go on from, and what machines have written. */
export interface Layout extends HostLayout {
  readonly state: string;
  readonly images: string;
  readonly bases: string;
  readonly disks: string;
}

/** Makes the folders. @throws MitosError when one of them belongs to somebody else */
export async function openLayout(dataDir: string, runtimeDir: string): Promise<Layout> {
  const state = path.join(await realpath(dataDir), "microvm");
  const layout: Layout = {
    ...(await hostLayout(dataDir, runtimeDir)),
    state,
    images: path.join(state, "images"),
    bases: path.join(state, "bases"),
    disks: path.join(state, "disks"),
  };
  await makeHostFolders(layout);
  await mkdir(layout.state, { recursive: true, mode: 0o700 });
  return layout;
}
