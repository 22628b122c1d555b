import { createHash } from "node:crypto";
import { mkdir, mkdtemp, readdir, readFile, rm, stat, utimes, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { openInitramfs } from "./initramfs.ts";

let dir: string;
let kernel: { modules: string; modulesHash: string };

beforeEach(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), "mitos-initramfs-"));
  kernel = { modules: path.join(dir, "modules"), modulesHash: "m1" };
  await mkdir(kernel.modules);
  await writeFile(path.join(kernel.modules, "order"), "virtio.ko\nerofs.ko\n");
  await writeFile(path.join(kernel.modules, "virtio.ko"), "the virtio module");
  await writeFile(path.join(kernel.modules, "erofs.ko"), "the erofs module");
});
afterEach(() => rm(dir, { recursive: true }));

async function agent(text: string) {
  const hash = createHash("sha256").update(text).digest("hex");
  const file = path.join(dir, `agent-${hash.slice(0, 8)}`);
  await writeFile(file, text);
  return { path: file, hash };
}

const made = async () => (await readdir(dir)).filter((name) => name.startsWith("initramfs-"));

it("holds the agent, our files below and above the image, and the modules in their order", async () => {
  const { path: file } = await openInitramfs(dir, await agent("the agent"), kernel);
  const archive = (await readFile(file)).toString("latin1");
  const names = [...archive.matchAll(/070701[0-9a-f]{104}([^\0]+)\0/g)].map(([, name]) => name);
  expect(names).toEqual(expect.arrayContaining(["dev/console", "own/lower/root", "own/upper/etc/resolv.conf", "own/upper/etc/mtab"]));
  expect(names).toContain("own/upper/opt/mitos/bin/mitos-guest");
  expect(names.filter((name) => name?.startsWith("modules/"))).toEqual(["modules/order", "modules/virtio.ko", "modules/erofs.ko"]);
  // A folder stands before what is in it: the kernel makes none of its own accord.
  for (const name of names) if (name?.includes("/")) expect(names.indexOf(path.dirname(name))).toBeGreaterThanOrEqual(0);
  expect(archive).toContain("the agent");
  expect(archive).toContain("the erofs module");
});

it("is made once for an agent and a kernel, and anew for others", async () => {
  const guest = await agent("one");
  const first = await openInitramfs(dir, guest, kernel);
  const { ino } = await stat(first.path);
  expect(await openInitramfs(dir, guest, kernel)).toEqual(first);
  expect((await stat(first.path)).ino).toBe(ino);
  const ofOtherAgent = await openInitramfs(dir, await agent("two"), kernel);
  const ofOtherKernel = await openInitramfs(dir, guest, { ...kernel, modulesHash: "m2" });
  expect(new Set([first.hash, ofOtherAgent.hash, ofOtherKernel.hash]).size).toBe(3);
});

it("is one whole file when several ask at once", async () => {
  const guest = await agent("one");
  const all = await Promise.all(Array.from({ length: 5 }, () => openInitramfs(dir, guest, kernel)));
  expect(new Set(all.map(({ path: file }) => file)).size).toBe(1);
  expect(await made()).toHaveLength(1);
});

it("leaves nothing when a module is missing", async () => {
  await rm(path.join(kernel.modules, "erofs.ko"));
  await expect(openInitramfs(dir, await agent("one"), kernel)).rejects.toThrow(/erofs\.ko/);
  expect(await made()).toEqual([]);
});

it("forgets those of the agents that were used longest ago", async () => {
  const guests = await Promise.all(Array.from({ length: 9 }, (_, index) => agent(`agent ${index}`)));
  const files: string[] = [];
  for (const guest of guests.slice(0, 8)) files.push((await openInitramfs(dir, guest, kernel)).path);
  for (const [index, file] of files.entries()) await utimes(file, index + 1, index + 1);
  await openInitramfs(dir, guests[0]!, kernel); // used again
  await openInitramfs(dir, guests[8]!, kernel);
  const left = await made();
  expect(left).toHaveLength(8);
  expect(left).not.toContain(path.basename(files[1]!));
});
