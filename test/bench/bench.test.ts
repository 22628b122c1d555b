import { readFileSync } from "node:fs";
import path from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { engineUnderTest } from "../support/engine-under-test.ts";
import { onlyOn } from "../support/only-on.ts";
import { Bench } from "./bench.ts";
import { describeHost } from "./host.ts";
import { boundsText, type Report, reportOf, tableOf } from "./report.ts";
import { rowsOf } from "./rows/index.ts";
import { measure } from "./runner.ts";
import { fullScale, smallScale } from "./scale.ts";

const linesOf = (scale: typeof fullScale) => rowsOf(scale).flatMap(({ lines }) => lines);

describe("a small run", () => {
  onlyOn("gvisor", "what it is compared with is runsc by hand");
  const begun: string[] = [];
  let report: Report;
  beforeAll(async () => {
    if (engineUnderTest !== "gvisor") return;
    await using bench = await Bench.open({ warmUp: smallScale.warmUp });
    const measured = await measure(rowsOf(smallScale), bench, { rounds: 1, onRound: ({ name }) => begun.push(name) });
    const { build: runsc } = bench.sameBuild;
    const { build: runscByHand } = bench.baseline;
    const circumstances = {
      host: describeHost(),
      engine: "gvisor",
      runsc,
      runscByHand,
      startedAt: "2026-01-01",
      rounds: 1,
      notes: ["a note"],
    };
    report = reportOf(circumstances, measured);
  });

  it("measures every line of every row, and fails in none", () => {
    expect(report.failures).toEqual([]);
    expect(begun).toEqual(rowsOf(smallScale).map(({ name }) => name));
    expect(report.figures.map(({ what }) => what)).toEqual(linesOf(smallScale).map(({ what }) => what));
  });

  it("takes numbers that mean something", () => {
    for (const { what, unit, ours, baseline, ratio, sameBuild } of report.figures) {
      // Machines that do nothing use no processor time.
      const least = unit === "% of a core" ? 0 : Number.MIN_VALUE;
      for (const value of [...ours.samples, ...(baseline?.samples ?? []), ...(sameBuild?.samples ?? []), ours.median, ours.p99]) {
        expect(value, what).toBeGreaterThanOrEqual(least);
        expect(value, what).toBeLessThan(Number.POSITIVE_INFINITY);
      }
      if (ratio !== null) expect(ratio, what).toBeGreaterThan(0);
    }
  });

  it("measures what is done by hand with the server's build as well, where it is judged by another one", () => {
    const byHand = report.figures.filter(({ baseline }) => /by hand|`runsc /.test(baseline?.what ?? ""));
    expect(byHand).toHaveLength(8);
    for (const { what, sameBuild, baseline } of report.figures) {
      const times = report.runsc !== report.runscByHand && byHand.some((line) => line.what === what) ? baseline!.samples.length : undefined;
      expect(sameBuild?.samples.length, what).toBe(times);
    }
  });

  it("writes them as JSON and as a table", () => {
    expect(JSON.parse(JSON.stringify(report))).toEqual(report);
    const table = tableOf(report);
    expect(table).not.toMatch(/NaN|undefined|null/);
    for (const { what } of report.figures) expect(table).toContain(`| ${what} | `);
    expect(table).toContain("Note: a note.");
  });

  // Whatever else the host does: what is stopped uses no time, and what is idle has a sentry, a gofer and a shim, and not the memory of ten.
  it("finds nothing at work among machines that wait, and few processes and little memory in an idle one", () => {
    const medianOf = (unit: string, part: string) =>
      report.figures.find((figure) => figure.unit === unit && figure.what.includes(part))!.ours.median;
    expect(medianOf("% of a core", "waiting")).toBeLessThanOrEqual(2);
    expect(medianOf("processes", "idle")).toBeGreaterThanOrEqual(3);
    expect(medianOf("MiB", "idle")).toBeGreaterThan(10);
    expect(medianOf("MiB", "idle")).toBeLessThan(450);
  });
});

it("docs/performance.md has every line of the full run, with what is promised of it", () => {
  const text = readFileSync(path.join(import.meta.dirname, "../../docs/performance.md"), "utf8");
  const rows = new Map(text.split("\n").map((row) => [row.split(" | ")[0]!.slice(2), row]));
  for (const line of linesOf(fullScale)) expect(rows.get(line.what), line.what).toContain(` | ${boundsText(line)} | `);
});
