import { readdir, readFile, readlink } from "node:fs/promises";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Machine, Snapshot } from "../../packages/engine/src/driver.ts";
import { chainLengthMax, collapseAbove } from "../../packages/engine/src/drivers/microvm/disks.ts";
import { MicrovmMachine } from "../../packages/engine/src/drivers/microvm/machine.ts";
import { runSteps } from "../../packages/engine/src/drivers/microvm/vmm.ts";
import { execute } from "../../packages/engine/src/drivers/microvm/vmm-steps.ts";
import { adopt, boot, end, newSpec, run, type Sandbox, saved } from "../gvisor/sandbox.ts";
import { until } from "../support/until.ts";
import { DriverUnderTest } from "./driver.ts";

let under: DriverUnderTest;
let parent: Sandbox;
let forks = 0;
let files = 0;

beforeAll(async () => {
  under = await DriverUnderTest.open();
  const booted = await boot(under.driver);
  const template = await saved(booted, () => snapshot(booted.machine, false));
  parent = await adopt(await under.driver.restore(template, newSpec()));
}, 240_000);
afterAll(async () => {
  if (parent) await end(parent);
  await under?.[Symbol.asyncDispose]();
});

function snapshot(machine: Machine, leaveRunning: boolean): Promise<Snapshot> {
  forks += 1;
  return under.driver.snapshot(machine, path.join(under.base, `snapshot-${forks}`), { leaveRunning, durable: false });
}

const fork = () => saved(parent, () => snapshot(parent.machine, true));

async function write(mib: number): Promise<void> {
  files += 1;
  const name = `/root/part-${files}`;
  await run(parent, `head -c ${mib}M /dev/urandom > ${name} && sha256sum ${name} >> /root/sums; sync`);
}

/** How many files there are, each as it was written: read from the disk, whatever the machine's memory has of it. */
const intact = `while read -r sum file; do
  found=$(dd if=$file iflag=direct bs=1M status=none | sha256sum | cut -d " " -f 1); test "$found" = "$sum" || { echo "$file is another"; exit 1; }
done < /root/sums; wc -l < /root/sums`;

const machineOf = (sandbox: Sandbox) => sandbox.machine as MicrovmMachine;

/**
 * Files of the disk that the monitor has open, the empty one among them, without the one that it has open for its next fork. Right after a fork it
 * has one open twice.
 */
function openFiles(sandbox: Sandbox): Promise<string[]> {
  const machine = machineOf(sandbox);
  return machine.exclusively(async () => {
    const dir = `/proc/${machine.vmm.pid}/fd`;
    const targets = await Promise.all((await readdir(dir)).map((fd) => readlink(path.join(dir, fd)).catch(() => "")));
    const disks = path.join(under.dataDir, "microvm/disks");
    return [...new Set(targets)].filter((target) => path.dirname(target) === disks && target !== machine.vmm.spare?.path);
  });
}

const collapsing = (sandbox: Sandbox) => machineOf(sandbox).collapse !== undefined;
const hasSpare = () => until("the next overlay is open", () => machineOf(parent).vmm.spare !== undefined);

/** So that it does not end before the test goes on, however busy the host is. A fork has asked for the collapse before it has returned. */
async function slowCollapseDown(sandbox: Sandbox): Promise<void> {
  const slow = execute("block-job-set-speed", { device: "collapse", speed: 2 ** 20 });
  const machine = machineOf(sandbox);
  await machine.exclusively(() => runSteps(machine.vmm, "slow a collapse down", [slow], 20_000));
}

async function childIsIntact(state: Snapshot): Promise<void> {
  const child = await adopt(await under.driver.restore(state, newSpec()));
  expect(await run(child, intact)).toBe(String(files));
  await end(child);
}

/** Whether at the last fork or at one before it, which depends on how fast the host is. */
const isShort = () => until("the chain is short", async () => (await openFiles(parent)).length <= collapseAbove, 90_000);

describe("a machine that has been forked", () => {
  it("has open what it goes on in when it is forked again", async () => {
    await fork();
    await hasSpare();
    const { vmm } = machineOf(parent);
    const { id } = vmm.spare as { id: string };
    await write(1);
    const state = await fork();
    expect(vmm.disk).toBe(id);
    await childIsIntact(state);
    await write(1);
    expect(await run(parent, intact)).toBe(String(files));
    await childIsIntact(await fork());
  });
});

describe("the chain of a machine that is forked again and again", () => {
  it("is made short beside it, and what it has written stays", async () => {
    for (let turn = 0; turn < 12; turn += 1) {
      await write(2);
      await fork();
    }
    await isShort();
    await until("the collapse is settled", () => !collapsing(parent));
    expect(await run(parent, intact)).toBe(String(files));
    await childIsIntact(await fork());
    const { dir, disk } = machineOf(parent).vmm;
    expect(JSON.parse(await readFile(path.join(dir, "machine.json"), "utf8"))).toMatchObject({ disk });
  });

  it("is whole in a child of a fork in the middle of a collapse, and in its parent", async () => {
    await write(64);
    while ((await openFiles(parent)).length <= collapseAbove) await fork();
    await slowCollapseDown(parent);
    const before = (await openFiles(parent)).length;
    const state = await fork();
    expect((await openFiles(parent)).length).toBe(before + 1);
    await childIsIntact(state);
    expect(await run(parent, intact)).toBe(String(files));
    await isShort();
    expect(await run(parent, intact)).toBe(String(files));
  });

  it("is settled by a server that finds the machine in the middle of a collapse", async () => {
    while ((await openFiles(parent)).length <= collapseAbove) await fork();
    await slowCollapseDown(parent);
    await hasSpare();
    const { spare } = machineOf(parent).vmm;
    await under.restart();
    const found = await under.driver.reattach(parent.machine.machineId);
    expect(found).toBeInstanceOf(MicrovmMachine);
    parent = await adopt(found as MicrovmMachine);
    const open = await openFiles(parent);
    expect(open.length).toBeGreaterThan(collapseAbove);
    expect(open).not.toContain(spare?.path);
    expect(await run(parent, intact)).toBe(String(files));
    await childIsIntact(await fork());
    await isShort();
  });

  it("is waited for when it has become too long", async () => {
    let length = (await openFiles(parent)).length;
    while (length < chainLengthMax) {
      await snapshot(parent.machine, true);
      length += 1;
      expect((await openFiles(parent)).length).toBe(length);
      if (length > collapseAbove) await slowCollapseDown(parent);
    }
    await snapshot(parent.machine, true);
    expect((await openFiles(parent)).length).toBe(3);
    expect(await run(parent, intact)).toBe(String(files));
    await childIsIntact(await fork());
  });
});
