import { stat } from "node:fs/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { snapshotDisk } from "../../packages/engine/src/drivers/microvm/disk-steps.ts";
import { beginNewBase } from "../../packages/engine/src/drivers/microvm/memory-steps.ts";
import { callOffNewBase } from "../../packages/engine/src/drivers/microvm/new-base.ts";
import { isAllAsItWas, untilItHolds } from "./holder.ts";
import { Bench, type State, type Vm } from "./vm.ts";

let bench: Bench;
let template: State;
beforeAll(async () => {
  bench = await Bench.open();
  template = await bench.template();
}, 180_000);
afterAll(() => bench[Symbol.asyncDispose]());

/**
 * Holds 12 MiB of noise, of which it changes a page every few milliseconds, and 4 MiB that it makes zero when it is told to. Says whether all of it
 * is as it has left it when it is asked.
 */
const holder = `
import mmap, os, time, zlib
noise = mmap.mmap(-1, 12 << 20); zeroed = mmap.mmap(-1, 4 << 20)
want = bytearray(12 << 20)
for at in range(0, 12 << 20, 1 << 20): want[at:at + (1 << 20)] = noise[at:at + (1 << 20)] = os.urandom(1 << 20)
def fill(byte):
    for at in range(0, 4 << 20, 1 << 20): zeroed[at:at + (1 << 20)] = byte * (1 << 20)
fill(b"x"); want_zeroed = b"x"; turn = 0
digest = zlib.crc32
open("/root/ready", "w").close()
while True:
    turn += 1
    at = (turn * 7919) % (3 << 10) * 4096
    page = os.urandom(16); noise[at:at + 16] = page; want[at:at + 16] = page
    if os.path.exists("/root/zero") and want_zeroed != bytes(1):
        want_zeroed = bytes(1); fill(want_zeroed)
        open("/root/zeroed", "w").close()
    if os.path.exists("/root/ask"):
        os.unlink("/root/ask")
        answer = (digest(noise) == digest(want), digest(zeroed) == digest(want_zeroed * (4 << 20)))
        open("/root/answer.new", "w").write(f"{answer} {turn > 1}"); os.rename("/root/answer.new", "/root/answer")
    time.sleep(0.01)
`;

async function hold(vm: Vm): Promise<void> {
  await vm.run(`cat > /root/holder.py <<'END'\n${holder}\nEND`);
  await vm.sandbox.guest.runtime.start({ shellCommand: "python3 /root/holder.py 2> /root/errors" });
  await vm.run(untilItHolds);
}

const isIntact = (vm: Vm) => vm.run(isAllAsItWas);

describe("a new base", () => {
  it("holds all that a machine has written while it was copied, what became zero too, and its children go on from it", async () => {
    const parent = await bench.restore(template);
    await hold(parent);
    const state = await parent.saveAsNewBase(() => parent.run("touch /root/zero; while [ ! -e /root/zeroed ]; do sleep 0.01; done"));
    expect(state.punched.memory_bytes).toBe(256 * 2 ** 20);
    // What had been copied before it became zero would be there again without the holes.
    expect(state.punched.freed_bytes).toBeGreaterThan(0);
    expect(state.punched.pages * 4096).toBeLessThan((await stat(state.memory.file)).size);
    expect(await isIntact(parent)).toBe("(True, True) True");
    // The other way goes on to work, in it and in its children.
    const streamed = await bench.restore(await parent.fork());
    await parent.end();
    expect(await isIntact(streamed)).toBe("(True, True) True");
    await streamed.end();

    // The next generation adds what it has written to a stream of little size again.
    const child = await bench.restore(state);
    expect(await isIntact(child)).toBe("(True, True) True");
    await child.run("echo child > /root/which");
    const small = await child.fork();
    await child.end();
    expect((await stat(small.stream)).size).toBeLessThan(24 * 2 ** 20);
    const grandchild = await bench.restore(small);
    expect(await grandchild.run("cat /root/which")).toBe("child");
    expect(await isIntact(grandchild)).toBe("(True, True) True");
    await grandchild.end();
  });

  it("that is abandoned leaves its machine as it was", async () => {
    const vm = await bench.restore(template);
    await hold(vm);
    const next = await bench.disks.create(vm.disk.id);
    const disk = snapshotDisk({ current: vm.disk.path, next: next.path, deviceState: bench.newFile("devices") });
    const files = { base: bench.newFile("memory"), deviceState: bench.newFile("devices") };
    await vm.steps([...disk.before, ...beginNewBase(files)]);
    await callOffNewBase(vm.steps);
    await vm.steps(disk.undo);
    expect(await isIntact(vm)).toBe("(True, True) True");
    const child = await bench.restore(await vm.fork());
    expect(await isIntact(child)).toBe("(True, True) True");
    // Nothing of the first is in the way of another.
    const shared = await bench.restore(await vm.saveAsNewBase());
    expect(await isIntact(shared)).toBe("(True, True) True");
    await shared.end();
    await vm.end();
    await child.end();
  });
});

describe("the timer of a processor", () => {
  it("comes later in a machine that goes on from a state, and those that it works for are not lost", async () => {
    const parent = await bench.restore(template);
    await parent.run(
      "(while :; do sleep 0.05; echo >> /root/turns; done) > /dev/null 2>&1 & until [ -e /root/turns ]; do sleep 0.01; done",
    );
    const state = await parent.fork();
    // One processor: the section that is looked for in the state is that of this version of QEMU.
    expect(state.timers).toBe(1);
    const child = await bench.restore(state);
    for (const vm of [parent, child])
      expect(await vm.run("a=$(wc -l < /root/turns); sleep 0.5; b=$(wc -l < /root/turns); test $b -gt $a && echo goes on")).toBe("goes on");
    await parent.end();
    await child.end();
  });
});
