import { existsSync } from "node:fs";
import { readdir, readFile, readlink, stat } from "node:fs/promises";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { findGuest } from "../../packages/engine/src/drivers/host/parts.ts";
import { type Assets, findAssets } from "../../packages/engine/src/drivers/microvm/assets.ts";
import { memoryOverheadMiB } from "../../packages/engine/src/drivers/microvm/cgroup.ts";
import type { MicrovmMachine } from "../../packages/engine/src/drivers/microvm/machine.ts";
import { successionOf } from "../../packages/engine/src/drivers/microvm/spare.ts";
import { adopt, boot, end, newSpec, resources, run, type Sandbox, saved } from "../gvisor/sandbox.ts";
import { burstWhereKnown, CgroupOf } from "../support/cgroup.ts";
import { engineOptions } from "../support/engine-under-test.ts";
import { until } from "../support/until.ts";
import { DriverUnderTest } from "./driver.ts";

const isRoot = process.getuid?.() === 0;
let under: DriverUnderTest;
let assets: Assets;
/** One that boots, which may write to its memory file, and one that goes on from what it has saved, as almost all do. */
const sandboxes: Record<string, Sandbox> = {};

beforeAll(async () => {
  under = await DriverUnderTest.open();
  assets = await findAssets(await findGuest(undefined));
  const booted = await boot(under.driver);
  const options = { leaveRunning: true, durable: false };
  const state = await saved(booted, () => under.driver.snapshot(booted.machine, path.join(under.base, "state"), options));
  sandboxes.booted = booted;
  sandboxes.restored = await adopt(await under.driver.restore(state, newSpec()));
  // Both have used their disk and their link.
  for (const sandbox of Object.values(sandboxes)) await run(sandbox, "echo used > /root/used; sync");
}, 240_000);
afterAll(async () => {
  await end(...Object.values(sandboxes));
  await under?.[Symbol.asyncDispose]();
});

function machineOf(name: string): MicrovmMachine {
  return sandboxes[name]?.machine as MicrovmMachine;
}

const inProc = (name: string, ...below: string[]) => path.join("/proc", String(machineOf(name).vmm.pid), ...below);
const read = (name: string, ...below: string[]) => readFile(inProc(name, ...below), "utf8");

/** Of every thread: rights are theirs, not the process's. */
async function statusOfThreads(name: string): Promise<Record<string, string>[]> {
  const threads = await readdir(inProc(name, "task"));
  const texts = await Promise.all(threads.map((thread) => read(name, "task", thread, "status").catch(() => "")));
  return texts.filter(Boolean).map((text) =>
    Object.fromEntries(
      text.split("\n").map((line) => {
        const [key = "", value = ""] = line.split(/:\s*/, 2);
        return [key, value.trim()];
      }),
    ),
  );
}

describe.each(["booted", "restored"])("the monitor of a running sandbox (%s)", (name) => {
  it("is nobody of the host, and has no right that could be used or regained", async () => {
    const threads = await statusOfThreads(name);
    expect(threads.length).toBeGreaterThan(1);
    for (const status of threads) {
      const [uids = [], gids = []] = [status.Uid, status.Gid].map((ids) => ids?.split(/\s+/).map(Number));
      expect(new Set(uids).size).toBe(1);
      expect(new Set(gids).size).toBe(1);
      if (isRoot) {
        expect(uids[0]).toBeGreaterThanOrEqual(64_000);
        expect(uids[0]).toBeLessThan(65_000);
        expect(status.Groups).toBe("");
      } else expect(uids[0]).toBe(process.getuid?.());
      for (const set of ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]) expect([set, status[set]]).toEqual([set, "0".repeat(16)]);
      expect(status.NoNewPrivs).toBe("1");
      // A filter of system calls, QEMU's own (`-sandbox`).
      expect(status.Seccomp).toBe("2");
    }
  });

  it("is in namespaces of its own, and each machine in others", async () => {
    const other = name === "booted" ? "restored" : "booted";
    for (const kind of ["mnt", "pid", "net", "ipc", "uts", ...(isRoot ? [] : ["user"])]) {
      const own = await readlink(inProc(name, "ns", kind));
      expect(own).not.toBe(await readlink(`/proc/self/ns/${kind}`));
      expect(own).not.toBe(await readlink(inProc(other, "ns", kind)));
    }
    // The first of its namespace of processes: nothing else is to be seen there.
    const [status] = await statusOfThreads(name);
    expect(status?.NSpid?.split(/\s+/).at(-1)).toBe("1");
    const interfaces = (await read(name, "net", "dev")).match(/^\s*[^\s|]+:/gm)?.map((each) => each.trim());
    expect(interfaces).toEqual(["lo:"]);
  });

  it("sees its own programs, its processes and three devices of the host's files, and can write to 16 MiB of memory alone", async () => {
    const mounts = (await read(name, "mountinfo"))
      .trim()
      .split("\n")
      .map((line) => line.split(" "));
    const byPlace = Object.fromEntries(mounts.map(([, , , , place = "", options = ""]) => [place, options.split(",")]));
    const devices = ["/dev/null", "/dev/urandom", "/dev/zero", ...(engineOptions.accel === "kvm" ? ["/dev/kvm"] : [])];
    expect(Object.keys(byPlace).sort()).toEqual(["/", "/dev", "/proc", "/tmp", ...devices].sort());
    const root = mounts.find(([, , , , place]) => place === "/");
    expect(assets.vmm.root.endsWith(root?.[3] ?? "none")).toBe(true);
    for (const [place, wanted] of [
      ["/", ["ro", "nosuid", "nodev"]],
      ["/dev", ["ro", "nosuid", "noexec"]],
      ["/proc", ["nosuid", "nodev", "noexec"]],
      ["/tmp", ["rw", "nosuid", "nodev", "noexec"]],
    ] as const) {
      expect(byPlace[place]).toEqual(expect.arrayContaining([...wanted]));
    }
    expect(mounts.find(([, , , , place]) => place === "/tmp")?.at(-1)).toMatch(/size=16384k/);
    for (const host of ["etc/passwd", "work", under.base.slice(1), "root", "var/lib", "home"]) {
      expect([host, existsSync(inProc(name, "root", host))]).toEqual([host, false]);
    }
  });

  it("has no file open but its own", async () => {
    const { vmm } = machineOf(name);
    const { dir, shape, disk, uses } = vmm;
    // One that was forked has open what it goes on in after its next fork, and where it saves its devices then.
    if (name === "booted") await until("the next overlay is open", () => vmm.spare !== undefined);
    const succession = vmm.spare && successionOf(vmm, vmm.spare);
    const next = succession ? [succession.next, succession.deviceState] : [];
    const state = path.join(under.dataDir, "microvm");
    const chain = await readlink(path.join(state, "disks", `${disk}.below`));
    const writable = new Set<string>();
    const found = new Set<string>();
    for (const fd of await readdir(inProc(name, "fd"))) {
      const target = await readlink(inProc(name, "fd", fd));
      const [, flags = "0"] = /flags:\s+(\d+)/.exec(await read(name, "fdinfo", fd)) ?? [];
      const isWritable = (Number.parseInt(flags, 8) & 3) !== 0;
      found.add(target.replace(/:\[\d+\]$/, ""));
      if (target.startsWith("/") && isWritable) writable.add(target);
    }
    const disks = [...found].filter((file) => path.dirname(file) === path.join(state, "disks"));
    expect(disks).toContain(path.join(state, "disks", `${disk}.qcow2`));
    expect(disks).toContain(path.join(state, "disks", chain));
    const kernel = shape.boots ? [assets.kernel.path, assets.initramfs.path] : [];
    const others = [...found].filter((file) => !disks.includes(file) && !next.includes(file));
    const known = new Set([uses.base.path, uses.image.path, ...kernel, "/dev/null", "socket", "pipe"]);
    expect(others.filter((file) => !known.has(file) && !file.startsWith("anon_inode"))).toEqual([]);
    // Its log is a pipe to its shim: nothing that it says lands in a file of the host unbounded.
    expect([...writable].filter((file) => file !== "/dev/null").sort()).toEqual(
      [path.join(state, "disks", `${disk}.qcow2`), ...next, ...(shape.boots ? [uses.base.path] : [])].sort(),
    );
    expect([...found].filter((file) => file.startsWith(dir))).toEqual(next.slice(1));
    expect((await stat(uses.image.path)).mode & 0o222).toBe(0);
  });

  it("has no environment, no core files, and is in a cgroup of its own with limits where there is one", async () => {
    expect(await read(name, "environ")).toBe("");
    expect(await read(name, "limits")).toMatch(/^Max core file size\s+0\s+0\s/m);
    if (!isRoot) return;
    const { id, pid } = machineOf(name).vmm;
    const cgroup = await CgroupOf.process(pid, id);
    const bytes = (resources.memSizeMiB + memoryOverheadMiB) * 2 ** 20;
    expect(await cgroup.limit("memory", "memory.max", "memory.limit_in_bytes")).toBe(String(bytes));
    expect(Number(await cgroup.limit("pids", "pids.max"))).toBeLessThan(200);
    expect(await cgroup.limit("cpu", "cpu.max", "cpu.cfs_quota_us")).toMatch(/^100000\b/);
    expect(await cgroup.limit("cpu", "cpu.max.burst", "cpu.cfs_burst_us")).toBe(burstWhereKnown("100000"));
  });
});
