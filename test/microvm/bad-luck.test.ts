import { execFileSync } from "node:child_process";
import {
  appendFileSync,
  copyFileSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { open } from "node:fs/promises";
import path from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { Snapshot } from "../../packages/engine/src/driver.ts";
import { findGuest } from "../../packages/engine/src/drivers/host/parts.ts";
import { processGone } from "../../packages/engine/src/drivers/host/processes.ts";
import { sealFiles } from "../../packages/engine/src/drivers/host/seal.ts";
import { readPid } from "../../packages/engine/src/drivers/host/shim.ts";
import { leftovers } from "../gvisor/leftovers.ts";
import { adopt, boot, end, newSpec, run, type Sandbox, saved } from "../gvisor/sandbox.ts";
import { mountLoopDisk } from "../support/loop-disk.ts";
import { until } from "../support/until.ts";
import { DriverUnderTest, vmmOf } from "./driver.ts";

let under: DriverUnderTest;
let template: Snapshot;
/** What the data directory holds while there is the template alone. */
let standing: string[];
let snapshots = 0;
let kept: string[] = [];

beforeAll(async () => {
  under = await DriverUnderTest.open();
  const booted = await boot(under.driver);
  template = await saved(booted, () => under.driver.snapshot(booted.machine, newFolder(), { leaveRunning: false, durable: false }));
  kept = [];
  standing = await dataOf(under, [template]);
}, 240_000);
afterEach(async () => {
  for (const dir of kept.splice(0)) rmSync(dir, { recursive: true, force: true });
  const left = await leftovers(under.dataDir, under.runtimeDir);
  // So that one test that fails is one test that fails.
  if (left.length > 0) await under.driver.sweep(new Set(), [template]);
  expect(left).toEqual([]);
  expect(await dataOf(under, [template])).toEqual(standing);
  expect(readdirSync(under.base).filter((name) => name.includes(".partial-"))).toEqual([]);
});
afterAll(() => under?.[Symbol.asyncDispose]());

/** All that is left of machines and of what they stand on, once what nobody needs has been collected. */
async function dataOf({ driver, dataDir }: DriverUnderTest, needed: readonly Snapshot[]): Promise<string[]> {
  await driver.collectRoots({ roots: [{ kind: "host" }], snapshots: needed });
  const dir = path.join(dataDir, "microvm");
  return readdirSync(dir, { recursive: true, encoding: "utf8" }).sort();
}

function newFolder(parent = under.base): string {
  snapshots += 1;
  const dir = path.join(parent, `snapshot-${snapshots}`);
  kept.push(dir);
  return dir;
}

const restored = async (from = template): Promise<Sandbox> => adopt(await under.driver.restore(from, newSpec()));
const save = (parent: Sandbox, leaveRunning: boolean) =>
  saved(parent, () => under.driver.snapshot(parent.machine, newFolder(), { leaveRunning, durable: true }));
const lives = async (sandbox: Sandbox) => expect(await run(sandbox, "echo still here")).toBe("still here");

describe("a kernel that panics", () => {
  it("since its agent was killed ends its machine, which says so, and its neighbour goes on", async () => {
    const [lost, neighbour] = [await boot(under.driver), await restored()];
    const log = path.join(vmmOf(lost).dir, "machine.log");
    const copy = newFolder();
    linkSync(log, copy);
    await breakAgent(vmmOf(lost).uses.base.path);
    await run(lost, "true").catch(() => undefined);
    const panic = /Kernel panic - not syncing: (Attempted to kill init!)/;
    expect(await lost.machine.exited).toMatchObject({
      reason: "exited",
      detail: expect.stringContaining("its kernel panicked: Attempted to"),
    });
    expect(readFileSync(copy, "latin1")).toMatch(panic);
    await lives(neighbour);
    await end(neighbour);
  });

  it("while it boots is an error that says so", async () => {
    // Room for the kernel, not for what it starts.
    await expect(under.driver.boot(newSpec({ memSizeMiB: 40 }))).rejects.toMatchObject({
      code: "internal",
      detail: { cause: expect.stringMatching(/^could not start a machine: (it ended by itself|its kernel panicked)/) },
    });
  });
});

/**
 * Puts an instruction that no processor has in the place of every one of the agent's, in the memory that its machine writes to: it is killed for
 * the next that it has not executed yet. A program of the machine could not do that.
 */
async function breakAgent(memory: string): Promise<void> {
  const pageBytes = 4096;
  const agent = readFileSync((await findGuest(undefined)).path);
  const own = new Set<string>();
  const undefinedInstructions = Buffer.alloc(pageBytes, Buffer.from([0x0f, 0x0b]));
  for (const { from, to } of codeOf(agent)) {
    for (let at = Math.ceil(from / pageBytes) * pageBytes; at + pageBytes <= to; at += pageBytes)
      own.add(agent.toString("latin1", at, at + pageBytes));
  }
  const held = readFileSync(memory);
  await using file = await open(memory, "r+");
  for (let at = 0; at < held.length; at += pageBytes) {
    if (own.has(held.toString("latin1", at, at + pageBytes))) await file.write(undefinedInstructions, 0, pageBytes, at);
  }
}

/** Where an ELF file's segments lie that are executed. */
function codeOf(elf: Buffer): { from: number; to: number }[] {
  const [load, executable] = [1, 1];
  const [headers, headerBytes, count] = [Number(elf.readBigUInt64LE(32)), elf.readUInt16LE(54), elf.readUInt16LE(56)];
  return Array.from({ length: count }, (_, index) => headers + index * headerBytes)
    .filter((at) => elf.readUInt32LE(at) === load && (elf.readUInt32LE(at + 4) & executable) !== 0)
    .map((at) => ({ from: Number(elf.readBigUInt64LE(at + 8)), to: Number(elf.readBigUInt64LE(at + 8) + elf.readBigUInt64LE(at + 32)) }));
}

describe("memory that is cut off under a machine", () => {
  it("kills it, and no other", async () => {
    const booted = await boot(under.driver);
    const neighbour = await restored();
    truncateSync(vmmOf(booted).uses.base.path, 0);
    expect(await booted.machine.exited).toMatchObject({ reason: "killed" });
    await lives(neighbour);
    await end(neighbour);
  });
});

describe("a state that does not fit", () => {
  const marker = Buffer.from("\x03mem");

  /** A snapshot whose seal holds, however its state was changed. */
  async function changed(from: Snapshot, change: (state: string) => void): Promise<Snapshot> {
    const dir = newFolder();
    mkdirSync(dir);
    for (const name of readdirSync(from.dir)) copyFileSync(path.join(from.dir, name), path.join(dir, name));
    change(path.join(dir, "state"));
    return { ...from, dir, ...(await sealFiles(dir, { durable: false })) };
  }

  function edit(state: string, change: (bytes: Buffer) => Buffer): void {
    writeFileSync(state, change(readFileSync(state)));
  }

  it("is refused as changed when it is another machine's, though both are of one template", async () => {
    const [one, two] = [await restored(), await restored()];
    const [mine, others] = [await save(one, true), await save(two, true)];
    copyFileSync(path.join(others.dir, "state"), path.join(mine.dir, "state"));
    const refused = { code: "snapshot_incompatible", detail: { context: { file: path.join(mine.dir, "state") } } };
    await expect(under.driver.checkSnapshot(mine)).rejects.toMatchObject(refused);
    for (const sandbox of [one, two]) await lives(sandbox);
    await end(one, two);
  });

  it.each<[string, (bytes: Buffer) => Buffer]>([
    ["is cut off in the middle of its pages", (bytes) => bytes.subarray(0, bytes.length >> 1)],
    ["has lost its devices", (bytes) => Buffer.concat([bytes.subarray(0, bytes.length - 4096), bytes.subarray(bytes.length - 8)])],
    [
      "says that its machine has more memory",
      (bytes) => {
        bytes.writeBigUInt64BE(2n ** 30n, bytes.indexOf(marker) + marker.length);
        return bytes;
      },
    ],
    [
      "has a page beyond its machine's memory",
      (bytes) => {
        // The first page names its block; the name stands a second time there.
        const at = bytes.indexOf(marker, bytes.indexOf(marker) + 1) - 8;
        bytes.writeBigUInt64BE((2n ** 40n) | 8n, at);
        return bytes;
      },
    ],
    [
      "has a page less than it says",
      (bytes) => {
        const at = bytes.indexOf(marker, bytes.indexOf(marker) + 1) + marker.length;
        return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 4096)]);
      },
    ],
    ["is of another machine type", (bytes) => Buffer.from(bytes.toString("latin1").replace("microvm", "macrovm"), "latin1")],
  ])("starts nothing when it %s, and its parent goes on", async (_, change) => {
    const parent = await restored();
    const other = await changed(await save(parent, true), (state) => edit(state, change));
    await expect(under.driver.restore(other, newSpec())).rejects.toMatchObject({ name: "MitosError", code: "internal" });
    await lives(parent);
    await end(parent);
  });

  it("starts nothing when it is of a machine with other memory", async () => {
    const booted = await boot(under.driver, { memSizeMiB: 320 });
    const larger = await saved(booted, () => under.driver.snapshot(booted.machine, newFolder(), { leaveRunning: false, durable: false }));
    const parent = await restored();
    const mixed = await changed(await save(parent, true), (state) => copyFileSync(path.join(larger.dir, "state"), state));
    await expect(under.driver.restore(mixed, newSpec())).rejects.toMatchObject({ name: "MitosError", code: "internal" });
    await lives(parent);
    await end(parent);
  });
});

describe("a disk of the host that is full", () => {
  const full = { code: "quota_exceeded", detail: { context: { dimension: "disk" } } };
  const rootReason = "only root can mount a small disk";
  let small: string;
  let unmount: () => void;
  let here: DriverUnderTest;
  let first: Snapshot;
  let before: string[];

  beforeAll(async () => {
    if (process.getuid?.() !== 0) return;
    small = mkdtempSync("/tmp/mitos-small-");
    unmount = mountLoopDisk(small, "1G");
    here = await DriverUnderTest.open(small);
    const booted = await boot(here.driver);
    const dir = path.join(here.base, "template");
    first = await saved(booted, () => here.driver.snapshot(booted.machine, dir, { leaveRunning: false, durable: false }));
    before = await dataOf(here, [first]);
  }, 240_000);
  afterAll(async () => {
    if (process.getuid?.() !== 0) return;
    await here?.[Symbol.asyncDispose]();
    unmount();
    rmSync(small, { recursive: true });
  });

  /** Leaves so much room until it is disposed of. */
  function fill(leaveBytes: number): Disposable {
    const { bavail, bsize } = statfsSync(small);
    const file = path.join(small, "filler");
    try {
      execFileSync("fallocate", ["-l", String(bavail * bsize - leaveBytes), file], { stdio: "ignore" });
    } catch (error) {
      // Its own list of blocks takes room as well: what it could not have any more is what is left of nothing.
      if (leaveBytes > 0) throw error;
    }
    return { [Symbol.dispose]: () => rmSync(file) };
  }

  async function nothingLeft(): Promise<void> {
    expect(await leftovers(here.dataDir, here.runtimeDir)).toEqual([]);
    expect(await dataOf(here, [first])).toEqual(before);
  }

  it.for([
    ["fork", true],
    ["pause", false],
  ] as const)(
    "refuses a durable %s wherever it meets it, leaves the machine running, and does it when there is room",
    async ([, leaveRunning], { skip }) => {
      skip(process.getuid?.() !== 0, rootReason);
      const sandbox = await adopt(await here.driver.restore(first, newSpec()));
      await run(sandbox, "echo kept > /root/kept; head -c 8M /dev/urandom > /dev/shm/held; sha256sum /dev/shm/held > /root/sum");
      const dir = path.join(here.base, "saved");
      const attempt = () => saved(sandbox, () => here.driver.snapshot(sandbox.machine, dir, { leaveRunning, durable: true }));
      // Nothing at all, less than the devices take, less than the pages that are its own.
      for (const room of [0, 16 * 1024, 4 * 2 ** 20]) {
        {
          using _filled = fill(room);
          await expect(attempt(), `with ${room} bytes`).rejects.toMatchObject(full);
        }
        expect(await run(sandbox, "cat /root/kept; sha256sum --check --quiet /root/sum")).toBe("kept");
        expect(readdirSync(here.base).sort()).toEqual(["data", "template"]);
      }
      const snapshot = await attempt();
      const next = await adopt(await here.driver.restore(snapshot, newSpec()));
      expect(await run(next, "cat /root/kept; sha256sum --check --quiet /root/sum")).toBe("kept");
      await (leaveRunning ? end(next, sandbox) : end(next));
      rmSync(dir, { recursive: true });
      await nothingLeft();
    },
  );

  it("refuses a machine that boots, though it has begun to", async ({ skip }) => {
    skip(process.getuid?.() !== 0, rootReason);
    // Room for its disk, and for the first of its memory.
    {
      using _filled = fill(24 * 2 ** 20);
      await expect(here.driver.boot(newSpec())).rejects.toMatchObject(full);
    }
    await nothingLeft();
  });

  it("is an error of the disk in a machine that writes, which lives, and writes again when there is room", async ({ skip }) => {
    skip(process.getuid?.() !== 0, rootReason);
    const sandbox = await adopt(await here.driver.restore(first, newSpec()));
    await run(sandbox, "echo kept > /root/kept; sync");
    const write = "dd if=/dev/urandom of=/root/big bs=1M count=16 conv=fsync 2>&1";
    {
      using _filled = fill(2 * 2 ** 20);
      expect(await run(sandbox, `${write} && echo written || true`)).toMatch(/Input\/output error/);
      await lives(sandbox);
    }
    expect(await run(sandbox, `rm /root/big; ${write} && sha256sum /root/big > /root/sum && cat /root/kept`)).toMatch(/kept$/);
    const dir = path.join(here.base, "saved");
    const snapshot = await saved(sandbox, () => here.driver.snapshot(sandbox.machine, dir, { leaveRunning: true, durable: true }));
    const child = await adopt(await here.driver.restore(snapshot, newSpec()));
    const intact = "dd if=/root/big iflag=direct bs=1M status=none | sha256sum | cut -c 1-64; cut -c 1-64 /root/sum";
    for (const each of [sandbox, child]) {
      const [found, wanted] = (await run(each, intact)).split("\n");
      expect(found).toBe(wanted);
    }
    await end(sandbox, child);
    rmSync(dir, { recursive: true });
    await nothingLeft();
  });
});

describe("a frozen machine", () => {
  const stateOf = (sandbox: Sandbox) => /^State:\s+(\S)/m.exec(readFileSync(`/proc/${vmmOf(sandbox).pid}/status`, "utf8"))?.[1];

  it("is saved and frozen again, and one that ends by being saved counts as saved", async () => {
    const sandbox = await restored();
    await run(sandbox, "echo kept > /root/kept");
    const quiet = await sandbox.guest.quiesce();
    await sandbox.machine.freeze();
    await under.driver.snapshot(sandbox.machine, newFolder(), { leaveRunning: true, durable: false });
    await until("it is frozen again", () => stateOf(sandbox) === "T");
    const snapshot = await under.driver.snapshot(sandbox.machine, newFolder(), { leaveRunning: false, durable: false });
    expect(await sandbox.machine.exited).toMatchObject({ reason: "terminated", detail: "saved" });
    await quiet.resume().catch(() => undefined);
    const again = await restored(snapshot);
    expect(await run(again, "cat /root/kept")).toBe("kept");
    await end(again);
  });

  it("is awake for the next server", async () => {
    const sandbox = await restored();
    await run(sandbox, "echo kept > /root/kept");
    await sandbox.machine.freeze();
    await until("it is frozen", () => stateOf(sandbox) === "T");
    await under.restart();
    const found = await under.driver.reattach(sandbox.machine.machineId);
    if (!("transport" in found)) throw new Error(`it ended: ${found.detail}`);
    const again = await adopt(found);
    expect(await run(again, "cat /root/kept")).toBe("kept");
    await end(again);
  });

  it("that is killed while it is saved fails the save with what happened to it", async () => {
    const sandbox = await restored();
    const quiet = await sandbox.guest.quiesce();
    await sandbox.machine.freeze();
    process.kill(vmmOf(sandbox).pid, "SIGKILL");
    await expect(under.driver.snapshot(sandbox.machine, newFolder(), { leaveRunning: true, durable: false })).rejects.toMatchObject({
      name: "MitosError",
    });
    expect(await sandbox.machine.exited).toMatchObject({ reason: "killed" });
    await quiet.resume().catch(() => undefined);
  });
});

describe("machines made ready ahead", () => {
  const waiting = () => readdirSync(path.join(under.runtimeDir, "m")).length;

  it("are as many as were asked for, however many are taken, and none is left when the driver closes", async () => {
    const like = await restored();
    under.driver.prepare(like.machine, 2);
    await until("both wait", () => waiting() === 3);
    const hits = under.driver.readyStarts?.hits ?? 0;
    for (let round = 0; round < 8; round += 1) {
      const taken = await restored();
      await lives(taken);
      await end(taken);
      await until("they are filled up", () => waiting() === 3);
    }
    expect(under.driver.readyStarts?.hits).toBe(hits + 8);
    await end(like);
    expect((await leftovers(under.dataDir, under.runtimeDir)).length).toBeGreaterThan(0);
    await under.restart();
    expect(await leftovers(under.dataDir, under.runtimeDir)).toEqual([]);
  });

  it("that were to go on from a state which is damaged are gone, and the name that they had is free", async () => {
    const like = await restored();
    under.driver.prepare(like.machine, 2);
    // One after the other: the first is ready.
    await until("the second is being made", () => waiting() === 3);
    const damaged = await save(like, true);
    appendFileSync(path.join(damaged.dir, "state"), "x");
    const spec = newSpec();
    await expect(under.driver.restore(damaged, spec)).rejects.toMatchObject({ code: "snapshot_incompatible" });
    under.driver.prepare(like.machine, 0);
    await until("nothing of it is left", () => waiting() === 1);
    const machine = await under.driver.restore(template, spec);
    await machine.end("tested");
    await lives(like);
    await end(like);
  });

  it("that die while they wait are replaced, and nothing of them is left", async () => {
    const like = await restored();
    under.driver.prepare(like.machine, 1);
    await until("it waits", () => waiting() === 2);
    const dir = path.join(under.runtimeDir, "m");
    const id = readdirSync(dir).find((name) => name !== vmmOf(like).id)!;
    const pidOf = () => readPid(path.join(dir, id, "vmm.pid"));
    await until("its monitor is there", () => pidOf().then(Boolean, () => false));
    const pid = await pidOf();
    process.kill(pid, "SIGKILL");
    await processGone(pid);
    const taken = await restored();
    await lives(taken);
    // As after every start. One that is killed before it waits is not made anew until then.
    under.driver.prepare(like.machine, 1);
    await until("nothing of it is left, and another waits", () => waiting() === 3 && !readdirSync(dir).includes(id));
    await end(taken, like);
    under.driver.prepare(like.machine, 0);
    await under.driver.sweep(new Set(), [template]);
    await under.restart();
  });
});
