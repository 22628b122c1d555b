import { execFileSync } from "node:child_process";
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { Driver, Snapshot } from "../../packages/engine/src/driver.ts";
import { defaultRuntimeDir } from "../../packages/engine/src/drivers/host/layout.ts";
import { createMicrovmDriver } from "../../packages/engine/src/drivers/microvm/index.ts";
import { MicrovmMachine } from "../../packages/engine/src/drivers/microvm/machine.ts";
import { runSteps, saysNoAnswer } from "../../packages/engine/src/drivers/microvm/vmm.ts";
import { leftovers } from "../gvisor/leftovers.ts";
import { adopt, boot, end, newSpec, run, type Sandbox, saved, start } from "../gvisor/sandbox.ts";
import { vmmOf } from "./driver.ts";

const log = { debug() {}, info() {}, warn() {}, error: console.error };
const keepRunning = { leaveRunning: true, durable: false };
const base = mkdtempSync("/tmp/mitos-microvm-test-");
chmodSync(base, 0o711);
const dataDir = path.join(base, "data");
mkdirSync(dataDir);
const runtimeDir = await defaultRuntimeDir(dataDir);

let driver: Driver;
let template: Snapshot;
let snapshots = 0;

beforeAll(async () => {
  driver = await createMicrovmDriver({ dataDir, runtimeDir, log, accel: "tcg" });
  const booted = await boot(driver);
  const quiet = await booted.guest.quiesce();
  template = await driver.snapshot(booted.machine, newFolder(), { leaveRunning: false, durable: false });
  await quiet.resume().catch(() => undefined);
}, 240_000);
afterEach(async () => {
  expect(await leftovers(dataDir, runtimeDir)).toEqual([]);
});
afterAll(async () => {
  await driver.sweep(new Set()); // what a failed test has left
  await driver.close();
  for (const dir of [base, runtimeDir]) rmSync(dir, { recursive: true, force: true });
});

function newFolder(): string {
  snapshots += 1;
  return path.join(base, `snapshot-${snapshots}`);
}

const restored = async (from = template): Promise<Sandbox> => adopt(await driver.restore(from, newSpec()));
const fork = (parent: Sandbox) => saved(parent, () => driver.snapshot(parent.machine, newFolder(), keepRunning));

/** Lets go of a machine as a server does that dies, and opens the next one. */
async function afterServerDied(parent: Sandbox, work: (next: Driver, found: Sandbox) => Promise<void>): Promise<void> {
  if (!(parent.machine instanceof MicrovmMachine)) throw new Error("not a virtual machine");
  parent.machine.release();
  const next = await createMicrovmDriver({ dataDir, runtimeDir, log, accel: "tcg" });
  const found = await next.reattach(parent.machine.machineId);
  if (!("transport" in found)) throw new Error(`it ended: ${found.detail}`);
  await work(next, await adopt(found));
  await next.close();
}

describe("a virtual machine that ends by itself", () => {
  it("is told as killed when its monitor is, and its neighbour goes on", async () => {
    const [killed, neighbour] = [await restored(), await restored()];
    process.kill(vmmOf(killed).pid, "SIGKILL");
    expect(await killed.machine.exited).toMatchObject({ reason: "killed" });
    expect(await run(neighbour, "echo still here")).toBe("still here");
    await end(neighbour);
  });

  it("is told as out of memory when programs want more than it has", async () => {
    const hungry = await restored();
    await start(hungry, "exec python3 -c 'held = []\nwhile True: held.append(b\"x\" * (1 << 20))'");
    expect(await hungry.machine.exited).toMatchObject({ reason: "oom_killed" });
  });
});

describe("a snapshot", () => {
  it("of another QEMU is refused", async () => {
    const other = { ...template, requirements: { ...template.requirements, engineBuild: "QEMU 1.0" } };
    await expect(driver.checkSnapshot(other)).rejects.toMatchObject({ code: "snapshot_incompatible" });
    await expect(driver.restore(other, newSpec())).rejects.toMatchObject({ code: "snapshot_incompatible" });
  });

  it("whose memory was changed or is gone is refused, and machines that run on it go on", async () => {
    const neighbour = await restored();
    const bases = path.join(realpathSync(dataDir), "microvm/bases");
    const { path: memory, id } = vmmOf(neighbour).uses.base;
    const seal = path.join(bases, `${id}.seal`);
    const { bytes } = JSON.parse(readFileSync(seal, "utf8")) as { bytes: number };
    const refused = (cause: string) =>
      expect(driver.checkSnapshot(template)).rejects.toMatchObject({
        code: "snapshot_incompatible",
        detail: { cause: expect.stringContaining(cause) },
      });
    chmodSync(memory, 0o600);
    for (const length of [bytes + 4096, bytes]) {
      truncateSync(memory, length);
      await refused("was changed");
    }
    chmodSync(memory, 0o444);
    renameSync(memory, `${memory}.away`);
    await refused("is gone");
    expect(await run(neighbour, "echo still here")).toBe("still here");
    // Nothing in it has changed: later tests go on from it.
    renameSync(`${memory}.away`, memory);
    writeFileSync(seal, JSON.stringify({ bytes, mtimeNs: String(statSync(memory, { bigint: true }).mtimeNs) }));
    await driver.checkSnapshot(template);
    await end(neighbour);
  });
});

describe("a fork that fails half-way", () => {
  it("leaves its parent on the disk that it writes to, for the next fork", async ({ skip }) => {
    skip(process.getuid?.() !== 0, "only root can mount a small disk");
    const parent = await restored();
    await run(parent, "echo before > /root/kept");
    const { disk } = vmmOf(parent);
    const small = path.join(base, "small");
    mkdirSync(small);
    // Room for the devices, not for what it has changed in memory: its disk is frozen by then.
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", small]);
    try {
      const failed = saved(parent, () => driver.snapshot(parent.machine, path.join(small, "fork"), keepRunning));
      await expect(failed).rejects.toMatchObject({ code: "quota_exceeded", detail: { context: { dimension: "disk" } } });
      expect(readdirSync(small)).toEqual([]);
    } finally {
      execFileSync("umount", [small]);
    }
    expect(vmmOf(parent).disk).not.toBe(disk);
    await run(parent, "echo after >> /root/kept");
    await driver.collectRoots({ roots: [{ kind: "host" }], snapshots: [template] });
    const child = await restored(await fork(parent));
    expect(await run(child, "cat /root/kept")).toBe("before\nafter");
    await end(parent, child);
  });

  it("is found by the next server, though nobody has written it down", async () => {
    const parent = await restored();
    const { dir } = vmmOf(parent);
    const record = readFileSync(path.join(dir, "machine.json"));
    await fork(parent);
    const top = vmmOf(parent).disk;
    await run(parent, "echo kept > /root/kept");
    writeFileSync(path.join(dir, "machine.json"), record);
    await afterServerDied(parent, async (next, found) => {
      expect(vmmOf(found).disk).toBe(top);
      const snapshot = await saved(found, () => next.snapshot(found.machine, newFolder(), keepRunning));
      const child = await adopt(await next.restore(snapshot, newSpec()));
      expect(await run(child, "cat /root/kept")).toBe("kept");
      await end(found, child);
    });
  });
});

it("knows a machine that does not answer in time from one that fails", async () => {
  const sandbox = await restored();
  const vmm = vmmOf(sandbox);
  const never = { await: { event: "NEVER", field: "status", values: ["never"], failures: [] } };
  const late = await runSteps(vmm, "wait", [never], 100).catch((error: unknown) => error);
  const wrong = await runSteps(vmm, "fail", [{ execute: "no-such-command" }], 5_000).catch((error: unknown) => error);
  expect([saysNoAnswer(late), saysNoAnswer(wrong)]).toEqual([true, false]);
  await end(sandbox);
});

it("ends a machine at its deadline", async () => {
  const sandbox = await restored();
  await sandbox.machine.setDeadline(Date.now() + 500);
  expect(await sandbox.machine.exited).toMatchObject({ reason: "deadline" });
});
