import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import type { Runsc } from "../../packages/engine/src/drivers/gvisor/find.ts";
import { parseArguments, parseRoundsAndFile } from "./arguments.ts";
import { baselineRunsc } from "./baseline-runsc.ts";
import type { Bench } from "./bench.ts";
import { type Figure, figureOf, type Report, tableOf } from "./report.ts";
import { type Bound, type Judge, type Line, ours, type Row, type Step } from "./row.ts";
import { measure } from "./runner.ts";
import { fitScale, fullScale } from "./scale.ts";
import { quantile } from "./statistics.ts";

describe("statistics", () => {
  it("a quantile is a sample: the smallest that the share of all are not above", () => {
    expect(quantile([4, 1, 3, 2], 0.5)).toBe(2);
    expect(quantile([3, 1, 2], 0.5)).toBe(2);
    expect(quantile([1, 2, 3], 0.99)).toBe(3);
    expect(quantile([...Array(200).keys()], 0.99)).toBe(197);
    expect(quantile([], 0.5)).toBeNaN();
  });
});

const reportWith = (...figures: Figure[]): Report => ({
  host: { cpu: "a processor", cores: 2, memoryMiB: 4096, kernel: "6", load: 0 },
  engine: "gvisor",
  runsc: "runsc of ours",
  runscByHand: "runsc of theirs",
  startedAt: "2026-01-01",
  rounds: 1,
  notes: [],
  figures,
  failures: [],
});

describe("a line", () => {
  const lineOf = (judge: Judge, reach?: Bound, aim?: Bound): Line => ({
    what: "a line",
    baseline: "another",
    unit: "ms",
    judge,
    ...(reach ? { reach } : {}),
    ...(aim ? { aim } : {}),
  });
  const taken = { ours: [10, 10, 40], baseline: [20, 20, 20], sameBuild: [] };

  it.each<[Judge, Bound, boolean]>([
    ["ratio", { atMost: 0.5 }, true],
    ["ratio", { atMost: 0.49 }, false],
    ["ratio", { atLeast: 0.5 }, true],
    ["ratio", { atLeast: 0.51 }, false],
    ["median", { atMost: 10 }, true],
    ["median", { atMost: 9 }, false],
    ["tail", { atMost: 4 }, true],
    ["tail", { atMost: 3 }, false],
  ])("judged by its %s has reached %o: %s", (judge, bound, isReached) => {
    expect(figureOf(lineOf(judge, bound), taken)).toMatchObject({ isReached, isAimed: null });
    expect(figureOf(lineOf(judge, undefined, bound), taken)).toMatchObject({ isReached: null, isAimed: isReached });
  });

  it("shows the ratio to the same build, and is not judged by it", () => {
    const line = lineOf("ratio", { atMost: 0.5 });
    const figure = figureOf(line, { ...taken, sameBuild: [8, 8, 8] });
    expect(figure).toMatchObject({
      ratio: 0.5,
      sameBuild: { median: 8, p99: 8, samples: [8, 8, 8] },
      sameBuildRatio: 1.25,
      isReached: true,
    });
    expect(tableOf(reportWith(figure))).toContain("| a line | 10.0 ms | 40.0 | 20.0 (another) | 0.50 | 1.25 | ≤ 0.5 | yes |");
  });

  it("has no ratio to the same build where that has no samples of its own", () => {
    const figure = figureOf(lineOf("ratio"), taken);
    expect(figure).toMatchObject({ ratio: 0.5, sameBuild: null, sameBuildRatio: null });
    expect(tableOf(reportWith(figure))).toContain("| a line | 10.0 ms | 40.0 | 20.0 (another) | 0.50 |  |  |  |");
  });
});

it("of a rate the 99th percentile is the slow end", () => {
  const line: Line = { what: "a line", unit: "MiB/s", judge: "median" };
  const rates = { ours: [3, 1, 2], baseline: [], sameBuild: [] };
  expect(figureOf(line, rates).ours).toMatchObject({ median: 2, p99: 1 });
  expect(figureOf({ ...line, unit: "ms" }, rates).ours).toMatchObject({ median: 2, p99: 3 });
});

it("the table's first line tells the build of both", () => {
  expect(tableOf(reportWith()).split("\n")[0]).toContain(", runsc of ours, by hand runsc of theirs, ");
});

describe("the runsc that is judged by", () => {
  const folder = mkdtempSync(path.join(os.tmpdir(), "mitos-bench-judging-"));
  afterAll(() => rmSync(folder, { recursive: true }));
  const own: Runsc = { path: "/ours/runsc", build: "runsc 20260905.0", ownFlags: [], fileId: "ours" };
  const distributionOf = (version: string) => {
    const file = path.join(folder, version);
    writeFileSync(file, `#!/bin/sh\necho runsc version ${version}\n`, { mode: 0o755 });
    return file;
  };

  it("is the distribution's where that is another version than ours", async () => {
    const distribution = distributionOf("20240729.0");
    expect(await baselineRunsc(own, distribution)).toMatchObject({ runsc: { path: distribution, build: "runsc 20240729.0" }, notes: [] });
  });

  it("is ours where both are of one version, so that nothing is measured twice", async () => {
    expect((await baselineRunsc(own, distributionOf("20260905.0"))).runsc).toBe(own);
  });

  it("is ours, with a note, where the distribution has none or too old a one", async () => {
    const missing = await baselineRunsc(own, path.join(folder, "missing"));
    expect(missing.runsc).toBe(own);
    expect(missing.notes).toEqual([expect.stringMatching(/the build that is ours as well: .*missing cannot be run$/)]);
    const tooOld = await baselineRunsc(own, distributionOf("20221219.0"));
    expect(tooOld.runsc).toBe(own);
    expect(tooOld.notes).toEqual([expect.stringMatching(/is of 20221219: too old/)]);
  });
});

describe("the runner", () => {
  const line: Line = { what: "a line", unit: "ms", judge: "median" };
  const rowOf = (name: string, steps: readonly Step[], onClosed = () => {}): Row => ({
    name,
    lines: [{ ...line, what: name }],
    open: async () => ({
      steps,
      async [Symbol.asyncDispose]() {
        onClosed();
      },
    }),
  });
  /** Nothing of it is used but its signal. */
  const benchOf = (signal = new AbortController().signal) => ({ signal }) as Bench;

  it("takes the steps of a row in turn, every second round backwards", async () => {
    const order: string[] = [];
    const step = (name: string) => async (round: number) => {
      order.push(`${name}${round}`);
      return [];
    };
    await measure([rowOf("row", [step("a"), step("b")])], benchOf(), { rounds: 3 });
    expect(order).toEqual(["a0", "b0", "b1", "a1", "a2", "b2"]);
  });

  it("puts a row that fails away, tells why, and measures the others", async () => {
    let closed = 0;
    const failing = rowOf(
      "failing",
      [
        async () => {
          throw new Error("broken");
        },
      ],
      () => closed++,
    );
    const working = rowOf("working", [async () => [ours(working.lines[0]!, 7)]]);
    const { lines, failures } = await measure([failing, working], benchOf(), { rounds: 2 });
    expect(closed).toBe(1);
    expect(failures).toEqual([{ row: "failing", error: expect.objectContaining({ message: "broken" }) }]);
    expect(lines.get(working.lines[0]!)?.ours).toEqual([7, 7]);
  });

  it("stops after the step that is under way, and puts the row away", async () => {
    const stop = new AbortController();
    let closed = 0;
    const row = rowOf(
      "row",
      [
        async () => {
          stop.abort();
          return [ours(row.lines[0]!, 1)];
        },
        async () => [ours(row.lines[0]!, 2)],
      ],
      () => closed++,
    );
    const { lines } = await measure([row, rowOf("never begun", [])], benchOf(stop.signal), { rounds: 9 });
    expect(closed).toBe(1);
    expect([...lines.values()]).toEqual([{ ours: [1], baseline: [], sameBuild: [] }]);
  });
});

describe("the scale", () => {
  it("is the whole one where there is memory for it", () => {
    expect(fitScale(fullScale, 64 * 2 ** 30)).toEqual({ scale: fullScale, notes: [] });
  });

  it("has fewer sandboxes where there is not, and says so", () => {
    const { scale, notes } = fitScale(fullScale, 4 * 2 ** 30);
    expect(scale).toMatchObject({ idleChildren: 38, sandboxes: [1, 10, 38] });
    expect(notes).toEqual([
      "idle children: 38 instead of 100, since 4096 MiB of memory are available",
      "sandboxes: 38 instead of 100, since 4096 MiB of memory are available",
    ]);
  });
});

describe("the command line", () => {
  const names = ["exec", "fork"];

  it("measures everything unless asked otherwise", () => {
    expect(parseArguments([], names)).toEqual({ kind: "measure", rounds: 15, only: new Set(names), jsonFile: undefined });
    expect(parseArguments(["--rounds", "3", "--only", "fork", "--json", "out.json"], names)).toEqual({
      kind: "measure",
      rounds: 3,
      only: new Set(["fork"]),
      jsonFile: "out.json",
    });
    expect(parseArguments(["--help"], names)).toEqual({ kind: "help" });
    expect(parseRoundsAndFile("--microvm", ["3", "picture.svg"], 9)).toEqual({ rounds: 3, file: "picture.svg" });
    expect(parseRoundsAndFile("--profile", [], 9)).toEqual({ rounds: 9, file: undefined });
  });

  it.each([
    [["--round", "3"], /Unknown option '--round'/],
    [["3"], /3 is no option: the number of rounds is given as --rounds N/],
    [["--rounds", "none"], /none rounds: a whole number/],
    [["--rounds", "0"], /0 rounds: a whole number/],
    [["--only", "fork,exce"], /--only exce: there is only exec, fork/],
    [["--json"], /argument missing/],
  ])("refuses %j", (args, message) => {
    expect(() => parseArguments(args, names)).toThrow(message);
  });

  it("refuses what virtual machines are not measured by", () => {
    expect(() => parseRoundsAndFile("--microvm", ["--rounds", "3"], 9)).toThrow(/only a number of rounds/);
    expect(() => parseRoundsAndFile("--profile", ["many"], 9)).toThrow(/many rounds: a whole number/);
  });
});
