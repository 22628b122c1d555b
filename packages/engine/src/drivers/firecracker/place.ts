import { chmod, chown, link, rename, rm, symlink } from "node:fs/promises";
import path from "node:path";
import { machineDir } from "../host/layout.ts";
import { vsockName } from "./calls.ts";
import { cloneFile } from "./disk.ts";
import { type Host, type Layout, vmId } from "./host.ts";

/** Relative names: the same for every VMM, each in a folder of its own, so that what a snapshot says of them is true wherever it is loaded. */
const apiName = "api.sock";
export const rootName = "root.erofs";
export const writtenName = "written.ext4";
/** In the shim's folder, leads to a jail: socket paths may have 107 bytes, and this one adds no more than the shim's own does. */
const jailLink = "j";

export interface Jail {
  readonly uid: number;
  readonly gid: number;
}

/** What decides where jails are. */
export interface JailHost {
  readonly layout: Pick<Layout, "machines" | "jails" | "cgroupParent">;
  readonly firecracker: { readonly path: string };
}

/**
 * The folder in which one VMM lives, and how host files get in and out of it. Without a jail that is the shim's folder, and every path of the host
 * is one of the VMM's; in a jail it is the VMM's whole file system.
 */
export interface Place {
  /** Run by the shim with the link as stdin and stdout; ends when the VMM runs, and has written its pid. */
  readonly argv: readonly string[];
  readonly pidFile: string;
  /** Of the API's socket, for the server. */
  readonly api: string;
  /** Of the guest's connections, for the shim, which works in its folder. */
  readonly vsock: string;
  /** Where the host finds the disk that the machine writes to. */
  readonly disk: string;
  /** Shows the VMM a file that it only reads. Answers the name that it has for the VMM. */
  lend(file: string, name: string): Promise<string>;
  /** Gives the VMM its drives: `image` under `rootName`, and what was put at `disk` under `writtenName`. */
  giveDrives(image: string): Promise<void>;
  /** The name under which the VMM writes a file that is to become `target`. */
  outlet(target: string): string;
  /** Takes what it wrote there: nobody writes to it any more. */
  collect(target: string): Promise<void>;
  /** Takes the loan back. */
  unlend(name: string): Promise<void>;
}

export function placeOf(host: Host, keeperId: string, jail: Jail | null, cgroupProcs: readonly string[]): Place {
  return jail ? jailed(host, keeperId, jail, cgroupProcs) : free(host, keeperId, cgroupProcs);
}

/** What lies outside the shim's folder. Its VMM has ended. */
export async function removePlace(host: Host, keeperId: string): Promise<void> {
  const jail = jailDir(host, keeperId);
  await Promise.all([rm(diskOf(host.layout.disks, keeperId), { force: true }), rm(jail, { recursive: true, force: true })]);
}

function free({ layout, firecracker, guestPath }: Host, keeperId: string, cgroupProcs: readonly string[]): Place {
  const dir = machineDir(layout, keeperId);
  const disk = diskOf(layout.disks, keeperId);
  const specification = {
    argv: [firecracker.path, "--id", vmId(layout, keeperId), "--api-sock", apiName],
    pid_file: "vmm.pid",
    cgroups: cgroupProcs,
  };
  return {
    argv: [guestPath, "confine", JSON.stringify(specification)],
    pidFile: path.join(dir, "vmm.pid"),
    api: path.join(dir, apiName),
    vsock: vsockName,
    disk,
    lend: async (file) => file,
    unlend: async () => {},
    giveDrives: async (image) => {
      await symlink(image, path.join(dir, rootName));
      await symlink(disk, path.join(dir, writtenName));
    },
    outlet: (target) => target,
    collect: (target) => chmod(target, 0o444),
  };
}

/**
 * The jailer's own way: a root directory of the VMM's, no privilege, a pid namespace. It needs root's capabilities, which is why `confine` does not
 * start it; with a pid namespace it ends by itself once the VMM runs, and leaves its pid. Standard output is the console, for the machine's log.
 */
const startJailer = `while [ "$1" != -- ]; do echo $$ > "$1" || exit 1; shift; done; shift; exec "$@" < /dev/null >&2`;

function jailed(host: Host, keeperId: string, { uid, gid }: Jail, cgroupProcs: readonly string[]): Place {
  const { layout, firecracker, cgroups } = host;
  const id = vmId(layout, keeperId);
  const program = path.basename(firecracker.path);
  const root = jailRoot(host, keeperId);
  const disk = path.join(root, writtenName);
  const jailer = [
    ...[firecracker.jailer ?? "", "--id", id, "--exec-file", firecracker.path, "--uid", String(uid), "--gid", String(gid)],
    ...["--chroot-base-dir", layout.jails, "--cgroup-version", String(cgroups?.version ?? 2), "--new-pid-ns"],
    ...["--", "--api-sock", apiName],
  ];
  const lend = async (file: string, name: string) => {
    const inside = path.join(root, name);
    // A hard link where it can be one: then the file is in memory once for all machines that map it.
    await link(file, inside).catch(async (error: NodeJS.ErrnoException) => {
      if (error.code !== "EXDEV") throw error;
      await cloneFile(file, inside);
      await chmod(inside, 0o444);
    });
    return name;
  };
  const written = (target: string) => path.join(root, `out-${path.basename(target)}`);
  return {
    argv: ["/bin/sh", "-c", startJailer, "sh", ...cgroupProcs, "--", ...jailer],
    pidFile: path.join(root, `${program}.pid`),
    api: path.join(machineDir(layout, keeperId), jailLink, apiName),
    vsock: `${jailLink}/${vsockName}`,
    disk,
    lend,
    unlend: (name) => rm(path.join(root, name), { force: true }),
    giveDrives: async (image) => {
      await lend(image, rootName);
      await chown(disk, uid, gid);
    },
    outlet: (target) => path.basename(written(target)),
    collect: async (target) => {
      await move(written(target), target);
      await chown(target, 0, 0);
      // Also for the next VMM, which is another user.
      await chmod(target, 0o444);
    },
  };
}

/** For a jail, so that its socket is reached by a short path. */
export async function linkJail(host: Host, keeperId: string): Promise<void> {
  await symlink(jailRoot(host, keeperId), path.join(machineDir(host.layout, keeperId), jailLink));
}

/** Where the jailer puts the VMM's whole file system. */
export function jailRoot(host: JailHost, keeperId: string): string {
  return path.join(jailDir(host, keeperId), "root");
}

function jailDir({ layout, firecracker }: JailHost, keeperId: string): string {
  return path.join(layout.jails, path.basename(firecracker.path), vmId(layout, keeperId));
}

async function move(from: string, to: string): Promise<void> {
  try {
    await rename(from, to);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EXDEV") throw error;
    await cloneFile(from, to);
    await rm(from);
  }
}

function diskOf(disks: string, keeperId: string): string {
  return path.join(disks, `${keeperId}.ext4`);
}
