import { chmod, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { findAssets } from "./assets.ts";

let dir: string;
let guest: { path: string; hash: string };

const records = {
  vmm: { name: "vmm-1", program: "/usr/bin/qemu-system-x86_64", build: "QEMU 10.0.2" },
  kernel: { name: "kernel-1", release: "6.1.0-1-cloud-amd64", hash: "k", modulesHash: "m" },
  disk: { name: "disk-1.ext4", bytes: 1 << 30, hash: "d" },
  root: { name: "root-1.erofs", hash: "r" },
};

/** As set-up lays it, with contents that nothing here reads. */
beforeEach(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), "mitos-assets-"));
  const write = async (name: string, content = "", mode = 0o444) => {
    await mkdir(path.dirname(path.join(dir, name)), { recursive: true });
    await writeFile(path.join(dir, name), content);
    await chmod(path.join(dir, name), mode);
  };
  for (const [part, record] of Object.entries(records)) await write(`${part}.json`, JSON.stringify(record), 0o644);
  await write("vmm-1/usr/bin/qemu-system-x86_64", "", 0o555);
  await write("kernel-1/vmlinux");
  await write("kernel-1/modules/order", "one.ko\n");
  await write("kernel-1/modules/one.ko", "a module");
  await write("disk-1.ext4");
  await write("root-1.erofs");
  guest = { path: path.join(dir, "agent"), hash: "a" };
  await writeFile(guest.path, "the agent");
});
afterEach(() => rm(dir, { recursive: true }));

it("finds every part, and makes the initramfs for the agent", async () => {
  const found = await findAssets(guest, dir);
  expect(found).toMatchObject({
    vmm: { root: path.join(dir, "vmm-1"), program: "/usr/bin/qemu-system-x86_64", build: "QEMU 10.0.2" },
    kernel: { path: path.join(dir, "kernel-1/vmlinux"), release: "6.1.0-1-cloud-amd64", hash: "k" },
    emptyDisk: { path: path.join(dir, "disk-1.ext4"), bytes: 1 << 30, hash: "d" },
    hostRoot: { path: path.join(dir, "root-1.erofs"), hash: "r" },
  });
  expect(await findAssets(guest, dir)).toEqual(found);
});

it.each([
  ["vmm.json", /QEMU has not been set up/],
  ["kernel.json", /the kernel .* has not been set up/],
  ["disk.json", /the empty disk .* has not been set up/],
  ["root.json", /the root .* has not been set up/],
  ["vmm-1", /QEMU is not usable: ENOENT/],
  ["kernel-1/vmlinux", /the kernel .* is not usable: ENOENT/],
  ["kernel-1/modules", /the kernel .* is not usable: ENOENT/],
  ["disk-1.ext4", /the empty disk .* is not usable: ENOENT/],
  ["root-1.erofs", /the root .* is not usable: ENOENT/],
])("names what is missing and how to get it: %s", async (name, message) => {
  await rm(path.join(dir, name), { recursive: true });
  const refused = findAssets(guest, dir);
  await expect(refused).rejects.toThrow(message);
  await expect(refused).rejects.toMatchObject({ name: "MissingPart", remedy: expect.stringContaining("mitos setup microvm") });
});

it("does not take what set-up cannot have written", async () => {
  await writeFile(path.join(dir, "root.json"), "{");
  await expect(findAssets(guest, dir)).rejects.toMatchObject({ name: "MissingPart", message: expect.stringContaining("cannot be read") });
});
