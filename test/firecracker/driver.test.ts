import { readdir, readFile, rename, rm, stat, truncate, writeFile } from "node:fs/promises";
import type { guest } from "@mitos/protocol/proto";
import { describe, expect, it } from "vitest";
import { tryMachines } from "../../packages/engine/src/drivers/host/probe.ts";
import { LinkClient } from "../../packages/engine/src/link/client.ts";
import { ask, Bench, type NotedCall, specOf } from "./support.ts";

const isRoot = process.getuid?.() === 0;
if (!isRoot) console.log("not run: machines in a jail, which needs root");
const ways = isRoot ? [{ jailed: false }, { jailed: true }] : [{ jailed: false }];

const fork = { leaveRunning: true, durable: false };

function names(calls: readonly NotedCall[]): string[] {
  return calls.map(({ method, path, body }) => `${method} ${path}${body.state ? ` ${String(body.state)}` : ""}`);
}

describe.each(ways)("machines of Firecracker, jailed: $jailed", (way) => {
  it("boots in the documented order, and its agent answers on the link", async () => {
    await using bench = await Bench.open();
    const driver = await bench.driver(way);
    const machine = await driver.boot(specOf("a"));
    await new LinkClient(machine.transport).hello();
    const calls = await bench.calls();
    expect(calls.filter(({ fault }) => fault)).toEqual([]);
    expect(names(calls)).toEqual([
      "PUT /boot-source",
      "PUT /machine-config",
      "PUT /drives/rootfs",
      "PUT /drives/written",
      "PUT /vsock",
      "PUT /entropy",
      "PUT /actions",
    ]);
    const [boot, config, root, written, vsock] = calls.map(({ body }) => body);
    expect(boot).toMatchObject({ boot_args: expect.stringContaining("console=ttyS0 reboot=k panic=1 pci=off random.trust_cpu=on") });
    expect(config).toEqual({ vcpu_count: 2, mem_size_mib: 64 });
    expect(root).toEqual({ drive_id: "rootfs", path_on_host: "root.erofs", is_read_only: true, is_root_device: true });
    expect(written).toEqual({ drive_id: "written", path_on_host: "written.ext4", is_read_only: false, is_root_device: false });
    expect(vsock).toEqual({ guest_cid: 3, uds_path: "vsock.sock" });
    await machine.end("tested");
    expect(await bench.leftovers()).toEqual([]);
  });

  it("gives children the memory and the disk that their parent had at the fork, and nothing of what comes later", async () => {
    await using bench = await Bench.open();
    const driver = await bench.driver(way);
    const parent = await driver.boot(specOf("parent"));
    await new LinkClient(parent.transport).hello();
    await ask(parent, "memory=first");
    await ask(parent, "disk=first");
    const first = await driver.snapshot(parent, bench.file("one"), fork);
    await ask(parent, "memory=second");
    await ask(parent, "disk=second");
    const second = await driver.snapshot(parent, bench.file("two"), fork);
    const [a, b, c] = await Promise.all([
      driver.restore(first, specOf("a")),
      driver.restore(first, specOf("b")),
      driver.restore(second, specOf("c")),
    ]);
    expect([await ask(a!, "memory"), await ask(a!, "disk")]).toEqual(["first", "first"]);
    expect([await ask(c!, "memory"), await ask(c!, "disk")]).toEqual(["second", "second"]);
    await ask(a!, "memory=changed");
    await ask(a!, "disk=changed");
    expect([await ask(b!, "memory"), await ask(b!, "disk")]).toEqual(["first", "first"]);
    expect([await ask(parent, "memory"), await ask(parent, "disk")]).toEqual(["second", "second"]);
    // Of the next generation, when the files that its parent came from are gone.
    await rm(first.dir, { recursive: true });
    const third = await driver.snapshot(a!, bench.file("three"), fork);
    const grandchild = await driver.restore(third, specOf("grandchild"));
    expect([await ask(grandchild, "memory"), await ask(grandchild, "disk")]).toEqual(["changed", "changed"]);
    expect(await ask(b!, "memory")).toBe("first");
    expect((await bench.calls()).filter(({ fault }) => fault)).toEqual([]);
  });

  it("saves and restores in the documented order, and never lets a guest run before its drives are its own", async () => {
    await using bench = await Bench.open();
    const driver = await bench.driver(way);
    const parent = await driver.boot(specOf("parent"));
    const before = (await bench.calls()).length;
    const snapshot = await driver.snapshot(parent, bench.file("saved"), fork);
    const child = await driver.restore(snapshot, specOf("child"));
    const calls = (await bench.calls()).slice(before);
    expect(names(calls)).toEqual([
      "PATCH /vm Paused",
      "PUT /snapshot/create",
      "PATCH /vm Resumed",
      "PUT /snapshot/load",
      "PATCH /drives/written",
      "PATCH /vm Resumed",
    ]);
    expect(calls.map(({ status }) => status)).toEqual(calls.map(() => 204));
    expect(calls[3]?.body).toMatchObject({ mem_backend: { backend_type: "File" }, resume_vm: false });
    expect(calls[0]?.id).not.toBe(calls[3]?.id);
    await new LinkClient(child.transport).hello();
  });

  it("carries the link of a parent on over its snapshot, which has reset the guest's connections", async () => {
    await using bench = await Bench.open();
    const driver = await bench.driver(way);
    const parent = await driver.boot(specOf("parent"));
    const link = new LinkClient(parent.transport);
    await link.hello();
    for (const name of ["one", "two", "three"]) {
      const quiet = await link.quiesce();
      await driver.snapshot(parent, bench.file(name), fork);
      await quiet.resume();
      expect(await link.ping()).toBeGreaterThanOrEqual(0);
    }
  });

  it("lets a child be adopted on a link of its own", async () => {
    await using bench = await Bench.open();
    const driver = await bench.driver(way);
    const parent = await driver.boot(specOf("parent"));
    const link = new LinkClient(parent.transport);
    await link.hello();
    const quiet = await link.quiesce();
    const snapshot = await driver.snapshot(parent, bench.file("saved"), fork);
    await quiet.resume();
    const child = new LinkClient((await driver.restore(snapshot, specOf("child"))).transport);
    await child.hello();
    const adopted: guest.Adopted = await child.adopt({ sandboxId: "child", generation: 2n });
    expect(adopted.generation).toBe(2n);
    expect(await link.ping()).toBeGreaterThanOrEqual(0);
  });

  it("ends with its snapshot when it is not to run on, and leaves nothing but that", async () => {
    await using bench = await Bench.open();
    const driver = await bench.driver(way);
    const machine = await driver.boot(specOf("a"));
    const snapshot = await driver.snapshot(machine, bench.file("saved"), { leaveRunning: false, durable: true });
    expect(await machine.exited).toMatchObject({ reason: "terminated", detail: "saved" });
    expect(await bench.leftovers()).toEqual([]);
    expect(Object.keys(snapshot.files ?? {}).sort()).toEqual(["disk.ext4", "memory", "mitos.json", "state"]);
    expect((await stat(`${snapshot.dir}/memory`)).mode & 0o222).toBe(0);
    await driver.checkSnapshot(snapshot);
  });

  it("runs on when its disk could not be saved with its memory, and leaves no part of the snapshot", async () => {
    await using bench = await Bench.open();
    const driver = await bench.driver(way);
    const machine = await driver.boot(specOf("a"));
    const { vmm } = machine as typeof machine & { vmm: { place: { disk: string } } };
    await rename(vmm.place.disk, bench.file("away"));
    await expect(driver.snapshot(machine, bench.file("saved"), fork)).rejects.toThrow("disk");
    await rename(bench.file("away"), vmm.place.disk);
    expect((await readdir(bench.dir)).filter((name) => name.startsWith("saved"))).toEqual([]);
    expect((await bench.calls()).at(-1)).toMatchObject({ path: "/vm", body: { state: "Resumed" }, status: 204 });
    await new LinkClient(machine.transport).hello();
    expect(await ask(machine, "memory")).toBe("booted");
  });

  it("is tried by booting, saving and restoring a machine, of which nothing is left", async () => {
    await using bench = await Bench.open();
    await tryMachines(await bench.driver(way), bench.dir);
    expect(names(await bench.calls())).toContain("PUT /snapshot/load");
    expect(await bench.leftovers()).toEqual([]);
  });

  it("refuses a snapshot whose memory was written to, cut, or whose root is gone, and starts nothing", async () => {
    await using bench = await Bench.open();
    const driver = await bench.driver(way);
    const machine = await driver.boot(specOf("a"));
    const snapshot = await driver.snapshot(machine, bench.file("saved"), { leaveRunning: false, durable: false });
    const incompatible = expect.objectContaining({ code: "snapshot_incompatible" });
    const other = { ...snapshot, requirements: { ...snapshot.requirements, engineBuild: "Firecracker v1.14.0" } };
    await expect(driver.restore(other, specOf("b"))).rejects.toEqual(incompatible);
    const larger = { ...specOf("b"), resources: { ...specOf("b").resources, memSizeMiB: 128 } };
    await expect(driver.restore(snapshot, larger)).rejects.toEqual(incompatible);
    await rm(bench.file("key-a"));
    await expect(driver.restore(snapshot, specOf("b"))).rejects.toEqual(incompatible);
    await writeFile(bench.file("key-a"), "root");
    await truncate(`${snapshot.dir}/memory`, 4096);
    await expect(driver.restore(snapshot, specOf("b"))).rejects.toEqual(incompatible);
    expect(await bench.leftovers()).toEqual([]);
  });

  it("leaves nothing of a machine whose VMM refuses a call", async () => {
    await using bench = await Bench.open();
    const driver = await bench.driver(way);
    const spec = specOf("a");
    const refused = driver.boot({ ...spec, resources: { ...spec.resources, vcpuCount: 33 } });
    await expect(refused).rejects.toMatchObject({ detail: { cause: expect.stringContaining("vcpu_count") } });
    expect(await bench.leftovers()).toEqual([]);
  });

  it("takes up the machines of an earlier server, also one that it left in the middle of a snapshot", async () => {
    await using bench = await Bench.open();
    const earlier = await bench.driver(way);
    const machine = await earlier.boot(specOf("a"));
    await ask(machine, "memory=kept");
    const { vmm } = machine as typeof machine & { vmm: { api: { run(calls: readonly object[]): Promise<void> } } };
    await vmm.api.run([{ method: "PATCH", path: "/vm", body: { state: "Paused" } }]);
    await earlier.close();
    const driver = await bench.driver(way);
    const found = await driver.reattach("a");
    if (!("transport" in found)) throw new Error(`it was ${found.reason}`);
    await new LinkClient(found.transport).hello();
    expect(await ask(found, "memory")).toBe("kept");
    expect(await driver.reattach("unknown")).toMatchObject({ reason: "lost" });
  });

  it("sweeps what is left of a server, except for what is kept", async () => {
    await using bench = await Bench.open();
    const driver = await bench.driver(way);
    const [kept, left] = await Promise.all([driver.boot(specOf("kept")), driver.boot(specOf("left"))]);
    await driver.sweep(new Set(["kept"]));
    expect(await left!.exited).toMatchObject({ reason: expect.any(String) });
    expect(await ask(kept!, "memory")).toBe("booted");
    expect(bench.removals.at(-1)).toEqual(new Set(["key-a"]));
    await driver.sweep(new Set());
    await kept!.exited;
    expect(await bench.leftovers()).toEqual([]);
  });

  it("stands still while it is frozen, can be saved so, and is frozen again", async () => {
    await using bench = await Bench.open();
    const driver = await bench.driver(way);
    const machine = await driver.boot(specOf("a"));
    const { vmm } = machine as typeof machine & { vmm: { pid: number } };
    const state = async () => /^State:\s+(\S)/m.exec(await readFile(`/proc/${vmm.pid}/status`, "utf8"))?.[1];
    await machine.freeze();
    await expect.poll(state).toBe("T");
    await driver.snapshot(machine, bench.file("saved"), fork);
    await expect.poll(state).toBe("T");
    await machine.thaw();
    expect(await ask(machine, "memory")).toBe("booted");
  });
});
