// Loads a notebook's data once, forks it into what-ifs that each compute and plot, and puts the plots side by side into one HTML file.
import { createReadStream } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { create, type Sandbox } from "@mitos/sdk";

const { values } = parseArgs({
  options: {
    /** A gzipped tar of Python packages, for sandboxes whose Python has no numpy and matplotlib. */
    packages: { type: "string" },
    out: { type: "string", default: "what-ifs.html" },
  },
});

/** What differs from the household as it is: 5 kW of panels, no battery, 0.32 € a kWh. */
const whatIfs: Readonly<Record<string, string>> = {
  "as it is": "panels_kw=5, battery_kwh=0, price=0.32",
  "a battery of 8 kWh": "panels_kw=5, battery_kwh=8, price=0.32",
  "twice the panels": "panels_kw=10, battery_kwh=0, price=0.32",
  "a battery, and cheap nights": "panels_kw=5, battery_kwh=8, price=0.32, tariff=lambda hour: 0.6 if hour < 6 else 1.1",
};

interface Outcome {
  readonly title: string;
  readonly boughtKwh: number;
  readonly soldKwh: number;
  readonly euros: number;
  /** Base64. */
  readonly png: string;
}

await using notebook = await create({ resources: { memSizeMiB: 1024 }, timeoutSeconds: 900 });
await load(notebook);
const children = await notebook.fork(Object.keys(whatIfs).length);
console.log(`forked ${children.length}, the parent stood still for ${Math.round(children.pausedMs ?? 0)} ms`);
try {
  const outcomes = await Promise.all(Object.entries(whatIfs).map(([title, arguments_], index) => ask(children[index]!, title, arguments_)));
  for (const { title, boughtKwh, soldKwh, euros } of outcomes)
    console.log(`${title}: ${boughtKwh} kWh bought, ${soldKwh} kWh sold, ${euros} € a year`);
  await writeFile(values.out, page(outcomes));
  console.log(`wrote ${values.out}`);
} finally {
  await Promise.all(children.map((child) => child.terminate()));
}

async function load(sandbox: Sandbox): Promise<void> {
  if (values.packages) await installPackages(sandbox, values.packages);
  await sandbox.files.write("/workspace/year.csv", syntheticYear());
  const { error } = await sandbox.runCode(await readFile(new URL("notebook.py", import.meta.url), "utf8"), { timeoutSeconds: 300 });
  if (error?.name === "ModuleNotFoundError") {
    console.error(`${error.value} in the sandbox: bring it in with --packages, as the README of this example says`);
    await sandbox.terminate();
    process.exit(1);
  }
  if (error) throw new Error(`the notebook could not be loaded: ${error.name}: ${error.value}`);
}

async function installPackages(sandbox: Sandbox, tar: string): Promise<void> {
  await sandbox.files.write("/workspace/packages.tar.gz", createReadStream(tar));
  const unpack = "mkdir packages && tar -xzf packages.tar.gz -C packages && rm packages.tar.gz";
  const { exitCode, stderr } = await sandbox.exec(unpack, { timeoutSeconds: 300 });
  if (exitCode !== 0) throw new Error(`the packages could not be unpacked: ${stderr}`);
  await sandbox.runCode("import sys; sys.path.insert(0, '/workspace/packages')");
}

async function ask(child: Sandbox, title: string, arguments_: string): Promise<Outcome> {
  const code = `bought, sold, euros = year(${arguments_})\ndraw(${JSON.stringify(title)}, euros)\n[round(bought), round(sold), round(euros.sum())]`;
  const { error, results, text } = await child.runCode(code, { timeoutSeconds: 300 });
  const png = results.find((result) => result.png)?.png;
  if (error || !png) throw new Error(`${title}: ${error ? `${error.name}: ${error.value}` : "no plot"}`);
  const [boughtKwh, soldKwh, euros] = JSON.parse(text!) as [number, number, number];
  return { title, boughtKwh, soldKwh, euros, png };
}

/** Sun by season and hour with cloudy days in between, use with a morning and an evening: the same each time. */
function syntheticYear(): string {
  const lines = ["hour,sun_kw_per_kw,use_kw"];
  for (let hour = 0; hour < 8760; hour++) {
    const day = Math.floor(hour / 24);
    const season = 0.55 - 0.45 * Math.cos(((day + 10) / 365) * 2 * Math.PI);
    const clouds = 0.6 + 0.4 * Math.sin(day * 1.7) * Math.sin(day * 0.31);
    const sun = Math.max(0, Math.sin((((hour % 24) - 6) / 12) * Math.PI)) * season * clouds;
    const use = 0.25 + 0.5 * Math.exp(-(((hour % 24) - 7) ** 2) / 4) + 0.9 * Math.exp(-(((hour % 24) - 19) ** 2) / 6);
    lines.push(`${hour},${sun.toFixed(4)},${use.toFixed(4)}`);
  }
  return `${lines.join("\n")}\n`;
}

function page(outcomes: readonly Outcome[]): string {
  const figures = outcomes.map(
    ({ title, boughtKwh, soldKwh, euros, png }) => `<figure>
  <img alt="${title}: euros by month" src="data:image/png;base64,${png}">
  <figcaption><b>${title}</b><br>${boughtKwh} kWh bought, ${soldKwh} kWh sold, <b>${euros} €</b> a year</figcaption>
</figure>`,
  );
  return `<!doctype html>
<meta charset="utf-8">
<title>What if</title>
<style>body { font: 16px sans-serif; display: flex; flex-wrap: wrap } figure { margin: 1em; text-align: center }</style>
${figures.join("\n")}
`;
}
