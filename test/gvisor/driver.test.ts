import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chmodSync, chownSync, cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, realpathSync, rmSync, symlinkSync } from "node:fs";
import { copyFile, readFile, rename, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { createInterface } from "node:readline";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Driver, Snapshot } from "../../packages/engine/src/driver.ts";
import { findRunsc } from "../../packages/engine/src/drivers/gvisor/find.ts";
import { createGvisorDriver, probeGvisor } from "../../packages/engine/src/drivers/gvisor/index.ts";
import { memoryOverheadMiB } from "../../packages/engine/src/drivers/host/cgroup.ts";
import { defaultRuntimeDir } from "../../packages/engine/src/drivers/host/layout.ts";
import { findGuest } from "../../packages/engine/src/drivers/host/parts.ts";
import { burstWhereKnown, CgroupOf } from "../support/cgroup.ts";
import { until } from "../support/until.ts";
import { leftovers } from "./leftovers.ts";
import { lifeCycle } from "./life-cycle.ts";
import { adopt, boot, end, newSpec, run, saved, start } from "./sandbox.ts";

const log = { debug() {}, info() {}, warn() {}, error: console.error };
const keepRunning = { leaveRunning: true, durable: false };
const isRoot = process.getuid?.() === 0;
const base = mkdtempSync("/tmp/mitos-gvisor-test-");
chmodSync(base, 0o711);

const dataDir = path.join(base, "data");
mkdirSync(dataDir);
const runtimeDir = await defaultRuntimeDir(dataDir);
const probe = await probeGvisor({ dataDir, runtimeDir, log });
if (!probe.usable) {
  rmSync(base, { recursive: true }); // no hook runs when all tests are skipped
  if (process.env.MITOS_REQUIRE_GVISOR) throw new Error(`gVisor cannot run here: ${probe.detail}`);
  console.warn(`gVisor cannot run here, its driver is not tested: ${probe.detail}`);
}

afterAll(() => {
  for (const dir of [base, runtimeDir]) rmSync(dir, { recursive: true, force: true });
});

describe.runIf(probe.usable)("the gVisor driver", () => {
  let driver: Driver;

  beforeAll(async () => {
    driver = await createGvisorDriver({ dataDir, runtimeDir, log });
    await driver.sweep(new Set());
  });
  afterEach(async () => {
    expect(await leftovers(dataDir, runtimeDir)).toEqual([]);
  });
  afterAll(async () => {
    await driver.sweep(new Set()); // what a failed test has left
    await driver.close();
  });

  it("remembers what its probe found until the host boots again", async () => {
    const begin = performance.now();
    expect(await probeGvisor({ dataDir, runtimeDir, log })).toEqual(probe);
    expect(performance.now() - begin).toBeLessThan(400);
  });

  it("boots, saves and restores machines with a listening server and a file, and leaves nothing behind", async () => {
    await lifeCycle(path.join(base, "life"));
  });

  it("does the same for a user without any rights", async ({ skip }) => {
    skip(!isRoot, "only root can become another user; the test before this one did it without rights");
    const copy = await copyForNobody();
    const { status, stdout, stderr } = spawnSync(
      copy.node,
      [path.join(copy.dir, "test/gvisor/life-cycle.ts"), path.join(copy.dir, "data")],
      {
        uid: 65_534,
        gid: 65_534,
        cwd: "/",
        encoding: "utf8",
        timeout: 90_000,
        env: { PATH: "/usr/bin:/bin", HOME: copy.dir, MITOS_RUNSC: copy.runsc, MITOS_GUEST: copy.guest },
      },
    );
    expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: "", stderr: "" });
  });

  describe("a snapshot and the host's files", () => {
    // Machines see the host's /usr, so a file that is replaced must lie there, which takes root; its name is nobody else's. For other
    // users the snapshot is told that the file was another one.
    const used = isRoot ? `/usr/local/share/mitos-test-${process.pid}` : "/usr/lib/os-release";
    beforeEach(async () => {
      if (isRoot) await writeFile(used, "first");
    });
    afterEach(async () => {
      if (isRoot) await rm(used, { force: true });
    });

    it("cannot be restored when a file that a program has open was replaced or removed, and the file is named", async () => {
      const parent = await boot(driver);
      await start(parent, `exec python3 -c 'import time; f = open("${used}"); open("/tmp/opened", "w"); time.sleep(1000)'`);
      await run(parent, "until [ -e /tmp/opened ]; do sleep 0.02; done");
      const snapshot = await saved(parent, () => driver.snapshot(parent.machine, path.join(base, "used"), keepRunning));
      await end(parent);
      await driver.checkSnapshot(snapshot);
      const { hostFiles } = snapshot.requirements;
      for (const file of [used, "/usr/bin/python3"]) expect(hostFiles[realpathSync(file)]).toMatch(/^\d+:\d+:\d+$/);
      expect(Object.keys(hostFiles).some((file) => /libc[.-]/.test(file))).toBe(true);

      let replaced = snapshot;
      if (isRoot) {
        await writeFile(`${used}.new`, "other");
        await rename(`${used}.new`, used);
      } else {
        replaced = withHostFiles(snapshot, { ...hostFiles, [used]: "5:1:1" });
      }
      await expect(driver.restore(replaced, newSpec())).rejects.toMatchObject({
        code: "snapshot_incompatible",
        detail: { cause: expect.stringContaining(`${used} on the host has changed`), remediation: expect.stringContaining(used) },
      });

      let removed = snapshot;
      if (isRoot) await rm(used);
      else removed = withHostFiles(snapshot, { ...hostFiles, [`${used}.gone`]: "5:1:1" });
      await expect(driver.checkSnapshot(removed)).rejects.toMatchObject({
        code: "snapshot_incompatible",
        detail: { cause: expect.stringMatching(/on the host is gone/) },
      });
      await rm(snapshot.dir, { recursive: true });
    });

    it("is restored when a file is gone that programs have only used in the past", async () => {
      const parent = await boot(driver);
      await run(parent, `cat ${used}`);
      const snapshot = await saved(parent, () => driver.snapshot(parent.machine, path.join(base, "past"), keepRunning));
      await end(parent);
      expect(snapshot.requirements.hostFiles).not.toHaveProperty([used]);
      if (isRoot) await rm(used);
      await end(await adopt(await driver.restore(snapshot, newSpec())));
      await rm(snapshot.dir, { recursive: true });
    });
  });

  it.each([
    ["another build of runsc", { engineBuild: "runsc 0.0~19990101.0" }],
    ["another agent", { agentHash: "0".repeat(64) }],
    ["another version of the link", { protocolVersion: 999 }],
    ["another processor", { cpu: "x64 abacus" }],
  ])("refuses a snapshot of %s", async (_what, changed) => {
    const parent = await boot(driver);
    const snapshot = await saved(parent, () => driver.snapshot(parent.machine, path.join(base, "other"), keepRunning));
    await end(parent);
    const other = { ...snapshot, requirements: { ...snapshot.requirements, ...changed } };
    await expect(driver.restore(other, newSpec())).rejects.toMatchObject({ code: "snapshot_incompatible" });
    await rm(snapshot.dir, { recursive: true });
  });

  it("ends a machine that uses more memory than its limit, and says so", async () => {
    const sandbox = await boot(driver, { memSizeMiB: 128 });
    await start(sandbox, "exec python3 -c 'x = bytearray(400 << 20); import time; time.sleep(1000)'");
    expect(await sandbox.machine.exited).toMatchObject({ reason: "oom_killed", detail: expect.stringContaining("128 MiB") });
  });

  it("lets programs use all the memory that was promised", async () => {
    const sandbox = await boot(driver, { memSizeMiB: 128 });
    expect(await run(sandbox, "python3 -c 'x = bytearray(100 << 20); print(len(x))'")).toBe(String(100 << 20));
    await end(sandbox);
  });

  it("notices within a second that the host process of a machine was killed", async () => {
    const sandbox = await boot(driver);
    const pid = await sentryOf(sandbox.machine.machineId);
    const begin = performance.now();
    process.kill(pid, "SIGKILL");
    expect(await sandbox.machine.exited).toMatchObject({ reason: "killed" });
    expect(performance.now() - begin).toBeLessThan(1_000);
  });

  it("ends a machine at its deadline", async () => {
    const sandbox = await boot(driver);
    await sandbox.machine.setDeadline(Date.now() + 300);
    expect(await sandbox.machine.exited).toMatchObject({ reason: "deadline" });
  });

  it("uses no processor while it is frozen, and goes on after", async () => {
    const sandbox = await boot(driver);
    await start(sandbox, "while sleep 0.01; do :; done");
    await until("it is busy", async () => (await cpuOver(sandbox, 300)) > 20);
    await sandbox.machine.freeze();
    // Longer than gVisor waits for a program that computes.
    expect(await cpuOver(sandbox, 6_000)).toBe(0);
    await sandbox.machine.thaw();
    expect(await run(sandbox, "echo here")).toBe("here");
    await end(sandbox);
  });

  it("is not frozen while a program in it computes, and runs on", async () => {
    const sandbox = await boot(driver);
    await start(sandbox, "while :; do :; done");
    await until("the loop is busy", async () => (await cpuOver(sandbox, 300)) > 100);
    await expect(sandbox.machine.freeze()).rejects.toMatchObject({ code: "unavailable" });
    expect(await run(sandbox, "echo here")).toBe("here");
    await end(sandbox);
  });

  it("saves a frozen machine, which stays frozen", async () => {
    const sandbox = await boot(driver);
    await saved(sandbox, async () => {
      await sandbox.machine.freeze();
      const snapshot = await driver.snapshot(sandbox.machine, path.join(base, "frozen"), keepRunning);
      await end(await adopt(await driver.restore(snapshot, newSpec())));
      await rm(snapshot.dir, { recursive: true });
      await sandbox.machine.thaw();
    });
    expect(await run(sandbox, "echo here")).toBe("here");
    await end(sandbox);
  });

  it("has a frozen machine awake for the next server", async () => {
    const first = await createGvisorDriver({ dataDir, runtimeDir, log });
    const sandbox = await boot(first);
    await sandbox.machine.freeze();
    await first.close();
    const second = await createGvisorDriver({ dataDir, runtimeDir, log });
    const found = await second.reattach(sandbox.machine.machineId);
    if (!("transport" in found)) throw new Error(`it ended: ${found.detail}`);
    const again = await adopt(found);
    expect(await run(again, "echo here")).toBe("here");
    await end(again);
    await second.close();
  });

  it("gives a machine to the next server, with the processes in it", async () => {
    const first = await createGvisorDriver({ dataDir, runtimeDir, log });
    const sandbox = await boot(first);
    await run(sandbox, "echo kept > /tmp/kept");
    await first.close();

    const second = await createGvisorDriver({ dataDir, runtimeDir, log });
    await second.sweep(new Set([sandbox.machine.machineId]));
    const found = await second.reattach(sandbox.machine.machineId);
    if (!("transport" in found)) throw new Error(`it ended: ${found.detail}`);
    const again = await adopt(found);
    expect(await run(again, "cat /tmp/kept")).toBe("kept");
    await end(again);
    expect(await second.reattach(sandbox.machine.machineId)).toMatchObject({ reason: "lost" });
    await second.close();
  });

  it("tells the next server how a machine ended in between", async () => {
    const first = await createGvisorDriver({ dataDir, runtimeDir, log });
    const sandbox = await boot(first);
    const { machineId } = sandbox.machine;
    const pid = await sentryOf(machineId);
    await first.close();
    process.kill(pid, "SIGKILL");
    await until("its shim has ended", () => existsSync(path.join(realpathSync(path.join(runtimeDir, "ids", machineId)), "exit.json")));
    const second = await createGvisorDriver({ dataDir, runtimeDir, log });
    expect(await second.reattach(machineId)).toMatchObject({ reason: "killed" });
    await second.close();
  });

  it("survives the death of its server: the machine lives, and ready containers go with the server", async () => {
    const server = spawn(process.execPath, [path.join(import.meta.dirname, "server.ts"), dataDir], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    try {
      const [line] = (await once(createInterface(server.stdout), "line")) as [string];
      const shims = async () => (await leftovers(dataDir, runtimeDir)).filter((found) => found.includes(" shim ")).length;
      await until("a container is ready beside the machine", async () => (await shims()) === 2);
      server.kill("SIGKILL");
      await until("the ready container has gone", async () => (await shims()) === 1);

      const next = await createGvisorDriver({ dataDir, runtimeDir, log });
      await next.sweep(new Set([line]));
      const found = await next.reattach(line);
      if (!("transport" in found)) throw new Error(`it ended: ${found.detail}`);
      const sandbox = await adopt(found);
      expect(await run(sandbox, "cat /tmp/kept")).toBe("kept");
      await end(sandbox);
      await next.close();
    } finally {
      server.kill("SIGKILL");
    }
  });

  it("sweeps away a machine whose shim was killed, and keeps what it is told to keep", async () => {
    const first = await createGvisorDriver({ dataDir, runtimeDir, log });
    const kept = await boot(first);
    const lost = await boot(first);
    const shim = Number(await readFile(path.join(runtimeDir, "ids", lost.machine.machineId, "shim.pid"), "utf8"));
    await first.close();
    process.kill(shim, "SIGKILL"); // and nobody is left to clean up after its machine

    const second = await createGvisorDriver({ dataDir, runtimeDir, log });
    await second.sweep(new Set([kept.machine.machineId]));
    expect(existsSync(path.join(runtimeDir, "ids", lost.machine.machineId))).toBe(false);
    const found = await second.reattach(kept.machine.machineId);
    expect("transport" in found).toBe(true);
    await second.sweep(new Set());
    await second.close();
  });

  it("notices that the shim of a machine was killed, and leaves nothing", async () => {
    const sandbox = await boot(driver);
    process.kill(Number(await readFile(path.join(runtimeDir, "ids", sandbox.machine.machineId, "shim.pid"), "utf8")), "SIGKILL");
    expect(await sandbox.machine.exited).toMatchObject({ reason: "lost" });
  });

  it("leaves nothing when a start fails", async () => {
    const parent = await boot(driver);
    const snapshot = await saved(parent, () => driver.snapshot(parent.machine, path.join(base, "broken"), keepRunning));
    await end(parent);
    await writeFile(path.join(snapshot.dir, "pages.img"), "nonsense");
    await expect(driver.restore(snapshot, newSpec())).rejects.toMatchObject({
      code: "snapshot_incompatible",
      detail: { cause: expect.stringMatching(/pages\.img: it has 8 bytes instead of \d+/) },
    });
    // One whose damage nobody could see.
    await expect(driver.restore({ ...snapshot, files: {} }, newSpec())).rejects.toMatchObject({ code: "internal" });
    await rm(snapshot.dir, { recursive: true });
  });

  it("says what runsc said when a container cannot be created", async () => {
    const folder = path.join(base, "odd");
    mkdirSync(folder);
    const oddRuntimeDir = await defaultRuntimeDir(folder);
    const odd = await createGvisorDriver({ dataDir: folder, runtimeDir: oddRuntimeDir, log });
    for (const name of readdirSync(path.join(folder, "gvisor"))) rmSync(path.join(folder, "gvisor", name), { recursive: true });
    await expect(odd.boot(newSpec())).rejects.toMatchObject({
      code: "internal",
      detail: { cause: expect.stringMatching(/creating container: /) },
    });
    await odd.close();
    expect(await leftovers(folder, oddRuntimeDir)).toEqual([]);
    expect(existsSync(oddRuntimeDir)).toBe(false);
  });

  it("boots the smallest machine that may be asked for", async () => {
    const sandbox = await boot(driver, { memSizeMiB: 64, processesMax: 16 });
    expect(await run(sandbox, "python3 -c 'print(len(bytearray(32 << 20)))'")).toBe(String(32 << 20));
    await end(sandbox);
  });

  it("refuses a machine id that is in use", async () => {
    const sandbox = await boot(driver);
    await expect(driver.boot({ ...newSpec(), machineId: sandbox.machine.machineId })).rejects.toMatchObject({ code: "conflict" });
    expect(await run(sandbox, "echo here")).toBe("here");
    await end(sandbox);
  });

  it.runIf(isRoot)(
    "has the limits of its resources in a cgroup of its own, of which it may save up one period of processor time",
    async () => {
      const sandbox = await boot(driver, { memSizeMiB: 128, vcpuCount: 2 });
      const keeperId = path.basename(realpathSync(path.join(runtimeDir, "ids", sandbox.machine.machineId)));
      const cgroup = await CgroupOf.process(await sentryOf(sandbox.machine.machineId), keeperId);
      const limits = {
        memory: Number(await cgroup.limit("memory", "memory.max", "memory.limit_in_bytes")),
        cpu: await cgroup.limit("cpu", "cpu.max", "cpu.cfs_quota_us"),
        burst: await cgroup.limit("cpu", "cpu.max.burst", "cpu.cfs_burst_us"),
      };
      expect(limits).toEqual({
        memory: (128 + memoryOverheadMiB) * 2 ** 20,
        cpu: expect.stringMatching(/^200000\b/),
        burst: burstWhereKnown("200000"),
      });
      await end(sandbox);
    },
  );

  it("keeps the host's files out of sight and out of reach", async () => {
    const sandbox = await boot(driver);
    expect(await run(sandbox, "ls -A /root /home /var/lib 2>/dev/null | grep -v : || true")).toBe("");
    expect(await run(sandbox, "cat /etc/shadow /etc/ssl/private/* 2>/dev/null | wc -c")).toBe("0");
    expect(await run(sandbox, "ls /sys/class/net 2>/dev/null | tr '\\n' ' '; cat /proc/net/dev | grep -c : ")).toMatch(/1$/);
    expect(await run(sandbox, "rm -rf /usr/share/common-licenses && ls /usr/share/common-licenses 2>&1 | wc -l")).toBe("1");
    expect(existsSync("/usr/share/common-licenses/GPL-3")).toBe(true);
    await end(sandbox);
  });

  it("runs python and node", async () => {
    const sandbox = await boot(driver);
    expect(await run(sandbox, "python -c 'print(6 * 7)'")).toBe("42");
    expect(await run(sandbox, "node -p '6 * 7'")).toBe("42");
    await end(sandbox);
  });

  async function sentryOf(machineId: string): Promise<number> {
    return Number(await readFile(path.join(runtimeDir, "ids", machineId, "sentry.pid"), "utf8"));
  }

  async function cpuOver({ machine }: { machine: { meter(): Promise<{ cpuMs: number }> } }, ms: number): Promise<number> {
    const before = await machine.meter();
    await new Promise((resolve) => setTimeout(resolve, ms));
    return (await machine.meter()).cpuMs - before.cpuMs;
  }
});

function withHostFiles(snapshot: Snapshot, hostFiles: Snapshot["requirements"]["hostFiles"]): Snapshot {
  return { ...snapshot, requirements: { ...snapshot.requirements, hostFiles } };
}

/** All that the test needs, readable for everybody wherever the repository lies. */
async function copyForNobody(): Promise<{ dir: string; node: string; runsc: string; guest: string }> {
  const repository = path.resolve(import.meta.dirname, "../..");
  const dir = path.join(base, "nobody");
  mkdirSync(dir);
  const skip = (source: string) => !source.includes("node_modules");
  for (const part of ["packages/engine", "packages/protocol", "test/gvisor"]) {
    cpSync(path.join(repository, part), path.join(dir, part), { recursive: true, filter: skip });
  }
  for (const dependency of ["@bufbuild/protobuf", "@opentelemetry/api"]) {
    cpSync(path.join(repository, "node_modules", dependency), path.join(dir, "node_modules", dependency), { recursive: true });
  }
  mkdirSync(path.join(dir, "node_modules/@mitos"));
  symlinkSync("../../packages/protocol", path.join(dir, "node_modules/@mitos/protocol"));
  symlinkSync("../../packages/engine", path.join(dir, "node_modules/@mitos/engine"));
  const programs = { node: process.execPath, runsc: (await findRunsc(undefined)).path, guest: (await findGuest(undefined)).path };
  for (const [name, source] of Object.entries(programs)) {
    await copyFile(source, path.join(dir, name));
    chmodSync(path.join(dir, name), 0o755);
  }
  execFileSync("chmod", ["-R", "a+rX", dir]);
  chownSync(dir, 65_534, 65_534);
  return { dir, node: path.join(dir, "node"), runsc: path.join(dir, "runsc"), guest: path.join(dir, "guest") };
}
