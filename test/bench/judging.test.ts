import { describe, expect, it } from "vitest";
import { parseArguments, parseRoundsAndFile } from "./arguments.ts";
import type { Bench } from "./bench.ts";
import { figureOf } from "./report.ts";
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

describe("a line", () => {
  const lineOf = (judge: Judge, reach?: Bound, aim?: Bound): Line => ({
    what: "a line",
    baseline: "another",
    unit: "ms",
    judge,
    ...(reach ? { reach } : {}),
    ...(aim ? { aim } : {}),
  });
  const taken = { ours: [10, 10, 40], baseline: [20, 20, 20] };

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
});

it("of a rate the 99th percentile is the slow end", () => {
  const line: Line = { what: "a line", unit: "MiB/s", judge: "median" };
  expect(figureOf(line, { ours: [3, 1, 2], baseline: [] }).ours).toMatchObject({ median: 2, p99: 1 });
  expect(figureOf({ ...line, unit: "ms" }, { ours: [3, 1, 2], baseline: [] }).ours).toMatchObject({ median: 2, p99: 3 });
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
    expect([...lines.values()]).toEqual([{ ours: [1], baseline: [] }]);
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
