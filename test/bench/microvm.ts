// `npm run bench -- --microvm [ROUNDS [PICTURE.svg]]`: what starts and forks of virtual machines cost, beside what QEMU does by hand: a cold boot, and
// `snapshot-save` and `snapshot-load` (savevm and loadvm). Ratios to those of the same run are what can be compared.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { type Driver, type Log, openEngine } from "@mitos/engine";
import { resourceDefaults, type SandboxId } from "@mitos/protocol";
import { create, type Sandbox } from "@mitos/sdk";
import { startServer } from "@mitos/server";
import { nodeOf } from "../../packages/engine/src/drivers/microvm/disk-steps.ts";
import { createMicrovmDriver } from "../../packages/engine/src/drivers/microvm/index.ts";
import type { MicrovmMachine } from "../../packages/engine/src/drivers/microvm/machine.ts";
import { runSteps } from "../../packages/engine/src/drivers/microvm/vmm.ts";
import { execute } from "../../packages/engine/src/drivers/microvm/vmm-steps.ts";
import { LinkClient } from "../../packages/engine/src/link/client.ts";
import { Quiet } from "../../packages/engine/src/quiet.ts";
import { orUsage, parseRoundsAndFile } from "./arguments.ts";
import { type Chart, drawCharts } from "./chart.ts";
import { describeHost, hostIsIdle, hostLine } from "./host.ts";
import { quantile, Samples } from "./statistics.ts";

const accel = process.env.MITOS_TEST_ACCEL === "kvm" ? "kvm" : "tcg";
const roundsDefault = 9;
const { rounds, file } = orUsage(() => parseRoundsAndFile("--microvm", process.argv.slice(2), roundsDefault));
const coldBoot = "cold boot → first answer";
const deltasMiB = [0, 4, 16, 64, 256];
const childCounts = [1, 2, 4, 8];
const generations = 6;
const silent: Log = { debug: nothing, info: nothing, warn: nothing, error: nothing };
function nothing() {}

const host = describeHost();
const scratch = mkdtempSync(path.join(os.tmpdir(), "mitos-bench-microvm-"));
const samples = new Samples();
try {
  await measureByHand();
  await measureFirstAnswers();
  await measureMitos();
  print();
} finally {
  rmSync(scratch, { recursive: true, force: true });
}

/** QEMU alone, from outside: the same machine, saved and loaded as its manual says. */
async function measureByHand(): Promise<void> {
  await withDriver(async (driver) => {
    for (let round = 0; round < Math.ceil(rounds / 3); round++) {
      const started = performance.now();
      const machine = (await driver.boot({
        machineId: `boot-${round}`,
        root: { kind: "host" },
        resources: resourceDefaults,
        hostName: "bench",
      })) as MicrovmMachine;
      await new LinkClient(machine.transport).hello();
      samples.record(coldBoot, performance.now() - started);
      const node = nodeOf(`${machine.vmm.disk}.qcow2`);
      await samples.timed("savevm", () => runJob(machine, "snapshot-save", node));
      await samples.timed("loadvm", () => runJob(machine, "snapshot-load", node));
      await machine.end("measured");
    }
  });
}

async function runJob(machine: MicrovmMachine, command: string, node: string): Promise<void> {
  const steps = [
    execute(command, { "job-id": command, tag: "bench", vmstate: node, devices: [node] }),
    { await: { event: "JOB_STATUS_CHANGE", field: "status", values: ["concluded"], failures: [] } },
    execute("job-dismiss", { id: command }),
    ...(command === "snapshot-load" ? [execute("cont")] : []),
  ];
  await runSteps(machine.vmm, command, steps, 60_000);
}

/** Of the driver and the agent alone: a live fork until its child's agent answers, before it is adopted. */
async function measureFirstAnswers(): Promise<void> {
  await withDriver(async (driver) => {
    const specOf = (machineId: string) => ({ machineId, resources: resourceDefaults, hostName: "bench" });
    const booted = await driver.boot({ ...specOf("template"), root: { kind: "host" } });
    const guest = new LinkClient(booted.transport);
    await guest.hello();
    await guest.quiesce();
    const template = await driver.snapshot(booted, path.join(scratch, "template"), { leaveRunning: false, durable: false });
    const parent = await driver.restore(template, specOf("parent"));
    const link = new LinkClient(parent.transport);
    await link.hello();
    for (let round = 0; round < rounds; round++) {
      for (const count of [1, childCounts.at(-1) as number]) {
        driver.prepare(parent, count);
        await hostIsIdle();
        const dir = path.join(scratch, `fork-${round}-${count}`);
        const quiet = new Quiet(link);
        const started = performance.now();
        const snapshot = await driver.snapshot(parent, dir, { leaveRunning: true, durable: false, quiet });
        if (count === 1) samples.record("fork(1) → its state is saved", performance.now() - started);
        const answered = async (index: number) => {
          const child = await driver.restore(snapshot, specOf(`child-${round}-${count}-${index}`));
          if (count === 1) samples.record("fork(1) → the child is about to run", performance.now() - started);
          await new LinkClient(child.transport).hello();
          return child;
        };
        const children = await Promise.all(Array.from({ length: count }, (_, index) => answered(index)));
        samples.record(`fork(${count}) → first answer of every child's agent`, performance.now() - started);
        if (count === 1) samples.record("fork(1), driver alone: parent stands still", quiet.pausedMs);
        await Promise.all(children.map((child) => child.end("measured")));
        rmSync(dir, { recursive: true });
      }
    }
    await parent.end("measured");
  });
}

async function measureMitos(): Promise<void> {
  const engine = await openEngine({ dataDir: path.join(scratch, "engine"), engine: "microvm", accel, log: silent });
  const server = await startServer({ engine, host: "127.0.0.1", port: 0, log: silent, version: "bench" });
  const make = () => create({ baseUrl: server.url, template: "base" });
  const end = (sandboxes: readonly Sandbox[]) => Promise.all(sandboxes.map((sandbox) => sandbox.terminate()));
  try {
    await end([await make()]);
    for (let round = 0; round < rounds; round++) {
      await hostIsIdle();
      const parent = await samples.timed("create from a ready machine", make);
      for (const count of childCounts) {
        const children = await fork(parent, count, `fork(${count})`);
        if (count === 1)
          for (const { id } of children)
            samples.record("private memory of a child, MiB", (await engine.meter(id as SandboxId)).memoryBytes / 2 ** 20);
        await end(children);
      }
      await end([parent]);
    }
    for (const delta of deltasMiB) {
      const parent = await make();
      if (delta > 0) await hold(parent, delta);
      for (let round = 0; round < Math.ceil(rounds / 3); round++) await end(await fork(parent, 1, `fork(1), ${delta} MiB changed`));
      await end([parent]);
    }
    const line = [await make()];
    for (let generation = 1; generation <= generations; generation++) {
      line.push(...(await fork(line.at(-1) as Sandbox, 1, `fork(1), generation ${generation}`)));
    }
    await end(line);
  } finally {
    await server.close();
    await Promise.all(engine.listTemplates().map(({ id }) => engine.deleteTemplate(id)));
    await engine.close({ sandboxes: "end" });
  }
}

async function fork(parent: Sandbox, count: number, what: string): Promise<readonly Sandbox[]> {
  await hostIsIdle();
  const children = await samples.timed(`${what} → all have answered`, () => parent.fork(count));
  samples.record(`${what}: parent stands still`, children.pausedMs ?? Number.NaN);
  // Next to nothing where a new base was made: its children share all of it.
  samples.record(`${what}: loaded by each child, MiB`, (children.snapshotBytes ?? Number.NaN) / 2 ** 20);
  return children;
}

/** A program that has changed this much memory, and keeps it. */
async function hold(sandbox: Sandbox, mib: number): Promise<void> {
  const program = `import os, time\nb = os.urandom(${mib} << 20)\nopen("/tmp/held", "w").close()\ntime.sleep(1e6)`;
  await sandbox.execBackground(["python3", "-c", program]).started;
  await sandbox.exec("until [ -e /tmp/held ]; do sleep 0.1; done");
}

async function withDriver(work: (driver: Driver) => Promise<void>): Promise<void> {
  const driver = await createMicrovmDriver({
    dataDir: path.join(scratch, "hand"),
    runtimeDir: path.join(scratch, "run"),
    accel,
    log: silent,
  });
  try {
    await work(driver);
  } finally {
    await driver.sweep(new Set());
    await driver.close();
  }
}

function print(): void {
  const boot = samples.median(coldBoot);
  console.log(`${hostLine(host)}, microvm-${accel}, ${rounds} rounds\n`);
  console.log("| step | median | 90 % | ÷ cold boot |\n| --- | ---: | ---: | ---: |");
  for (const [name, values] of samples) {
    const ratio = name.endsWith("MiB") ? "" : (samples.median(name) / boot).toFixed(3);
    console.log(`| ${name} | ${samples.median(name).toFixed(1)} | ${quantile(values, 0.9).toFixed(1)} | ${ratio} |`);
  }
  const answered = (what: string) => samples.median(`${what} → all have answered`);
  const stood = (what: string) => samples.median(`${what}: parent stands still`);
  const curves: readonly Chart[] = [
    {
      title: "fork(1) by changed memory",
      x: "MiB",
      series: [
        { name: "child has answered", points: deltasMiB.map((mib) => [mib, answered(`fork(1), ${mib} MiB changed`)]) },
        { name: "parent stands still", points: deltasMiB.map((mib) => [mib, stood(`fork(1), ${mib} MiB changed`)]) },
      ],
    },
    {
      title: "fork(1) by generation",
      x: "generation",
      series: [
        {
          name: "child has answered",
          points: Array.from({ length: generations }, (_, index) => [index + 1, answered(`fork(1), generation ${index + 1}`)]),
        },
      ],
    },
    {
      title: "fork(n): all have answered",
      x: "children",
      series: [{ name: "all have answered", points: childCounts.map((count) => [count, answered(`fork(${count})`)]) }],
    },
  ];
  if (file) writeFileSync(file, drawCharts(curves, `ms, microvm-${accel}`));
}
