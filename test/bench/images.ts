import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { type Log, openEngine } from "@mitos/engine";
import { create, SandboxServer, Template } from "@mitos/sdk";
import { buildTemplate } from "@mitos/sdk/build";
import { startServer } from "@mitos/server";
import { baseImageFolder } from "../../scripts/lib/base-image.mjs";
import { findImageTool } from "../../scripts/lib/image-tools.mjs";
import { debian, onDebian } from "../support/base-image.ts";
import { engineOptions } from "../support/engine-under-test.ts";
import { layerOf } from "../support/oci.ts";
import { startRegistry } from "../support/registry.ts";
import { median, Samples } from "./statistics.ts";

/** One step, and what it is compared with in the same run. */
export interface Figure {
  readonly step: string;
  readonly ms: readonly number[];
  /** Another figure's step. */
  readonly baseline: string;
}

export interface DiskFigure {
  readonly template: string;
  /** Of its root's files. */
  readonly rootBytes: number;
  /** Of layers that no other template has. */
  readonly ownBytes: number;
  readonly snapshotBytes: number;
}

const unpack = "umoci unpacks the image, from a folder";
const full = "build of three steps, none stored";

export interface ImageFigures {
  readonly figures: readonly Figure[];
  readonly disk: readonly DiskFigure[];
}

export interface ImageOptions {
  readonly rounds: number;
  readonly log: Log;
  /** Ends it after the round that is under way. */
  readonly signal?: AbortSignal;
}

/** What images and builds cost: a real Debian with Python from a registry on this machine, each round on a new data directory. */
export async function measureImages({ rounds, log, signal }: ImageOptions): Promise<ImageFigures> {
  const samples = new Samples();
  const baselines = new Map<string, string>();
  const timed = (step: string, baseline: string, work: () => unknown) => {
    baselines.set(step, baseline);
    return samples.timed(step, work);
  };
  let disk: DiskFigure[] = [];
  await using registry = await startRegistry();
  const image = await registry.push(await debian("python"), "debian:python");
  const second = await registry.push(await onDebian("python", [layerOf([{ name: "srv/own", content: "another" }])]), "team/second:1");
  for (let round = 0; round < rounds && !signal?.aborted; round++) {
    await using server = await startBenchServer(log);
    const useOnce = async (template: string) => {
      const sandbox = await create({ template, baseUrl: server.url });
      await sandbox.exec("true");
      await sandbox.terminate();
    };
    const build = (name: string, last: string, noCache = false) => {
      const template = new Template().fromImage(image).run("echo one > /one").run("echo two > /two").run(last);
      return buildTemplate(name, template, { baseUrl: server.url, noCache });
    };
    using unpacked = temporaryFolder();
    await timed(unpack, unpack, () => unpackWithUmoci(unpacked.path));
    await timed("image that is not here → first exec", unpack, () => useOnce(image));
    await timed("second image with the same base → first exec", unpack, () => useOnce(second));
    await timed("another sandbox of it → first exec", unpack, () => useOnce(second));
    await timed(full, full, () => build("built", "echo three > /three", true));
    await timed("again under another name, nothing changed", full, () => build("again", "echo three > /three"));
    await timed("again, last step changed", full, () => build("changed", "echo other > /three"));
    const { templates } = await new SandboxServer(server.url).diskUsage();
    disk = templates.map(({ id, ...bytes }) => ({ template: nameOf(id), ...bytes }));
  }
  return { figures: [...samples].map(([step, ms]) => ({ step, ms, baseline: baselines.get(step) ?? step })), disk };
}

/** As Markdown. */
export function describeImages({ figures, disk }: ImageFigures): string {
  const medianOf = (step: string) => median(figures.find((figure) => figure.step === step)?.ms ?? []);
  const mib = (bytes: number) => (bytes / 2 ** 20).toFixed(1);
  return [
    "| images and builds | median ms | × its baseline |\n| --- | ---: | ---: |",
    ...figures.map(
      ({ step, baseline }) => `| ${step} | ${medianOf(step).toFixed(0)} | ${(medianOf(step) / medianOf(baseline)).toFixed(2)} |`,
    ),
    "\nBaselines: what umoci needs for the image's files alone, and a build in full.\n",
    "| disk | files MiB | of its own MiB | saved machine MiB |\n| --- | ---: | ---: | ---: |",
    ...disk.map(
      ({ template, rootBytes, ownBytes, snapshotBytes }) =>
        `| ${template} | ${mib(rootBytes)} | ${mib(ownBytes)} | ${mib(snapshotBytes)} |`,
    ),
  ].join("\n");
}

function nameOf(id: string): string {
  return id.replace(/^127\.0\.0\.1:\d+\//, "");
}

function unpackWithUmoci(folder: string): void {
  const tool = findImageTool("umoci");
  if (!tool) throw new Error("umoci is missing: npm run setup");
  const rootless = process.getuid?.() === 0 ? [] : ["--rootless"];
  const args = [...tool.args, "unpack", ...rootless, "--image", `${baseImageFolder()}:python`, path.join(folder, "bundle")];
  execFileSync(tool.command, args, { env: { ...process.env, ...tool.env }, stdio: "pipe" });
}

function temporaryFolder(): { path: string } & Disposable {
  const folder = mkdtempSync(path.join(os.tmpdir(), "mitos-bench-umoci-"));
  return { path: folder, [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }) };
}

async function startBenchServer(log: Log): Promise<{ url: string } & AsyncDisposable> {
  const dataDir = mkdtempSync(path.join(os.tmpdir(), "mitos-bench-"));
  const engine = await openEngine({ dataDir, ...engineOptions, log });
  const server = await startServer({ engine, host: "127.0.0.1", port: 0, log, version: "bench" });
  return {
    url: server.url,
    async [Symbol.asyncDispose]() {
      await server.close();
      await engine.close({ sandboxes: "end" });
      rmSync(dataDir, { recursive: true, force: true });
    },
  };
}
