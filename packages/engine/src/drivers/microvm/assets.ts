import { access, constants, readFile } from "node:fs/promises";
import path from "node:path";
import { type Guest, MissingPart, repositoryRoot } from "../host/parts.ts";
import { type Initramfs, openInitramfs } from "./initramfs.ts";

/** What machines are made of, as set-up has laid it down. Paths are absolute; nothing of it is ever changed in its place. */
export interface Assets {
  readonly vmm: {
    /** A folder that is QEMU's whole root file system. */
    readonly root: string;
    /** In that root, absolute. */
    readonly program: string;
    /** What it says of itself, for example `QEMU 10.0.2 (Debian 1:10.0.2+ds-2)`. */
    readonly build: string;
  };
  readonly kernel: { readonly path: string; readonly release: string; readonly hash: string };
  /** Made when first asked for, for this agent. */
  readonly initramfs: Initramfs;
  /** A sparse file with an empty ext4 file system, `bytes` long. */
  readonly emptyDisk: { readonly path: string; readonly bytes: number; readonly hash: string };
  /** The root of templates that have no image of their own, an EROFS image. */
  readonly hostRoot: { readonly path: string; readonly hash: string };
}

const remedy = "Run `mitos setup microvm`, which makes it.";

/**
 * What `scripts/lib/microvm` writes of each part; `name` is that of a file or folder beside it.
 *
 * `modulesHash` stands for the kernel's modules.
 */
interface Records {
  readonly vmm: { readonly name: string; readonly program: string; readonly build: string };
  readonly kernel: { readonly name: string; readonly release: string; readonly hash: string; readonly modulesHash: string };
  readonly disk: { readonly name: string; readonly bytes: number; readonly hash: string };
  readonly root: { readonly name: string; readonly hash: string };
}

const titles: Readonly<Record<keyof Records, string>> = {
  vmm: "QEMU",
  kernel: "the kernel of virtual machines",
  disk: "the empty disk of virtual machines",
  root: "the root of templates without an image",
};

/**
 * @param dir - where set-up has laid the parts
 * @throws MissingPart naming the part
 */
export async function findAssets(guest: Guest, dir = path.join(repositoryRoot, ".cache/microvm")): Promise<Assets> {
  const [vmm, kernel, disk, root] = await Promise.all([
    readRecord(dir, "vmm"),
    readRecord(dir, "kernel"),
    readRecord(dir, "disk"),
    readRecord(dir, "root"),
  ]);
  const at = (name: string, ...below: string[]) => path.join(dir, name, ...below);
  const assets = {
    vmm: { root: at(vmm.name), program: vmm.program, build: vmm.build },
    kernel: { path: at(kernel.name, "vmlinux"), release: kernel.release, hash: kernel.hash },
    emptyDisk: { path: at(disk.name), bytes: disk.bytes, hash: disk.hash },
    hostRoot: { path: at(root.name), hash: root.hash },
  };
  await requireFile("vmm", path.join(assets.vmm.root, vmm.program), constants.X_OK);
  await requireFile("kernel", assets.kernel.path);
  await requireFile("kernel", at(kernel.name, "modules/order"));
  await requireFile("disk", assets.emptyDisk.path);
  await requireFile("root", assets.hostRoot.path);
  const modules = { modules: at(kernel.name, "modules"), modulesHash: kernel.modulesHash };
  return { ...assets, initramfs: await openInitramfs(dir, guest, modules) };
}

async function readRecord<Part extends keyof Records>(dir: string, part: Part): Promise<Records[Part]> {
  try {
    return JSON.parse(await readFile(path.join(dir, `${part}.json`), "utf8")) as Records[Part];
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") throw new MissingPart(`${titles[part]} has not been set up`, remedy);
    throw new MissingPart(`what set-up has written of ${titles[part]} cannot be read: ${String(cause)}`, remedy);
  }
}

async function requireFile(part: keyof Records, file: string, mode: number = constants.R_OK): Promise<void> {
  await access(file, mode).catch((cause: NodeJS.ErrnoException) => {
    throw new MissingPart(`${titles[part]} is not usable: ${cause.code} at ${file}`, remedy);
  });
}
