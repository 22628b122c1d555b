import { createHash, randomBytes } from "node:crypto";
import { constants } from "node:fs";
import { chmod, copyFile, lstat, mkdir, readdir, readFile, readlink, rename, rm, stat, symlink, utimes, writeFile } from "node:fs/promises";
import path from "node:path";
import { removeTree } from "../../remove-tree.ts";
import { agentPath, ownEtcFiles } from "../host/own-files.ts";
import type { Guest } from "../host/parts.ts";

/** The root file system of a machine: a folder of ours, and what of the host is bound over it. */
export interface MachineRoot {
  readonly dir: string;
  readonly binds: readonly Bind[];
}

export interface Bind {
  readonly source: string;
  readonly destination: string;
}

const nodePath = "/opt/mitos/bin/node";

/**
 * What programs below /usr expect in /etc, and nothing else of it. Copied, not bound: a machine then does not notice when the host's
 * administrator changes one of them, and starts with fewer mounts.
 */
const etcNames = new Set(
  (
    "passwd group shells services protocols rpc nsswitch.conf host.conf gai.conf ld.so.cache ld.so.conf ld.so.conf.d ssl alternatives " +
    "mime.types localtime timezone os-release debian_version locale.alias inputrc terminfo perl magic"
  ).split(" "),
);
const etcPatterns = [/^python3(\.\d+)?$/, /^java-\d+-openjdk$/];
/** Below /etc, relative: never readable in a machine whatever the host allows us. */
const etcNever = new Set(["ssl/private"]);
const etcEntriesMax = 8_192;
const etcBytesMax = 64 * 1024 * 1024;

/** Roots of earlier host states and agents that no machine and no known snapshot needs: this many stay, for a repair of what is damaged now. */
const rootsKept = 16;

type Entry =
  | { readonly kind: "folder"; readonly name: string; readonly mode: number }
  | { readonly kind: "file"; readonly name: string; readonly mode: number; readonly content: Buffer }
  | { readonly kind: "link"; readonly name: string; readonly target: string };

/**
 * The root of the host template, made once per content: the host's /usr under a small root of our own.
 * Never anything of /root, /home, /var, or of /etc beyond the list above.
 */
export async function openHostRoot(stateDir: string, guest: Guest, node: string | undefined): Promise<MachineRoot> {
  const { entries, binds } = await describe(node);
  const hash = createHash("sha256").update(guest.hash);
  for (const entry of entries) {
    hash.update(`\0${entry.kind}\0${entry.name}\0`);
    if (entry.kind === "link") hash.update(entry.target);
    else hash.update(String(entry.mode));
    if (entry.kind === "file") hash.update(createHash("sha256").update(entry.content).digest());
  }
  const dir = path.join(stateDir, `root-${hash.digest("hex").slice(0, 16)}`);
  if (await stat(dir).catch(() => undefined)) {
    const now = new Date();
    await utimes(dir, now, now);
  } else {
    await build(dir, entries, guest);
  }
  return { dir, binds };
}

async function describe(node: string | undefined): Promise<{ entries: Entry[]; binds: Bind[] }> {
  const entries: Entry[] = [];
  const folder = (name: string, mode = 0o755) => entries.push({ kind: "folder", name, mode });
  const file = (name: string, content: string) => entries.push({ kind: "file", name, mode: 0o644, content: Buffer.from(content) });
  const binds: Bind[] = [{ source: "/usr", destination: "/usr" }];

  for (const name of ["dev", "etc", "home", "mnt", "opt", "opt/mitos", "opt/mitos/bin", "proc", "run", "sys", "usr", "var", "workspace"]) {
    folder(name);
  }
  folder("root", 0o700);
  folder("tmp", 0o1777);
  folder("var/tmp", 0o1777);

  for (const name of ["bin", "sbin", "lib", "lib32", "lib64", "libx32"]) {
    const found = await lstat(`/${name}`).catch(() => undefined);
    if (found?.isSymbolicLink()) entries.push({ kind: "link", name, target: await readlink(`/${name}`) });
    else if (found?.isDirectory()) {
      folder(name);
      binds.push({ source: `/${name}`, destination: `/${name}` });
    }
  }

  entries.push(...(await etcEntries()));
  for (const { name, content } of ownEtcFiles) file(name, content);
  entries.push({ kind: "link", name: "etc/mtab", target: "/proc/self/mounts" });

  if (await stat("/usr/bin/python3").catch(() => undefined)) {
    entries.push({ kind: "link", name: "opt/mitos/bin/python", target: "/usr/bin/python3" });
  }
  if (node) {
    entries.push({ kind: "file", name: nodePath.slice(1), mode: 0o755, content: Buffer.alloc(0) });
    binds.push({ source: node, destination: nodePath });
  }
  return { entries, binds };
}

async function etcEntries(): Promise<Entry[]> {
  const entries: Entry[] = [];
  let bytes = 0;
  const names = (await readdir("/etc")).filter((name) => etcNames.has(name) || etcPatterns.some((pattern) => pattern.test(name))).sort();
  const queue = names;
  for (let name = queue.shift(); name !== undefined; name = queue.shift()) {
    if (etcNever.has(name)) continue;
    const source = path.join("/etc", name);
    const found = await lstat(source);
    if (entries.length >= etcEntriesMax) throw new Error(`${source}: too many entries for the root of a host template`);
    if (found.isSymbolicLink()) {
      entries.push({ kind: "link", name: `etc/${name}`, target: await readlink(source) });
    } else if (found.isDirectory()) {
      const children = await readdir(source).catch(() => undefined);
      if (!children) continue; // not readable for this user, so not for its machines
      entries.push({ kind: "folder", name: `etc/${name}`, mode: 0o755 });
      queue.unshift(...children.sort().map((child) => `${name}/${child}`));
    } else if (found.isFile() && (found.mode & 0o004) !== 0) {
      bytes += found.size;
      if (bytes > etcBytesMax) throw new Error(`${source}: too much for the root of a host template`);
      entries.push({ kind: "file", name: `etc/${name}`, mode: 0o644, content: await readFile(source) });
    }
  }
  return entries;
}

/** A root that exists is whole: it is made beside its place and renamed. */
async function build(dir: string, entries: readonly Entry[], guest: Guest): Promise<void> {
  const partial = `${dir}.partial-${randomBytes(4).toString("hex")}`;
  try {
    await mkdir(partial, { mode: 0o755 });
    await chmod(partial, 0o755);
    for (const entry of entries) {
      const target = path.join(partial, entry.name);
      if (entry.kind === "link") await symlink(entry.target, target);
      else if (entry.kind === "folder") await mkdir(target, { recursive: true });
      else await writeFile(target, entry.content, { flag: "wx" });
      if (entry.kind !== "link") await chmod(target, entry.mode); // whatever our umask is
    }
    const agent = path.join(partial, agentPath);
    await copyFile(guest.path, agent, constants.COPYFILE_FICLONE);
    await chmod(agent, 0o755);
    await rename(partial, dir);
  } catch (error) {
    await rm(partial, { recursive: true, force: true });
    const { code } = error as NodeJS.ErrnoException;
    if ((code === "ENOTEMPTY" || code === "EEXIST") && (await stat(dir).catch(() => undefined))) return; // somebody else made the same
    throw error;
  }
}

/** Beside a root of layers: owners that its files could not be given here. Empty where none is missing. */
export function ownersFileOf(rootDir: string): string {
  return `${rootDir}.owners`;
}

/**
 * Removes what a killed server has left half-made, and the oldest roots that nothing needs any more.
 * @param inUse - and being made
 * @param layersToo - every root of layers that nothing needs, however new: unlike the host's it can be made again. While the server runs
 */
export async function removeOldRoots(stateDir: string, inUse: ReadonlySet<string>, { layersToo = false } = {}): Promise<void> {
  const names = await readdir(stateDir);
  const present = new Set(names);
  const unneeded: { dir: string; usedMs: number }[] = [];
  for (const name of names) {
    const dir = path.join(stateDir, name);
    const isBeingMade = layersToo && inUse.has(dir.replace(/\.partial-.*/, ""));
    if (/^(root|own)-[0-9a-f]{16}\.partial-/.test(name) && !isBeingMade) await removeTree(dir);
    else if (/^own-[0-9a-f]{16}$/.test(name) && !inUse.has(dir)) await removeTree(dir);
    else if (/^root-[0-9a-f]{16}\.owners$/.test(name)) {
      // It is renamed into place just before its root.
      if (!present.has(name.slice(0, -".owners".length))) await rm(dir, { force: true });
    } else if (/^root-[0-9a-f]{16}$/.test(name) && !inUse.has(dir)) {
      const isOfLayers = present.has(path.basename(ownersFileOf(dir)));
      if (layersToo && isOfLayers) await removeRoot(dir);
      else unneeded.push({ dir, usedMs: (await stat(dir)).mtimeMs });
    }
  }
  unneeded.sort((a, b) => b.usedMs - a.usedMs);
  for (const { dir } of unneeded.slice(rootsKept)) await removeRoot(dir);
}

/** Out of its place first: what is there is whole. */
async function removeRoot(dir: string): Promise<void> {
  const partial = `${dir}.partial-${randomBytes(4).toString("hex")}`;
  await rename(dir, partial);
  await Promise.all([removeTree(partial), rm(ownersFileOf(dir), { force: true })]);
}
