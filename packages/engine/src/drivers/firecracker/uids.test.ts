import { existsSync, readFileSync } from "node:fs";
import { chown, mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { setImmediate as nextTurn } from "node:timers/promises";
import { afterEach, beforeEach, expect, it } from "vitest";
import { type JailHost, jailRoot } from "./place.ts";
import { Uids, writeDescription } from "./uids.ts";

let dir: string;
let host: JailHost;
beforeEach(async () => {
  dir = await mkdtemp(path.join(tmpdir(), "mitos-uids-"));
  const layout = { machines: path.join(dir, "m"), jails: path.join(dir, "jails"), cgroupParent: "mitos-0" };
  host = { layout, firecracker: { path: "/opt/firecracker" } };
});
afterEach(() => rm(dir, { recursive: true }));

const [one, two, three] = ["000000000001", "000000000002", "000000000003"] as const;

async function machine(keeperId: string): Promise<string> {
  const folder = path.join(host.layout.machines, keeperId);
  await mkdir(folder, { recursive: true });
  return folder;
}

it("gives each its own, and none that a machine of an earlier server has", async () => {
  await writeDescription(await machine(one), { jail: { uid: 64_000, gid: 64_000 } });
  await writeDescription(await machine(two), { jail: null });
  const uids = new Uids(host);
  const first = await uids.take();
  expect([first.uid, (await uids.take()).uid]).toEqual([64_001, 64_002]);
  first[Symbol.dispose]();
  expect((await uids.take()).uid).toBe(64_001);
});

it("writes descriptions that are whole when they are there", async () => {
  const folder = await machine(one);
  const description = { jail: { uid: 64_000, gid: 64_000 }, rootKey: "x".repeat(5_000_000) };
  let isWritten = false;
  const written = writeDescription(folder, description).finally(() => {
    isWritten = true;
  });
  while (!isWritten) {
    await nextTurn();
    const file = path.join(folder, "vmm.json");
    if (existsSync(file)) expect(readFileSync(file, "utf8")).toBe(JSON.stringify(description));
  }
  await written;
  expect(await readdir(folder)).toEqual(["vmm.json"]);
});

/** Machines whose descriptions say nothing: cut off, not there, and no description. */
async function machinesWithoutDescription(): Promise<void> {
  await writeFile(path.join(await machine(one), "vmm.json"), '{"resources":{"vcpuC');
  await machine(two);
  await writeFile(path.join(await machine(three), "vmm.json"), "null");
}

it("starts machines beside one whose description is missing or damaged and that has no jail, in which nothing can run", async () => {
  await machinesWithoutDescription();
  expect((await new Uids(host).take()).uid).toBe(64_000);
});

it.runIf(process.getuid?.() === 0)(
  "gives nobody the user to whom the jail belongs of one whose description is missing or damaged",
  async () => {
    await machinesWithoutDescription();
    for (const [at, keeperId] of [one, two, three].entries()) {
      const root = jailRoot(host, keeperId);
      await mkdir(root, { recursive: true });
      await chown(root, 64_000 + at, 64_000 + at);
    }
    expect((await new Uids(host).take()).uid).toBe(64_003);
  },
);
