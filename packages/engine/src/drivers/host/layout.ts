import { createHash, randomBytes } from "node:crypto";
import { lstat, mkdir, readlink, realpath, rmdir, symlink } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";

/** runsc accepts unique prefixes of container ids, so all have one length. */
const keeperIdPattern = /^[0-9a-f]{12}$/;
/** Machine ids become file names. */
const machineIdPattern = /^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$/;

/** Unix socket paths end at 107 bytes; this is what the longest one below a runtime directory adds to it. */
const socketPathBytes = "/m/0123456789ab/shim.sock".length;

/**
 * Where the machines of one driver and data directory lie, in a runtime directory that is gone at the next boot of the host: `m/<keeper id>` with
 * everything of one machine and its shim, `ids/<machine id>` → its keeper (a shim and its VMM are made before it is known which machine they
 * will be).
 */
export interface HostLayout {
  readonly runtimeDir: string;
  readonly machines: string;
  readonly ids: string;
  /** The one parent of all cgroups of this data directory. */
  readonly cgroupParent: string;
}

/** A short path of this data directory's own: `/run/mitos-…` for root, else below `$XDG_RUNTIME_DIR` or `/tmp`. */
export async function defaultRuntimeDir(dataDir: string): Promise<string> {
  const uid = process.getuid?.() ?? 0;
  const hash = await dataDirHash(dataDir);
  if (uid === 0) return `/run/mitos-${hash}`;
  const session = process.env.XDG_RUNTIME_DIR;
  if (session && path.isAbsolute(session)) {
    const found = await lstat(session).catch(() => undefined);
    if (found?.isDirectory() && found.uid === uid && session.length < 60) return path.join(session, `mitos-${hash}`);
  }
  return `/tmp/mitos-${uid}-${hash}`;
}

/** Only names; `makeHostFolders` makes them. @throws MitosError when the path is too long */
export async function hostLayout(dataDir: string, runtimeDir: string): Promise<HostLayout> {
  if (Buffer.byteLength(runtimeDir) + socketPathBytes > 107) {
    throw new MitosError("invalid_input", { cause: `the runtime directory ${runtimeDir} is too long for unix sockets` });
  }
  return {
    runtimeDir,
    machines: path.join(runtimeDir, "m"),
    ids: path.join(runtimeDir, "ids"),
    cgroupParent: `mitos-${await dataDirHash(dataDir)}`,
  };
}

/**
 * Also before each machine: cleaners of /tmp remove empty folders of a server that has had nothing to do for days.
 * @throws MitosError when one of them belongs to somebody else
 */
export async function makeHostFolders({ runtimeDir, ids, machines }: HostLayout, others: readonly string[] = []): Promise<void> {
  for (const dir of [runtimeDir, ids, ...others, machines]) await ownFolder(dir);
}

/** Removes the runtime directory when no machine is left in it. */
export async function removeHostFoldersIfEmpty({ runtimeDir, ids, machines }: HostLayout, others: readonly string[] = []): Promise<void> {
  for (const dir of [machines, ...others, ids, runtimeDir]) {
    const removed = await rmdir(dir).then(
      () => true,
      () => false,
    );
    if (!removed) return;
  }
}

async function dataDirHash(dataDir: string): Promise<string> {
  return createHash("sha256")
    .update(await realpath(dataDir))
    .digest("hex")
    .slice(0, 8);
}

/** The parents are shared with other users of the host: a folder that was prepared under our name is not used. */
async function ownFolder(dir: string): Promise<void> {
  await mkdir(dir, { mode: 0o700 }).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== "EEXIST") throw error;
  });
  const found = await lstat(dir);
  if (!found.isDirectory() || found.uid !== process.getuid?.() || (found.mode & 0o077) !== 0) {
    throw new MitosError("internal", {
      cause: `${dir} exists and is not a private folder of this user`,
      remediation: `Remove ${dir}, or start the server with another data directory.`,
    });
  }
}

export function newKeeperId(): string {
  return randomBytes(6).toString("hex");
}

export function isKeeperId(name: string): boolean {
  return keeperIdPattern.test(name);
}

export function machineDir(layout: HostLayout, keeperId: string): string {
  return path.join(layout.machines, keeperId);
}

/** @throws conflict when a machine of this id was there before */
export async function nameKeeper(layout: HostLayout, machineId: string, keeperId: string): Promise<void> {
  try {
    await symlink(`../m/${keeperId}`, nameOf(layout, machineId));
  } catch (reason) {
    if ((reason as NodeJS.ErrnoException).code === "EEXIST") throw new MitosError("conflict", { cause: `machine ${machineId} exists` });
    throw reason;
  }
}

/** The keeper that is (or was) this machine. */
export async function keeperOf(layout: HostLayout, machineId: string): Promise<string | undefined> {
  const target = await readlink(nameOf(layout, machineId)).catch(() => undefined);
  const keeperId = target && path.basename(target);
  return keeperId && isKeeperId(keeperId) ? keeperId : undefined;
}

export function nameOf(layout: HostLayout, machineId: string): string {
  if (!machineIdPattern.test(machineId))
    throw new MitosError("invalid_input", { cause: "a machine id has characters that it must not have" });
  return path.join(layout.ids, machineId);
}
