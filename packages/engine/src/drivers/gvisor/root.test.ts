import { access, mkdir, mkdtemp, readdir, readFile, rm, stat, utimes, writeFile } from "node:fs/promises";
import path from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { openHostRoot, removeOldRoots } from "./root.ts";

let base: string;
const guest = (hash: string) => ({ path: path.join(base, "guest"), hash });
beforeEach(async () => {
  base = await mkdtemp("/tmp/mitos-root-");
  await writeFile(path.join(base, "guest"), "agent");
});
afterEach(() => rm(base, { recursive: true, force: true }));

it("makes one root for one content, and another for another agent", async () => {
  const first = await openHostRoot(base, guest("a"), undefined);
  expect(await openHostRoot(base, guest("a"), undefined)).toEqual(first);
  expect((await openHostRoot(base, guest("b"), undefined)).dir).not.toBe(first.dir);
  expect((await readdir(base)).filter((name) => name.includes("partial"))).toEqual([]);
});

it("holds nothing of the host but what programs in /usr need", async () => {
  const { dir, binds } = await openHostRoot(base, guest("a"), undefined);
  for (const name of ["root", "home", "var", "mnt"])
    expect((await readdir(path.join(dir, name))).filter((found) => found !== "tmp")).toEqual([]);
  for (const name of ["shadow", "gshadow", "sudoers", "ssh", "ssl/private", "fstab"]) {
    await expect(access(path.join(dir, "etc", name))).rejects.toMatchObject({ code: "ENOENT" });
  }
  expect(await readFile(path.join(dir, "etc/passwd"), "utf8")).toBe(await readFile("/etc/passwd", "utf8"));
  expect(await readFile(path.join(dir, "etc/hosts"), "utf8")).toContain("127.0.0.1 localhost");
  expect(await readFile(path.join(dir, "opt/mitos/bin/mitos-guest"), "utf8")).toBe("agent");
  expect((await stat(path.join(dir, "tmp"))).mode & 0o7777).toBe(0o1777);
  expect(binds.every(({ source }) => /^\/(usr|bin|sbin|lib\w*)$/.test(source))).toBe(true);
});

it("binds the Node program of the server when the host's cannot be used", async () => {
  const { dir, binds } = await openHostRoot(base, guest("a"), "/somewhere/node");
  expect(binds).toContainEqual({ source: "/somewhere/node", destination: "/opt/mitos/bin/node" });
  expect((await stat(path.join(dir, "opt/mitos/bin/node"))).size).toBe(0);
});

it("keeps every root that something needs, however old, and a few of the others", async () => {
  const { dir: current } = await openHostRoot(base, guest("a"), undefined);
  const names = Array.from({ length: 20 }, (_, index) => `root-${index.toString(16).padStart(16, "0")}`);
  for (const [index, name] of [...names, `${names[0]}.partial-1`].entries()) {
    await mkdir(path.join(base, name));
    await utimes(path.join(base, name), index, index);
  }
  const needed = path.join(base, names[0]!);
  await removeOldRoots(base, new Set([current, needed]));
  const left = (await readdir(base)).filter((name) => name.startsWith("root-")).sort();
  expect(left).toEqual([path.basename(current), names[0]!, ...names.slice(4)].sort());
});
