import { type HostDescription, hostLine } from "./host.ts";
import type { Bound, Judge, Line, Unit } from "./row.ts";
import type { Measured, Taken } from "./runner.ts";
import { median, quantile } from "./statistics.ts";

/** How absolute figures came about, which explains them and makes them no promise. */
export interface Circumstances {
  readonly host: HostDescription;
  readonly engine: string;
  /** Of the sandboxes. */
  readonly runsc: string;
  /** Of what is done by hand and judged by. */
  readonly runscByHand: string;
  readonly startedAt: string;
  readonly rounds: number;
  /** What was measured otherwise than usual. */
  readonly notes: readonly string[];
}

export interface SideFigures {
  readonly median: number;
  /** What 99 % are not worse than. */
  readonly p99: number;
  readonly samples: readonly number[];
}

/** One line of the table, and what stands in the JSON for it. */
export interface Figure {
  readonly what: string;
  readonly unit: Unit;
  readonly judge: Judge;
  readonly ours: SideFigures;
  readonly baseline: (SideFigures & { readonly what: string }) | null;
  /** Our median to the baseline's, or our 99th percentile to our median where that is what is promised. */
  readonly ratio: number | null;
  /** What the baseline does, with our build of runsc. Null where that is the baseline's build, and where the baseline is none of runsc by hand. */
  readonly sameBuild: SideFigures | null;
  /** Our median to that of `sameBuild`. */
  readonly sameBuildRatio: number | null;
  readonly reach: Bound | null;
  readonly aim: Bound | null;
  /** Null where nothing is promised. */
  readonly isReached: boolean | null;
  readonly isAimed: boolean | null;
}

export interface Report extends Circumstances {
  readonly figures: readonly Figure[];
  /** Names of rows that could not be measured to their end, and why. */
  readonly failures: readonly { readonly row: string; readonly error: string }[];
}

export function reportOf(circumstances: Circumstances, { lines, failures }: Measured): Report {
  return {
    ...circumstances,
    figures: [...lines].flatMap(([line, taken]) => (isComplete(line, taken) ? [figureOf(line, taken)] : [])),
    failures: failures.map(({ row, error }) => ({ row, error: error instanceof Error ? error.message : String(error) })),
  };
}

function isComplete(line: Line, { ours, baseline }: Taken): boolean {
  return ours.length > 0 && (line.baseline === undefined || baseline.length > 0);
}

export function figureOf(line: Line, taken: Taken): Figure {
  const ours = sideOf(taken.ours, line.unit);
  const baseline = line.baseline === undefined ? null : { what: line.baseline, ...sideOf(taken.baseline, line.unit) };
  const ratio = line.judge === "tail" ? ours.p99 / ours.median : baseline ? ours.median / baseline.median : null;
  const sameBuild = taken.sameBuild.length > 0 ? sideOf(taken.sameBuild, line.unit) : null;
  const judged = line.judge === "median" ? ours.median : ratio;
  const holds = (bound: Bound | undefined) => (bound === undefined || judged === null ? null : isWithin(judged, bound));
  return {
    what: line.what,
    unit: line.unit,
    judge: line.judge,
    ours,
    baseline,
    ratio,
    sameBuild,
    sameBuildRatio: sameBuild && ours.median / sameBuild.median,
    reach: line.reach ?? null,
    aim: line.aim ?? null,
    isReached: holds(line.reach),
    isAimed: holds(line.aim),
  };
}

function sideOf(samples: readonly number[], unit: Unit): SideFigures {
  return { median: median(samples), p99: quantile(samples, isRate(unit) ? 0.01 : 0.99), samples };
}

/** Of a rate more is better. */
function isRate(unit: Unit): boolean {
  return unit === "MiB/s" || unit === "per s";
}

function isWithin(value: number, bound: Bound): boolean {
  return "atMost" in bound ? value <= bound.atMost : value >= bound.atLeast;
}

/** As Markdown: the table, and what there is to know about it. */
export function tableOf({ figures, failures, notes, host, engine, runsc, runscByHand, startedAt, rounds }: Report): string {
  return [
    `${hostLine(host)}, ${engine}, ${runsc}, by hand ${runscByHand}, ${rounds} rounds, ${startedAt}\n`,
    "| what | ours, median | p99 | baseline, median | ratio | ÷ same build | reach, then aim for | reached |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ...figures.map(rowOf),
    ...notes.map((note) => `\nNote: ${note}.`),
    ...failures.map(({ row, error }) => `\nFailed: ${row}: ${error}`),
  ].join("\n");
}

function rowOf(figure: Figure): string {
  const { what, unit, ours, baseline, ratio, sameBuildRatio, isReached, isAimed } = figure;
  const reached = isAimed ? "yes, and the aim" : isReached === null ? "" : isReached ? "yes" : "**no**";
  const cells = [
    what,
    `${number(ours.median)} ${unit}`,
    number(ours.p99),
    baseline ? `${number(baseline.median)} (${baseline.what})` : "",
    ratio?.toFixed(2) ?? "",
    sameBuildRatio?.toFixed(2) ?? "",
    boundsText(figure),
    reached,
  ];
  return `| ${cells.join(" | ")} |`;
}

/** With the unit where it is no ratio that is judged. */
export function boundsText({ judge, unit, reach, aim }: Pick<Figure | Line, "judge" | "unit" | "reach" | "aim">): string {
  const bounds = [reach, aim].filter((bound) => bound != null);
  const texts = bounds.map((bound) => ("atMost" in bound ? `≤ ${bound.atMost}` : `≥ ${bound.atLeast}`));
  return texts.map((text) => (judge === "median" ? `${text} ${unit}` : text)).join(", ");
}

/** With the digits that mean something. */
function number(value: number): string {
  return value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0);
}
