import { createHash, randomBytes } from "node:crypto";
import { open, readdir, readFile, rename, rm, stat, utimes } from "node:fs/promises";
import path from "node:path";
import { type OwnEntry, ownEntries } from "../host/own-files.ts";
import type { Guest } from "../host/parts.ts";
import { type CpioEntry, cpioOf } from "./cpio.ts";

/** Goes into the name: a change of what is written below makes it anew. */
const recipe = 1;
/** Of earlier agents; a machine needs it only while it boots. */
const initramfsKept = 8;

export interface Initramfs {
  readonly path: string;
  /** Of what decides its content. */
  readonly hash: string;
}

/**
 * The first root file system of a machine, made once for each agent and kernel: the kernel's modules, and what every root has of ours, with the
 * agent as the program that the kernel starts.
 *
 * @param dir - where it is kept
 * @param kernel - `modules` is a folder of modules and their `order`, `modulesHash` stands for what is in it
 */
export async function openInitramfs(dir: string, guest: Guest, kernel: { modules: string; modulesHash: string }): Promise<Initramfs> {
  const own = ownEntries(Buffer.from(guest.hash));
  const hash = createHash("sha256")
    .update(JSON.stringify([recipe, guest.hash, kernel.modulesHash]))
    .update(cpioOf(entriesOf(own, [])))
    .digest("hex");
  const file = path.join(dir, `initramfs-${hash.slice(0, 12)}.cpio`);
  if (await stat(file).catch(() => undefined)) {
    const now = new Date();
    await utimes(file, now, now).catch(() => {}); // somebody else's, which serves as well
  } else {
    await write(file, cpioOf(entriesOf(ownEntries(await readFile(guest.path)), await readModules(kernel.modules))));
    await removeOld(dir);
  }
  return { path: file, hash };
}

async function readModules(dir: string): Promise<CpioEntry[]> {
  const order = await readFile(path.join(dir, "order"));
  const names = order.toString().split("\n").filter(Boolean);
  const file = async (name: string) =>
    ({ kind: "file", name: `modules/${name}`, mode: 0o644, content: await readFile(path.join(dir, name)) }) as const;
  return [{ kind: "file", name: "modules/order", mode: 0o644, content: order }, ...(await Promise.all(names.map(file)))];
}

function entriesOf(own: ReturnType<typeof ownEntries>, modules: readonly CpioEntry[]): CpioEntry[] {
  const below = (dir: string, entries: readonly OwnEntry[]) => entries.map((entry) => ({ ...entry, name: `${dir}/${entry.name}` }));
  return [
    folder("dev"),
    // Where the kernel's first process writes before it has mounted anything.
    { kind: "character device", name: "dev/console", mode: 0o600, major: 5, minor: 1 },
    folder("modules"),
    ...modules,
    folder("own"),
    folder("own/lower"),
    ...below("own/lower", own.lower),
    folder("own/upper"),
    ...below("own/upper", own.upper),
  ];
}

function folder(name: string): CpioEntry {
  return { kind: "folder", name, mode: 0o755 };
}

/** One that exists is whole: it is made beside its place and renamed. */
async function write(file: string, content: Uint8Array): Promise<void> {
  const partial = `${file}.partial-${randomBytes(4).toString("hex")}`;
  try {
    const opened = await open(partial, "wx", 0o444);
    try {
      await opened.writeFile(content);
      await opened.sync();
    } finally {
      await opened.close();
    }
    await rename(partial, file);
  } catch (error) {
    await rm(partial, { force: true });
    throw error;
  }
}

async function removeOld(dir: string): Promise<void> {
  const names = (await readdir(dir)).filter((name) => /^initramfs-[0-9a-f]{12}\.cpio$/.test(name));
  const found = await Promise.all(
    names.map(async (name) => ({ name, usedMs: (await stat(path.join(dir, name)).catch(() => undefined))?.mtimeMs ?? 0 })),
  );
  found.sort((a, b) => b.usedMs - a.usedMs);
  for (const { name } of found.slice(initramfsKept)) await rm(path.join(dir, name), { force: true });
}
