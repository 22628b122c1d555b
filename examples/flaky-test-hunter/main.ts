// Finds flaky tests: warms a repository once, forks it, and lets each child run the suite in its own way.
import { readdir, readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { create, type Sandbox } from "@mitos/sdk";

const { values } = parseArgs({ options: { runs: { type: "string", default: "16" }, batch: { type: "string", default: "8" } } });
const runs = Number(values.runs);
const batch = Number(values.batch);
if (!(runs >= 2 && batch >= 1)) {
  console.error("usage: node examples/flaky-test-hunter/main.ts [--runs 16] [--batch 8]");
  process.exit(2);
}

interface Run {
  readonly order: readonly string[];
  /** Test → log. */
  readonly failed: Readonly<Record<string, string>>;
}

await using base = await create({ resources: { memSizeMiB: 512 }, timeoutSeconds: 600 });
await warm(base);
const results = await runInChildren(base);

const names = [...results[0]!.order].sort();
const failures = (name: string) => results.filter(({ failed }) => name in failed);
const flaky = names.filter((name) => failures(name).length > 0 && failures(name).length < runs);
const broken = names.filter((name) => failures(name).length === runs);

console.log(`\n${runs} runs of ${names.length} tests`);
for (const name of flaky) console.log(`  flaky   ${name}: failed ${failures(name).length} of ${runs}`);
for (const name of broken) console.log(`  broken  ${name}: failed every time`);
for (const name of names.filter((name) => failures(name).length === 0)) console.log(`  stable  ${name}`);

for (const name of flaky) {
  const seed = results.findIndex(({ failed }) => name in failed);
  const { order, failed } = results[seed]!;
  console.log(
    `\n${name}, in run(${seed}), after ${order.slice(0, order.indexOf(name)).join(", ") || "nothing"}\n${failed[name]!.trimEnd()}`,
  );
}

/** All that is slow happens here, once: copying the repository, importing it, filling its database. */
async function warm(sandbox: Sandbox): Promise<void> {
  const folder = new URL("repository/", import.meta.url);
  for (const name of await readdir(folder)) await sandbox.files.write(`/workspace/${name}`, await readFile(new URL(name, folder)));
  const { error } = await sandbox.runCode(`
import sys; sys.path.insert(0, "/workspace")
import run, shop, tests
shop.write_catalogue("/tmp/catalogue.csv", 200_000)
tests.catalogue = shop.load_catalogue("/tmp/catalogue.csv")
`);
  if (error) throw new Error(`the repository could not be warmed: ${error.name}: ${error.value}`);
}

/** In batches, since every child needs the memory that its parent uses. */
async function runInChildren(parent: Sandbox): Promise<Run[]> {
  const all: Run[] = [];
  while (all.length < runs) {
    const children = await parent.fork(Math.min(batch, runs - all.length));
    console.log(`forked ${children.length}, the parent stood still for ${Math.round(children.pausedMs ?? 0)} ms`);
    try {
      const first = all.length;
      all.push(...(await Promise.all(children.map((child, index) => runSuite(child, first + index)))));
    } finally {
      await Promise.all(children.map((child) => child.terminate()));
    }
  }
  return all;
}

/** The order is the seed's; randomness, threads and clock are the child's own. */
async function runSuite(child: Sandbox, seed: number): Promise<Run> {
  const { error, logs } = await child.runCode(`run.run(${seed})`);
  if (error) throw new Error(`run(${seed}): ${error.name}: ${error.value}`);
  return JSON.parse(logs.stdout.join("")) as Run;
}
