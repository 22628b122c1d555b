import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { Snapshot } from "../../packages/engine/src/driver.ts";
import { MicrovmMachine } from "../../packages/engine/src/drivers/microvm/machine.ts";
import { newBaseFromBytes } from "../../packages/engine/src/drivers/microvm/new-base.ts";
import { runSteps, type Vmm } from "../../packages/engine/src/drivers/microvm/vmm.ts";
import { execute, fdSets } from "../../packages/engine/src/drivers/microvm/vmm-steps.ts";
import { Quiet } from "../../packages/engine/src/quiet.ts";
import { adopt, boot, end, newSpec, run, type Sandbox, saved, start } from "../gvisor/sandbox.ts";
import { DriverUnderTest, vmmOf } from "./driver.ts";
import { isAllAsItWas, untilItHolds } from "./holder.ts";

const mib = 2 ** 20;
const heldMiB = 64;
/** Above what a machine has of its own that holds nothing: about 30 MiB. */
const fromBytes = 70 * mib;

let under: DriverUnderTest;
let template: Snapshot;
let snapshots = 0;
let smallDisks = 0;
let bases: string;

beforeAll(async () => {
  under = await DriverUnderTest.open("/tmp", { newBaseFromBytes: fromBytes });
  bases = path.join(under.dataDir, "microvm/bases");
  const booted = await boot(under.driver);
  template = await saved(booted, () => under.driver.snapshot(booted.machine, newFolder(), { leaveRunning: false, durable: false }));
}, 240_000);
afterEach(async () => {
  await under.driver.collectRoots({ roots: [{ kind: "host" }], snapshots: [template] });
  expect(baseFiles()).toHaveLength(1);
});
afterAll(() => under?.[Symbol.asyncDispose]());

function newFolder(): string {
  snapshots += 1;
  return path.join(under.base, `snapshot-${snapshots}`);
}

const baseFiles = () => readdirSync(bases).filter((name) => name.endsWith(".memory"));
const restored = async (from = template): Promise<Sandbox> => adopt(await under.driver.restore(from, newSpec()));

async function fork(parent: Sandbox, dir = newFolder()): Promise<Snapshot> {
  const quiet = new Quiet(parent.guest);
  try {
    return await under.driver.snapshot(parent.machine, dir, { leaveRunning: true, durable: false, quiet });
  } finally {
    await quiet.end();
  }
}

function forget({ dir }: Snapshot): void {
  rmSync(dir, { recursive: true });
}

const baseOf = (sandbox: Sandbox) => vmmOf(sandbox).uses.base;

/** Holds noise, of which it changes a page every few milliseconds, and says whether all of it is as it has left it when it is asked. */
const holder = `
import mmap, os, time, zlib
size = ${heldMiB} << 20; part = 1 << 20; turn = 0
noise = mmap.mmap(-1, size)
for at in range(0, size, part): noise[at:at + part] = os.urandom(part)
want = [zlib.crc32(noise[at:at + part]) for at in range(0, size, part)]
open("/root/ready", "w").close()
while True:
    turn += 1
    at = (turn * 7919) % (size >> 12) * 4096
    noise[at:at + 16] = os.urandom(16)
    start = at // part * part
    want[start // part] = zlib.crc32(noise[start:start + part])
    if os.path.exists("/root/ask"):
        os.unlink("/root/ask")
        answer = all(zlib.crc32(noise[at:at + part]) == want[at // part] for at in range(0, size, part))
        open("/root/answer.new", "w").write(f"{answer} {turn > 1}"); os.rename("/root/answer.new", "/root/answer")
    time.sleep(0.01)
`;

async function holding(): Promise<Sandbox> {
  const sandbox = await restored();
  await run(sandbox, `cat > /root/holder.py <<'END'\n${holder}\nEND`);
  await start(sandbox, "exec python3 /root/holder.py 2> /root/errors");
  await run(sandbox, untilItHolds);
  return sandbox;
}

const isIntact = (sandbox: Sandbox) => run(sandbox, isAllAsItWas);

/** What its monitor says of itself that a copy could leave in it. */
async function leftIn(sandbox: Sandbox) {
  const questions = ["query-status", "query-migrate", "query-jobs", "query-fdsets", "query-named-block-nodes"].map((command) =>
    execute(command),
  );
  const { results } = await runSteps(vmmOf(sandbox), "ask what is left", questions, 20_000);
  const [state, copy, jobs, sets, nodes] = results as [
    { status: string },
    { status: string; ram: { transferred: number } },
    unknown[],
    { "fdset-id": number }[],
    { "dirty-bitmaps"?: unknown[] }[],
  ];
  const copying: readonly number[] = [fdSets.memory, fdSets.deviceState];
  return {
    state: state.status,
    copy: copy.status,
    copiedBytes: copy.ram.transferred,
    jobs,
    sets: sets.map((set) => set["fdset-id"]).filter((id) => copying.includes(id)),
    bitmaps: nodes.flatMap((node) => node["dirty-bitmaps"] ?? []),
  };
}

/** Files of bases that the monitor and its shim have open or mapped. */
function basesHeldBy({ pid, shimPid }: Vmm): string[] {
  const held = [pid, shimPid].flatMap((holder) => [
    ...readdirSync(`/proc/${holder}/fd`).map((fd) => linkOf(`/proc/${holder}/fd/${fd}`)),
    ...readFileSync(`/proc/${holder}/maps`, "utf8").split("\n"),
  ]);
  return [...new Set(held.flatMap((text) => text.match(/[^/]+\.memory(?: \(deleted\))?$/) ?? []))];
}

function linkOf(link: string): string {
  try {
    return readlinkSync(link);
  } catch {
    return ""; // closed meanwhile
  }
}

/** Room for half of what a machine holds, with the files that are there. */
function smallDiskOver(dir: string, names: readonly string[]): () => void {
  smallDisks += 1;
  const small = path.join(under.base, `small-${smallDisks}`);
  mkdirSync(small);
  const mounted: string[] = [];
  const mount = (target: string, ...args: readonly string[]) => {
    execFileSync("mount", [...args, target]);
    mounted.unshift(target);
  };
  mount(small, "-t", "tmpfs", "-o", `size=${heldMiB / 2}m`, "tmpfs");
  for (const name of names) {
    writeFileSync(path.join(small, name), "");
    mount(path.join(small, name), "--bind", path.join(dir, name));
  }
  mount(dir, "--rbind", small);
  return () => {
    execFileSync("umount", ["--recursive", dir]);
    for (const target of mounted.slice(1)) execFileSync("umount", [target]);
  };
}

describe("a fork of a machine that has written much", () => {
  it("makes a base that its children share, and the parent and every generation have all that it had", async () => {
    const parent = await holding();
    await run(parent, "echo kept > /root/kept");
    const state = await fork(parent);
    expect(state.bytes).toBeLessThan(mib);
    const children = [await restored(state), await restored(state)] as const;
    for (const child of children) {
      expect(baseOf(child).id).toBe(baseOf(children[0]).id);
      expect(baseOf(child).id).not.toBe(baseOf(parent).id);
      expect(baseOf(child).offset).toBeGreaterThan(0);
      expect((await child.machine.meter()).memoryBytes).toBeLessThan(heldMiB * mib);
      expect(await isIntact(child)).toBe("True True");
      expect(await run(child, "cat /root/kept")).toBe("kept");
    }
    expect(await isIntact(parent)).toBe("True True");

    // A child has written little: its own child gets that, over the same base.
    await run(children[0], "echo child > /root/kept");
    const next = await fork(children[0]);
    const grandchild = await restored(next);
    expect(baseOf(grandchild).id).toBe(baseOf(children[0]).id);
    expect(await isIntact(grandchild)).toBe("True True");
    expect(await run(grandchild, "cat /root/kept")).toBe("child");
    expect(await run(children[1], "cat /root/kept")).toBe("kept");

    // A second one of the same parent.
    const again = await fork(parent);
    const late = await restored(again);
    expect(baseOf(late).id).not.toBe(baseOf(children[0]).id);
    expect(await isIntact(late)).toBe("True True");
    expect(await isIntact(parent)).toBe("True True");

    await end(parent, late, ...children);
    for (const snapshot of [state, next, again]) forget(snapshot);
    // One machine is left that stands on the first.
    await under.driver.collectRoots({ roots: [{ kind: "host" }], snapshots: [template] });
    expect(baseFiles()).toHaveLength(2);
    await end(grandchild);
  });

  it("is found with its children by a server that comes after", async () => {
    const parent = await holding();
    const state = await fork(parent);
    const child = await restored(state);
    const { offset } = baseOf(child);
    await under.restart();
    const found = await under.driver.reattach(child.machine.machineId);
    expect(found).toBeInstanceOf(MicrovmMachine);
    const again = await adopt(found as MicrovmMachine);
    expect(baseOf(again).offset).toBe(offset);
    expect(await isIntact(again)).toBe("True True");
    const next = await fork(again);
    const grandchild = await restored(next);
    expect(await isIntact(grandchild)).toBe("True True");
    await end(again, grandchild);
    for (const snapshot of [state, next]) forget(snapshot);
    await under.driver.sweep(new Set(), [template]);
  });

  it("is refused when its base was cut off", async () => {
    const parent = await holding();
    const state = await fork(parent);
    const name = baseFiles().find((file) => file !== path.basename(baseOf(parent).path)) as string;
    truncateSync(path.join(bases, name), heldMiB * mib);
    const refused = { code: "snapshot_incompatible", detail: { cause: expect.stringContaining("was changed") } };
    await expect(under.driver.checkSnapshot(state)).rejects.toMatchObject(refused);
    await expect(under.driver.restore(state, newSpec())).rejects.toMatchObject(refused);
    forget(state);
    await end(parent);
  });

  it("gets what it has written by a stream when there is no room for a base, and nothing of one is left", async ({ skip }) => {
    skip(process.getuid?.() !== 0, "only root can mount a small disk");
    const parent = await holding();
    await run(parent, "echo kept > /root/kept");
    const before = baseFiles();
    let state: Snapshot;
    const undo = smallDiskOver(bases, before);
    try {
      state = await fork(parent);
      expect(baseFiles()).toEqual(before);
    } finally {
      undo();
    }
    expect(state.bytes).toBeGreaterThan(heldMiB * mib);
    expect(await isIntact(parent)).toBe("True True");
    const child = await restored(state);
    expect(baseOf(child).id).toBe(baseOf(parent).id);
    expect(await isIntact(child)).toBe("True True");
    // The way is open again.
    const next = await fork(parent);
    expect(next.bytes).toBeLessThan(mib);
    const shared = await restored(next);
    expect(await isIntact(shared)).toBe("True True");
    await end(parent, child, shared);
    for (const snapshot of [state, next]) forget(snapshot);
  });

  it("gets what it has written by a stream when a copy takes longer than it may, and nothing of that is left", async () => {
    const warnings: object[] = [];
    const log = { debug() {}, info() {}, warn: (detail: object) => warnings.push(detail), error: console.error };
    // In the middle of a copy, which takes some hundred milliseconds.
    await under.restart({ newBaseTimeoutMs: 50, log });
    const parent = await holding();
    await run(parent, "echo kept > /root/kept");
    const before = baseFiles();
    const state = await fork(parent);
    const reason = expect.stringMatching(/was not copied in the time that this may take: .*"status":"(setup|active)"/);
    expect(warnings).toEqual([{ machine: parent.machine.machineId, error: reason }]);
    expect(baseFiles()).toEqual(before);
    expect(basesHeldBy(vmmOf(parent))).toEqual([path.basename(baseOf(parent).path)]);
    const { copiedBytes, ...left } = await leftIn(parent);
    expect(left).toEqual({ state: "running", copy: "completed", jobs: [], sets: [], bitmaps: [] });
    expect(copiedBytes).toBeGreaterThan(heldMiB * mib);
    expect(readdirSync(path.dirname(state.dir)).filter((name) => name.includes(".partial-"))).toEqual([]);
    expect(readdirSync(state.dir).sort()).toEqual(Object.keys(state.files ?? {}).sort());

    expect(state.bytes).toBeGreaterThan(heldMiB * mib);
    expect(await isIntact(parent)).toBe("True True");
    const child = await restored(state);
    expect(baseOf(child).id).toBe(baseOf(parent).id);
    expect(await isIntact(child)).toBe("True True");
    expect(await run(child, "cat /root/kept")).toBe("kept");
    await end(child);
    forget(state);

    // The way is open again.
    await under.restart();
    const again = await adopt((await under.driver.reattach(parent.machine.machineId)) as MicrovmMachine);
    const next = await fork(again);
    expect(next.bytes).toBeLessThan(mib);
    const shared = await restored(next);
    expect(await isIntact(shared)).toBe("True True");
    await end(again, shared);
    forget(next);
  });

  it("goes on as it was when there is no room for either way", async ({ skip }) => {
    skip(process.getuid?.() !== 0, "only root can mount a small disk");
    const parent = await holding();
    const before = baseFiles();
    const undo = smallDiskOver(bases, before);
    try {
      const failed = fork(parent, path.join(bases, "fork"));
      await expect(failed).rejects.toMatchObject({ code: "quota_exceeded", detail: { context: { dimension: "disk" } } });
      expect(readdirSync(bases)).toEqual(before);
    } finally {
      undo();
    }
    expect(await isIntact(parent)).toBe("True True");
    await end(parent);
  });

  it("leaves nothing when it ends in the middle", async () => {
    const parent = await holding();
    const dir = newFolder();
    const seen: number[] = [];
    const quiet = {
      async begin() {
        seen.push(baseFiles().length);
        process.kill(vmmOf(parent).pid, "SIGKILL");
      },
      async end() {},
    };
    const failed = under.driver.snapshot(parent.machine, dir, { leaveRunning: true, durable: false, quiet });
    await expect(failed).rejects.toMatchObject({ name: "MitosError" });
    // The other way is tried as well, and fails before programs are to stand still.
    expect(seen).toEqual([2]);
    expect((await parent.machine.exited).reason).toBe("killed");
    expect(readdirSync(path.dirname(dir)).filter((name) => name.startsWith(path.basename(dir)))).toEqual([]);
    expect(baseFiles()).toHaveLength(1);
  });
});

it("a pause of it, and a fork of one that has written little, make no base", async () => {
  const [much, little] = [await holding(), await restored()];
  const paused = await saved(much, () => under.driver.snapshot(much.machine, newFolder(), { leaveRunning: true, durable: true }));
  expect(paused.bytes).toBeGreaterThan(heldMiB * mib);
  expect(newBaseFromBytes).toBeGreaterThan(fromBytes);
  await fork(little);
  expect(baseFiles()).toHaveLength(1);
  await end(much, little);
});
