// `npm run bench`: what the steps of a sandbox's life cost on this machine, against the real engine, over HTTP.
// Absolute figures depend on the machine; the ratios to one exec in the same run are what can be compared.
import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { type Log, openEngine } from "@mitos/engine";
import { create, type Sandbox } from "@mitos/sdk";
import { startServer } from "@mitos/server";
import { engineOptions } from "../support/engine-under-test.ts";
import { describeImages, measureImages } from "./images.ts";

const rounds = Number(process.argv[2] ?? 15);
const silent: Log = { debug: nothing, info: nothing, warn: nothing, error: nothing };
function nothing() {}

/** What a neighbour does while the execs of a sandbox that behaves are measured. */
const misbehaving = {
  "computes in four processes": "for i in 1 2 3 4; do while :; do :; done & done; wait",
  "forks without end": "bomb() { bomb | bomb & }; while :; do bomb; sleep 0.1; done",
  "prints without end": "yes",
};

const dataDir = mkdtempSync(path.join(os.tmpdir(), "mitos-bench-"));
const engine = await openEngine({ dataDir, ...engineOptions, log: silent });
const server = await startServer({ engine, host: "127.0.0.1", port: 0, log: silent, version: "bench" });
const samples = new Map<string, number[]>();

try {
  await timed("template built", () => engineReady());
  const warm = await create({ baseUrl: server.url });
  for (let round = 0; round < rounds; round++) await measureOne(warm);
  for (const [what, command] of Object.entries(misbehaving)) await measureBeside(warm, what, command);
  await warm.terminate();
  print();
} finally {
  await server.close();
  await Promise.all(engine.listTemplates().map(({ id }) => engine.deleteTemplate(id)));
  await engine.close({ sandboxes: "end" });
  rmSync(dataDir, { recursive: true, force: true });
}
// Each round begins from nothing, and takes as long as many of the others.
console.log(`\n${describeImages(await measureImages({ rounds: Math.ceil(rounds / 5), log: silent }))}`);

async function engineReady(): Promise<void> {
  await (await create({ baseUrl: server.url })).terminate();
}

async function measureOne(warm: Sandbox): Promise<void> {
  await timed("exec `true`", () => warm.exec("true"));
  await timed("run_code `1+1` (Python)", () => warm.runCode("1+1"));
  await timed("write and read 1 MiB", async () => {
    await warm.files.write("/workspace/bench", new Uint8Array(1 << 20));
    await warm.files.readBytes("/workspace/bench");
  });
  const fresh = await timed("create", () => create({ baseUrl: server.url }));
  await timed("first exec after create", () => fresh.exec("true"));
  for (const count of [1, 4]) {
    const children = await timed(`live fork, ${count} ${count === 1 ? "child" : "children"}`, () => fresh.fork(count));
    record(`parent stands still, ${count} ${count === 1 ? "child" : "children"}`, children.pausedMs ?? Number.NaN);
    await Promise.all(children.map((child) => child.terminate()));
  }
  await timed("pause", () => fresh.pause());
  await timed("resume", () => fresh.resume());
  await timed("terminate", () => fresh.terminate());
}

/** The last column of its row is what the neighbour costs: the ratio to a quiet exec. */
async function measureBeside(warm: Sandbox, what: string, command: string): Promise<void> {
  const neighbour = await create({ baseUrl: server.url, resources: { processesMax: 128 } });
  await neighbour.execBackground(["sh", "-c", command]).started;
  await new Promise((resolve) => setTimeout(resolve, 2_000)); // until it is at its worst
  for (let round = 0; round < rounds; round++) await timed(`exec \`true\` while a neighbour ${what}`, () => warm.exec("true"));
  await neighbour.terminate();
}

async function timed<T>(name: string, work: () => Promise<T>): Promise<T> {
  const started = performance.now();
  const result = await work();
  record(name, performance.now() - started);
  return result;
}

function record(name: string, ms: number): void {
  samples.set(name, [...(samples.get(name) ?? []), ms]);
}

function print(): void {
  const quantile = (values: number[], share: number) => values.toSorted((a, b) => a - b)[Math.floor((values.length - 1) * share)]!;
  const unit = quantile(samples.get("exec `true`")!, 0.5);
  console.log(`${os.cpus()[0]?.model.trim()}, ${os.cpus().length} cores, Linux ${os.release()}, ${engine.isolation}, ${rounds} rounds\n`);
  console.log("| step | median ms | 90 % ms | × exec |\n| --- | ---: | ---: | ---: |");
  for (const [name, values] of samples) {
    const median = quantile(values, 0.5);
    console.log(`| ${name} | ${median.toFixed(1)} | ${quantile(values, 0.9).toFixed(1)} | ${(median / unit).toFixed(1)} |`);
  }
}
