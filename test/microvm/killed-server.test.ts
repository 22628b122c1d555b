import { existsSync, readdirSync, realpathSync } from "node:fs";
import path from "node:path";
import { setImmediate as turn } from "node:timers/promises";
import { Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { defaultRuntimeDir } from "../../packages/engine/src/drivers/host/layout.ts";
import { newBaseFromBytes } from "../../packages/engine/src/drivers/microvm/new-base.ts";
import { fastRootOf } from "../../packages/engine/src/snapshots.ts";
import { accountOf, processesOf } from "../faults/host-account.ts";
import { ServedDirectory } from "../faults/served-directory.ts";
import { until } from "../support/until.ts";

let directory: ServedDirectory;
let places: { snapshots: string[]; names: string; data: string };
/** What the data directory holds while there is the template alone. */
let standing: string[];

beforeAll(async () => {
  directory = await ServedDirectory.open();
  const dataDir = realpathSync(directory.dataDir);
  const snapshots = path.join(dataDir, "snapshots");
  const runtimeDir = await defaultRuntimeDir(dataDir);
  places = { snapshots: [snapshots, fastRootOf(snapshots)], names: path.join(runtimeDir, "ids"), data: path.join(dataDir, "microvm") };
  await directory.api.createTemplate("base");
  await directory.crash();
  standing = data();
}, 240_000);
afterAll(() => directory?.[Symbol.asyncDispose](), 240_000);

const at = (id: string) => new Sandbox({ id, endpoint: directory.server.url });
const list = (dir: string) => (existsSync(dir) ? readdirSync(dir) : []);
const forks = () => places.snapshots.flatMap(list).filter((name) => name.startsWith("fork-"));
const data = () => ["bases", "disks", "images"].flatMap((dir) => list(path.join(places.data, dir))).sort();

async function create(id: string, timeoutSeconds = 3_000): Promise<Sandbox> {
  return Sandbox.create({ id, template: "base", timeoutSeconds, baseUrl: directory.server.url });
}

/** No machine but those of running sandboxes, nothing half-made, and no fork's state. */
async function expectNothingBeside(running: number): Promise<void> {
  await until("no other machine is there", () => accountOf(directory.dataDir).machines.length === running);
  const account = accountOf(directory.dataDir);
  expect(account.machineFolders).toEqual(account.machines);
  expect(account.cgroups).toEqual(process.getuid?.() === 0 ? account.machines : []);
  expect(account.machineNames).toHaveLength(running);
  expect(account.partial).toEqual([]);
  expect(forks()).toEqual([]);
}

describe("a server that is killed in the middle of a fork", () => {
  const fromBases = () => list(path.join(places.data, "bases")).filter((name) => name.endsWith(".memory")).length;
  const largeMiB = Math.ceil(newBaseFromBytes / 2 ** 20);

  it.each<[string, readonly number[], () => boolean, number?]>([
    ["while all of its memory is copied into a new base", [0], () => fromBases() > 1, largeMiB],
    ["while the parent stands still and its state is written", [0], () => forks().some((name) => name.includes(".partial-"))],
    ["when its state is written", [0], () => forks().some((name) => !name.includes(".partial-"))],
    ["when a child has its name", [0, 2], () => list(places.names).length > 1],
  ])("%s, is followed by one that finds the parent as it was, and all children or none", async (_, possible, met, programMiB = 0) => {
    const parent = await create("parent");
    await parent.exec("echo before > /root/kept; head -c 48M /dev/urandom > /dev/shm/held; sha256sum /dev/shm/held > /root/sum");
    await parent.execBackground([
      "python3",
      "-c",
      `held = b"x" * (${programMiB} << 20); open("/root/ready", "w").close(); import time; time.sleep(1e6)`,
    ]).started;
    await parent.exec("until [ -e /root/ready ]; do sleep 0.1; done");
    const pid = await parent.execBackground("n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done").started;
    let answered = false;
    const fork = parent.fork(2).then(
      () => {
        answered = true;
      },
      () => undefined,
    );
    while (!met() && !answered) await turn();
    expect(answered, "it was too fast to be killed in the middle").toBe(false);
    await directory.server.kill();
    await fork;
    await directory.restart();

    const again = at("parent");
    const children = (await directory.api.listSandboxes()).filter(({ id }) => id !== "parent");
    expect(possible).toContain(children.length);
    await expectNothingBeside(1 + children.length);
    const bytes = async () => (await again.processes()).find((row) => row.pid === pid && row.state === "running")?.stdoutBytes ?? -1;
    const before = await bytes();
    expect(before).toBeGreaterThan(0);
    await until("its program goes on", async () => (await bytes()) > before);
    for (const { id } of children) {
      expect((await at(id).exec("cat /root/kept; sha256sum --check --quiet /root/sum")).stdout).toBe("before\n");
      await at(id).terminate();
    }
    await again.exec("echo after >> /root/kept; sync");
    const [child] = await again.fork(1);
    for (const each of [again, child!]) {
      const { stdout } = await each.exec("dd if=/root/kept iflag=direct status=none; sha256sum --check --quiet /root/sum && echo intact");
      expect(stdout).toBe("before\nafter\nintact\n");
      await each.terminate();
    }
    await directory.crash();
    await expectNothingBeside(0);
    expect(data()).toEqual(standing);
  });
});

describe("the deadline of a virtual machine", () => {
  it("holds while no server lives, and the next one says so", async () => {
    await create("short", 10);
    const { machine, shim } = processesOf(directory.dataDir, accountOf(directory.dataDir).machineNames[0]!);
    await directory.server.kill();
    await until("its machine has ended", () => [machine, shim].every((pid) => !existsSync(`/proc/${pid}`)));
    await directory.restart();
    await expect(at("short").info()).rejects.toMatchObject({ status: 410, errorCause: expect.stringContaining("time-out") });
    await expectNothingBeside(0);
    expect(data()).toEqual(standing);
  });
});

describe("machines that a server has made ready ahead", () => {
  const machines = () => accountOf(directory.dataDir).machines.length;

  it.each([
    ["is stopped", async () => expect(await directory.server.stop()).toMatchObject({ code: 0 })],
    ["is killed", () => directory.server.kill()],
  ])("end when it %s, and the sandbox goes on", async (_, endServer) => {
    const sandbox = await create("keeper");
    await sandbox.exec("echo kept > /root/kept");
    await until("one waits", () => machines() > 1);
    await endServer();
    await until("only the sandbox's machine is there", () => machines() === 1);
    await directory.restart();
    await expectNothingBeside(1);
    expect((await at("keeper").exec("cat /root/kept")).stdout).toBe("kept\n");
    await at("keeper").terminate();
    await directory.crash();
    await expectNothingBeside(0);
    expect(data()).toEqual(standing);
  });
});
