import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readdir, readFile, readlink } from "node:fs/promises";
import path from "node:path";
import { pipeline } from "node:stream/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { collapseProgress, settleCollapse, startCollapse } from "../../packages/engine/src/drivers/microvm/collapse.ts";
import { nodePrefix, snapshotDisk } from "../../packages/engine/src/drivers/microvm/disk-steps.ts";
import { execute } from "../../packages/engine/src/drivers/microvm/vmm-steps.ts";
import { until } from "../support/until.ts";
import { Bench, type State, type Vm } from "./vm.ts";

let bench: Bench;
let template: State;
beforeAll(async () => {
  bench = await Bench.open();
  template = await bench.template();
}, 180_000);
afterAll(() => bench[Symbol.asyncDispose]());

const flush = "sync";
/** Read from the disk, whatever the machine's memory has of it. */
const intact = `while read -r sum file; do
  found=$(dd if=$file iflag=direct bs=1M status=none | sha256sum | cut -d " " -f 1); test "$found" = "$sum" || { echo "$file is another"; exit 1; }
done < /root/sums; wc -l < /root/sums`;

async function hashesOf(files: readonly string[]): Promise<Record<string, string>> {
  const hashes: Record<string, string> = {};
  for (const file of files) {
    const hash = createHash("sha256");
    await pipeline(createReadStream(file, { end: 64 * 2 ** 20 }), hash);
    hashes[path.basename(file)] = hash.digest("hex");
  }
  return hashes;
}

/** Of the files of disks that a monitor has open: by name, whether it can write to them. */
async function openDisksOf(vm: Vm): Promise<Record<string, boolean>> {
  const open: Record<string, boolean> = {};
  for (const fd of await readdir(`/proc/${vm.pid}/fd`)) {
    const target = await readlink(`/proc/${vm.pid}/fd/${fd}`).catch(() => "");
    if (path.dirname(target) !== path.join(bench.dir, "disks")) continue;
    const [, flags] = /flags:\s+(\d+)/.exec(await readFile(`/proc/${vm.pid}/fdinfo/${fd}`, "utf8")) ?? [];
    open[path.basename(target)] ||= (Number.parseInt(flags ?? "", 8) & 3) !== 0;
  }
  return open;
}

const write = (vm: Vm, name: string, mib: number) =>
  vm.run(`head -c ${mib}M /dev/urandom > /root/${name} && sha256sum /root/${name} >> /root/sums`);

describe("a machine's disk", () => {
  it("has in each child what its parent had written, synced or not, and is apart from then on", async () => {
    const parent = await bench.restore(template);
    await write(parent, "big", 20);
    await parent.run("echo before > /root/which");
    const state = await parent.fork();
    const frozen = (await bench.disks.chainOf(state.disk)) as string[];
    const before = await hashesOf(frozen.slice(1));
    await parent.run(`echo parent > /root/which; ${flush}`);
    const [one, two] = [await bench.restore(state), await bench.restore(state)];
    expect(await one.run("cat /root/which")).toBe("before");
    await one.run(`echo one > /root/which; rm /root/big; ${flush}`);
    await two.run(intact);
    expect(await two.run("cat /root/which")).toBe("before");
    await parent.run(`${flush}; ${intact}`);
    expect(await parent.run("cat /root/which")).toBe("parent");

    expect(await hashesOf(frozen.slice(1))).toEqual(before);
    const writable = (vm: Vm) => ({
      ...Object.fromEntries(vm.disk.chain.map((file) => [path.basename(file), false])),
      [path.basename(vm.disk.path)]: true,
    });
    for (const vm of [parent, one, two]) {
      expect(await openDisksOf(vm)).toEqual(writable(vm));
      expect(await readFile(path.join(vm.dir, "machine.log"), "utf8")).not.toMatch(/EXT4-fs (error|warning)|I\/O error/);
      await vm.end();
    }
  });

  it("is the same when its chain is collapsed, also by a collapse that a fork has called off", async () => {
    const vm = await bench.restore(template);
    for (let fork = 0; fork < 12; fork += 1) {
      await write(vm, `part-${fork}`, 2);
      await vm.run("sync");
      await vm.fork();
    }
    expect(vm.disk.chain.length).toBe(15);
    const frozen = await hashesOf(vm.disk.chain.slice(1, -1));

    await startCollapse(vm.steps, vm.disk);
    expect(await collapseProgress(vm.steps)).toBeLessThan(1);
    const called = await settleCollapse(vm.steps, bench.disks, vm.disk);
    expect(await collapseProgress(vm.steps)).toBeUndefined();
    expect(called.chain).toEqual(vm.disk.chain);
    const inTheMiddle = await bench.restore(await vm.fork());
    expect(await inTheMiddle.run(`${flush}; ${intact}`)).toBe("12");
    await inTheMiddle.end();

    await startCollapse(vm.steps, vm.disk);
    await write(vm, "meanwhile", 2);
    await until("the collapse has ended", async () => (await collapseProgress(vm.steps)) === undefined, 60_000);
    const long = vm.disk.chain;
    vm.disk = await settleCollapse(vm.steps, bench.disks, vm.disk);
    expect(vm.disk.chain).toEqual([long[0], long.at(-1)]);
    expect(await bench.disks.chainOf(vm.disk.id)).toEqual(vm.disk.chain);
    expect(Object.keys(await openDisksOf(vm)).sort()).toEqual(vm.disk.chain.map((file) => path.basename(file)).sort());
    expect(await vm.run(`${flush}; ${intact}`)).toBe("13");
    const child = await bench.restore(await vm.fork());
    expect(await child.run(`${flush}; ${intact}`)).toBe("13");
    // What lay between is others' by now, and as it was.
    expect(await hashesOf(long.slice(1, 14))).toEqual(frozen);
    // A server that finds the machine does the same, and changes nothing.
    expect((await settleCollapse(vm.steps, bench.disks, vm.disk)).chain).toEqual(vm.disk.chain);
    await vm.end();
    await child.end();
  });

  it("of others is whole when a monitor is killed in the middle of a collapse", async () => {
    const vm = await bench.restore(template);
    await write(vm, "big", 64);
    const state = await vm.fork();
    const below = await bench.disks.chainOf(state.disk);
    const before = await hashesOf(below.slice(1));
    await startCollapse(vm.steps, vm.disk);
    process.kill(vm.pid, "SIGKILL");
    await vm.end();
    expect(await hashesOf(below.slice(1))).toEqual(before);
    const child = await bench.restore(state);
    expect(await child.run(`${flush}; ${intact}`)).toBe("1");
    await child.end();
  });

  it("needs no new overlay when its machine is to end: what it has written is in its file once it stands still", async () => {
    const vm = await bench.restore(template);
    await write(vm, "big", 8);
    const state = await vm.saveAndEnd();
    const child = await bench.restore(state);
    expect(child.disk.chain).toContain(vm.disk.path);
    expect(await child.run(`${flush}; ${intact}`)).toBe("1");
    await child.end();
  });

  it("stays usable when a snapshot of it fails", async () => {
    const vm = await bench.restore(template);
    const next = await bench.disks.create(vm.disk.id);
    const snapshot = snapshotDisk({ current: vm.disk.path, next: next.path, deviceState: bench.newFile("devices") });
    await vm.steps(snapshot.before);
    await vm.steps(snapshot.undo);
    await expect(
      vm.steps(snapshotDisk({ current: vm.disk.path, next: "/nowhere/0123456789ab.qcow2", deviceState: bench.newFile("devices") }).before),
    ).rejects.toThrow();
    await write(vm, "after", 2);
    const child = await bench.restore(await vm.fork());
    expect(await child.run(`${flush}; ${intact}`)).toBe("1");
    const nodes = (await vm.steps([execute("query-named-block-nodes", { flat: true })]))[0] as { "node-name": string }[];
    const begins = (mark: string) => nodes.filter((node) => node["node-name"].startsWith(mark)).length;
    // Each has one without a name of ours for its file, and so has the root image.
    expect([begins(nodePrefix), begins("#")]).toEqual([vm.disk.chain.length, vm.disk.chain.length + 1]);
    await vm.end();
    await child.end();
  });
});
