import { existsSync, mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { chmod, mkdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import path from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { Driver, MachineSpec, RootSource } from "../../packages/engine/src/driver.ts";
import { createGvisorDriver, probeGvisor } from "../../packages/engine/src/drivers/gvisor/index.ts";
import { defaultRuntimeDir } from "../../packages/engine/src/drivers/host/layout.ts";
import type { Adoption } from "../../packages/engine/src/guest.ts";
import type { Layer } from "../../packages/engine/src/layers/layer.ts";
import { LayerStore } from "../../packages/engine/src/layers/store.ts";
import { removeTree } from "../../packages/engine/src/remove-tree.ts";
import type { TarEntry } from "../support/tar.ts";
import { leftovers } from "./leftovers.ts";
import { adopt, end, newSpec, run, type Sandbox, saved } from "./sandbox.ts";
import { addLayer, programs } from "./small-image.ts";

const log = { debug() {}, info() {}, warn() {}, error: console.error };
const keepRunning = { leaveRunning: true, durable: false };
const isRoot = process.getuid?.() === 0;
const base = mkdtempSync("/tmp/mitos-gvisor-layers-");
const dataDir = path.join(base, "data");
await mkdir(dataDir);
const runtimeDir = await defaultRuntimeDir(dataDir);
const probe = await probeGvisor({ dataDir, runtimeDir, log });
if (!probe.usable) {
  rmSync(base, { recursive: true });
  if (process.env.MITOS_REQUIRE_GVISOR) throw new Error(`gVisor cannot run here: ${probe.detail}`);
  console.warn(`gVisor cannot run here, roots of layers are not tested: ${probe.detail}`);
}

afterAll(async () => {
  await removeTree(base);
  rmSync(runtimeDir, { recursive: true, force: true });
});

const users: TarEntry[] = [
  { name: "etc/", type: "dir" },
  { name: "etc/passwd", content: "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001:Ann:/srv/ann:/bin/sh\n" },
  { name: "etc/group", content: "root:x:0:\nann:x:1001:\nstaff:x:50:ann\n" },
  { name: "srv/ann/", type: "dir", uid: 1000, gid: 1001, mode: 0o750 },
  { name: "srv/ann/notes", content: "hers\n", uid: 1000, gid: 1001, mode: 0o600 },
  { name: "bin/as-ann", content: "#!/bin/sh\n", uid: 1000, gid: 50, mode: 0o6755 },
];

describe.runIf(probe.usable)("a root made of layers", () => {
  let driver: Driver;
  let layers: LayerStore;
  let small: Layer;
  const roots = () => readdirSync(path.join(dataDir, "gvisor")).filter((name) => /^root-[0-9a-f]{16}$/.test(name));
  /** One layer on top of the small image, or none. */
  const rootOf = async (entries: readonly TarEntry[] = []): Promise<RootSource> => ({
    kind: "layers",
    layers: entries.length > 0 ? [small, await addLayer(layers, entries)] : [small],
  });
  const bootLayers = async (root: RootSource, adoption: Partial<Adoption> = {}, change: Partial<MachineSpec> = {}): Promise<Sandbox> => {
    const sandbox = await adopt(await driver.boot({ ...newSpec({}, root), ...change }), adoption);
    await sandbox.guest.setOwners(await driver.ownersOf(root));
    return sandbox;
  };

  beforeAll(async () => {
    driver = await createGvisorDriver({ dataDir, runtimeDir, log });
    layers = await LayerStore.open({ dataDir, log });
    small = await addLayer(layers, programs("sh", "cat", "id", "ls", "mkdir", "rm", "stat", "env", "readlink", "dd"));
  });
  afterEach(async () => {
    await driver.collectRoots({ roots: [], snapshots: [] });
    expect(roots().length).toBe(1); // the host's
    expect(await leftovers(dataDir, runtimeDir)).toEqual([]);
    expect(existsSync(path.join(dataDir, "gvisor/scratch")) ? readdirSync(path.join(dataDir, "gvisor/scratch")) : []).toEqual([]);
  });
  afterAll(async () => {
    await driver.sweep(new Set());
    await driver.close();
  });

  it("boots with the image's files and owners, and no file of the host", async () => {
    const sandbox = await bootLayers(await rootOf(users));
    expect(await run(sandbox, "ls -A / | cat")).toBe(
      "bin\ndev\netc\nlib\nlib64\nopt\nproc\nroot\nrun\nsrv\nsys\ntmp\nvar\nworkspace"
        .split("\n")
        .filter((name) => name !== "lib" || existsSync("/lib"))
        .join("\n"),
    );
    expect(await run(sandbox, "stat -c '%n %u:%g %a' /srv/ann /srv/ann/notes /bin/as-ann /tmp /root")).toBe(
      "/srv/ann 1000:1001 750\n/srv/ann/notes 1000:1001 600\n/bin/as-ann 1000:50 6755\n/tmp 0:0 1777\n/root 0:0 700",
    );
    // One of few links here; runsc's own answer would make ls fail.
    expect(await run(sandbox, "ls -l /etc/mtab")).toContain("/etc/mtab -> /proc/self/mounts");
    expect(await run(sandbox, "cat /etc/hosts; readlink /etc/mtab; pwd")).toContain("127.0.0.1 localhost");
    await end(sandbox);
  });

  it("gives calls that name no user and folder those of the adoption, and children after a restore the same", async () => {
    const root = await rootOf(users);
    const parent = await bootLayers(root, { user: "ann", cwd: "/srv/ann", env: { PATH: "/bin", COLOUR: "red" } });
    const facts = "id; pwd; echo $HOME $USER $PATH $COLOUR; cat notes";
    const told = "uid=1000(ann) gid=1001(ann) groups=1001(ann),50(staff)\n/srv/ann\n/srv/ann ann /bin red\nhers";
    expect(await run(parent, facts)).toBe(told);
    const snapshot = await saved(parent, () => driver.snapshot(parent.machine, path.join(base, "user"), keepRunning));
    const child = await adopt(await driver.restore(snapshot, newSpec()));
    expect(await run(child, facts)).toBe(told);
    const again = await saved(child, () => driver.snapshot(child.machine, path.join(base, "user-again"), keepRunning));
    const grandchild = await adopt(await driver.restore(again, newSpec()), { user: "1000:50", cwd: "/nowhere" });
    expect(await run(grandchild, "id; pwd")).toBe("uid=1000(ann) gid=50(staff) groups=50(staff)\n/");
    await end(parent, child, grandchild);
    await Promise.all([snapshot, again].map(({ dir }) => rm(dir, { recursive: true })));
  });

  it("takes nothing that an image has put at our own places, and nothing through its links", async () => {
    const outside = path.join(base, "outside");
    await mkdir(outside);
    await writeFile(path.join(outside, "hosts"), "untouched");
    const sandbox = await bootLayers(
      await rootOf([
        { name: "etc", type: "symlink", target: outside },
        { name: "opt", type: "symlink", target: "/" },
        { name: "proc", type: "symlink", target: outside },
        { name: "tmp", content: "a file" },
        { name: "run", type: "symlink", target: "tmp" },
        { name: "workspace/", type: "dir", mode: 0o770, uid: 12 },
        { name: "root", type: "symlink", target: "/workspace" },
      ]),
    );
    expect(await run(sandbox, "cat /etc/hosts /etc/hostname; stat -c '%F' /etc /opt /opt/mitos/bin/mitos-guest /proc /tmp /run")).toMatch(
      /127\.0\.0\.1 localhost[\s\S]*\ndirectory\ndirectory\nregular .*file\ndirectory\ndirectory\ndirectory$/,
    );
    expect(await run(sandbox, "stat -c '%u %a' /workspace; readlink /root")).toBe("12 770\n/workspace");
    expect(await readFile(path.join(outside, "hosts"), "utf8")).toBe("untouched");
    expect(readdirSync(outside)).toEqual(["hosts"]);
    await end(sandbox);
  });

  it("runs without users, shell, home and temporary folder", async () => {
    const bare = await addLayer(layers, [...programs("id", "cat", "ls"), { name: "bin/sh", type: "symlink", target: "nothing" }]);
    const sandbox = await bootLayers({ kind: "layers", layers: [bare] });
    const events = [];
    for await (const event of sandbox.guest.runtime.exec({ argv: ["id"] })) events.push(event);
    expect(events.find((event) => event.kind === "output")).toMatchObject({ data: Buffer.from("uid=0 gid=0 groups=0\n") });
    const refused = [];
    for await (const event of sandbox.guest.runtime.exec({ shellCommand: "id" })) refused.push(event);
    expect(refused).toMatchObject([{ kind: "exit", error: expect.stringContaining("there is no /bin/sh in this sandbox") }]);
    expect(await sandbox.guest.warmKernel("python")).toEqual({
      available: false,
      detail: "the python kernel needs Python 3.8 or newer: python3 or python is not on the PATH of this sandbox",
    });
    await end(sandbox);
  });

  it("says which Python its kernel needs when the image's is too old", async () => {
    const sandbox = await bootLayers(
      await rootOf([
        { name: "usr/local/bin/python3", mode: 0o755, content: "#!/bin/sh\necho 'SyntaxError: invalid syntax' >&2; exit 1\n" },
      ]),
      { env: { PATH: "/usr/local/bin:/bin" } },
    );
    const { available, detail } = await sandbox.guest.warmKernel("python");
    expect(available).toBe(false);
    expect(detail).toMatch(/ended before it was ready .*it needs Python 3\.8 or newer: SyntaxError: invalid syntax/);
    await end(sandbox);
  });

  it("is put together once, however many machines ask for it at the same time, and again after a crash half-way", async () => {
    const root = await rootOf(users);
    const machines = await Promise.all([1, 2, 3].map(() => bootLayers(root)));
    const [name] = roots().filter((found) => existsSync(path.join(dataDir, "gvisor", `${found}.owners`)));
    expect(roots().length).toBe(2);
    await end(...machines);
    // What a server leaves that is killed while it merges, in folders that may not be written.
    const partial = path.join(dataDir, "gvisor", `${name}.partial-0badcafe`);
    await mkdir(path.join(partial, "closed"), { recursive: true });
    await writeFile(path.join(partial, "closed/file"), "");
    await symlink("/", path.join(partial, "closed/link"));
    await chmod(path.join(partial, "closed"), 0o500);
    await driver.sweep(new Set());
    expect(existsSync(partial)).toBe(false);
    const next = await bootLayers(root);
    expect(await run(next, "echo here")).toBe("here");
    await end(next);
  });

  it("shares the files of a layer with every other root that has it", async () => {
    const one = await rootOf([{ name: "one", content: "1" }]);
    const two = await rootOf([{ name: "two", content: "2" }]);
    const machines = [await bootLayers(one), await bootLayers(two)];
    const inodes = roots().map((name) => statSync(path.join(dataDir, "gvisor", name, "bin/cat"), { throwIfNoEntry: false })?.ino);
    const own = statSync(path.join(small.dir, "tree/bin/cat")).ino;
    expect(inodes.filter((inode) => inode === own).length).toBe(2);
    // What one writes, the other does not see, and the layer does not have.
    await run(machines[0]!, "echo changed > /bin/cat && rm /bin/ls");
    expect(await run(machines[1]!, "ls /bin/cat && cat /two")).toBe("/bin/cat\n2");
    expect(statSync(path.join(small.dir, "tree/bin/cat")).ino).toBe(own);
    await end(...machines);
  });

  it("stays while a machine or a snapshot needs it, also for the next server, and goes with the last of them", async () => {
    const parent = await bootLayers(await rootOf(users));
    await driver.collectRoots({ roots: [], snapshots: [] });
    expect(await run(parent, "cat /etc/group | { read line; echo $line; }")).toBe("root:x:0:");
    const snapshot = await saved(parent, () => driver.snapshot(parent.machine, path.join(base, "needed"), keepRunning));
    driver.prepare(parent.machine, 1);
    await end(parent);
    await driver.collectRoots({ roots: [], snapshots: [snapshot] });
    await driver.checkSnapshot(snapshot);

    const next = await createGvisorDriver({ dataDir, runtimeDir, log });
    await driver.close();
    driver = next;
    await driver.sweep(new Set(), [snapshot]);
    const child = await adopt(await driver.restore(snapshot, newSpec()));
    expect(await run(child, "ls /srv")).toBe("ann");
    await end(child);
    await driver.collectRoots({ roots: [], snapshots: [] });
    await expect(driver.checkSnapshot(snapshot)).rejects.toMatchObject({ code: "snapshot_incompatible" });
    await rm(snapshot.dir, { recursive: true });
  });

  it("is there for a machine that asks for it while those that nothing needs are removed", async () => {
    const root = await rootOf();
    for (let turns = 0; turns < 5; turns += 1) {
      await driver.ownersOf(root);
      expect(roots()).toHaveLength(2);
      const removal = driver.collectRoots({ roots: [], snapshots: [] });
      // It comes by at different moments of the removal.
      for (let turn = 0; turn < turns; turn += 1) await new Promise((resolve) => setImmediate(resolve));
      const sandbox = await bootLayers(root);
      await removal;
      expect(roots()).toHaveLength(2);
      expect(await run(sandbox, "id -u")).toBe("0");
      await end(sandbox);
    }
  });

  it("stays while a template has it that has no machine and no snapshot", async () => {
    const root = await rootOf(users);
    await driver.ownersOf(root);
    await driver.collectRoots({ roots: [root], snapshots: [] });
    expect(roots().length).toBe(2);
  });

  it("takes writes that memory has no room for when its scratch space lies on the disk, and gives the room back", async () => {
    const sandbox = await bootLayers(
      await rootOf(),
      {},
      { scratch: "disk", resources: { vcpuCount: 1, memSizeMiB: 64, processesMax: 64 } },
    );
    await run(
      sandbox,
      "dd if=/dev/zero of=/var/large bs=1048576 count=200 2>/dev/null; dd if=/dev/zero of=/tmp/large bs=1048576 count=200 2>/dev/null",
    );
    expect(await run(sandbox, "stat -c %s /var/large /tmp/large")).toBe("209715200\n209715200");
    expect((await sandbox.machine.meter()).memoryBytes).toBeLessThan(64 * 1024 * 1024);
    await expect(saved(sandbox, () => driver.snapshot(sandbox.machine, path.join(base, "disk"), keepRunning))).rejects.toMatchObject({
      code: "not_supported",
    });
    const told = await changesOf(sandbox);
    expect(told).toBeGreaterThan(200 * 1024 * 1024);
    await end(sandbox);
  });

  it("tells what a machine has changed, as the store of layers takes it", async () => {
    const root = await rootOf(users);
    const sandbox = await bootLayers(root);
    await run(sandbox, "echo new > /new && rm -r /srv/ann/notes && mkdir /srv/ann/sub && echo more >> /etc/group");
    if (root.kind !== "layers") throw new Error("it is made of layers");
    const layer = await layers.addChanges(sandbox.guest.changes(), root.layers);
    await end(sandbox);
    const next = await bootLayers({ kind: "layers", layers: [...root.layers, layer] });
    expect(await run(next, "cat /new /etc/group; ls -A /srv/ann; stat -c '%u:%g' /srv/ann /srv/ann/sub")).toBe(
      "new\nroot:x:0:\nann:x:1001:\nstaff:x:50:ann\nmore\nsub\n1000:1001\n0:0",
    );
    await end(next);
    expect(layer.bytes).toBeLessThan(1024);
  });

  it("leaves large files to root that everybody may read when there is no room for their copies", async ({ skip }) => {
    skip(isRoot, "root sets owners on the host, without a copy");
    const root = await rootOf(users);
    const sandbox = await adopt(await driver.boot(newSpec({}, root)));
    expect(await sandbox.guest.setOwners(await driver.ownersOf(root), { copyBytesMax: 1 })).toBe(1);
    expect(await run(sandbox, "stat -c '%n %u' /bin/as-ann /srv/ann/notes /srv/ann")).toBe(
      "/bin/as-ann 0\n/srv/ann/notes 1000\n/srv/ann 1000",
    );
    await end(sandbox);
  });

  it("comes with the owners that could not be set on the host, which are none as root", async () => {
    const root = await rootOf(users);
    const owners = await driver.ownersOf(root);
    if (isRoot) expect(owners).toEqual([]);
    else expect(owners.map(({ path: name }) => name)).toEqual(["/bin/as-ann", "/srv/ann/notes", "/srv/ann"]);
  });
});

/** Bytes of the tar. */
async function changesOf({ guest }: Sandbox): Promise<number> {
  let bytes = 0;
  for await (const chunk of guest.changes()) bytes += chunk.byteLength;
  return bytes;
}
