import { mkdir } from "node:fs/promises";
import path from "node:path";
import type { Log } from "../../actions.ts";
import type { RootSource } from "../../driver.ts";
import type { Cgroups } from "../host/cgroup.ts";
import { type HostLayout, hostLayout, makeHostFolders } from "../host/layout.ts";
import type { Firecracker } from "./find.ts";

/** What machines are made of, as far as this driver needs it: of drivers/microvm `Assets`. */
export interface MachineParts {
  readonly kernel: { readonly path: string };
  readonly initramfs: { readonly path: string };
  readonly emptyDisk: { readonly path: string };
}

/** The read-only root images, as far as this driver needs them: of drivers/microvm `Images`. */
export interface RootImages {
  use(source: RootSource): Promise<Disposable & { readonly path: string; readonly key: string }>;
  pathOf(key: string): string;
  removeUnused(keep: () => Promise<ReadonlySet<string>>, sources?: readonly RootSource[]): Promise<void>;
}

/** Beside what every driver has: in the data directory the disks that machines write to, and the folders of jailed VMMs. */
export interface Layout extends HostLayout {
  readonly disks: string;
  readonly jails: string;
}

/** What every part of this driver works with: one of these per data directory. */
export interface Host {
  readonly layout: Layout;
  readonly firecracker: Firecracker;
  readonly parts: MachineParts;
  readonly images: RootImages;
  /** The guest binary, which is also the shim. */
  readonly guestPath: string;
  /** Nothing that a VMM needs is root's alone. */
  readonly userNamespace: false;
  /** Undefined: memory is watched by the shim. */
  readonly cgroups: Cgroups | undefined;
  readonly log: Log;
}

/** Makes the folders. @throws MitosError when one of them belongs to somebody else */
export async function openLayout(dataDir: string, runtimeDir: string): Promise<Layout> {
  const state = path.join(dataDir, "firecracker");
  const layout: Layout = {
    ...(await hostLayout(dataDir, runtimeDir)),
    disks: path.join(state, "disks"),
    jails: path.join(state, "jails"),
  };
  await makeHostFolders(layout);
  for (const dir of [layout.disks, layout.jails]) await mkdir(dir, { recursive: true, mode: 0o700 });
  return layout;
}

/** By which a VMM calls itself: of this data directory alone, so that its processes are found among those of all users. Letters, digits, hyphens. */
export function vmId(layout: Pick<HostLayout, "cgroupParent">, keeperId: string): string {
  return `${layout.cgroupParent}-${keeperId}`;
}
