import type { Bench } from "./bench.ts";

/**
 * How a line is judged: `ratio` = our median to the baseline's of the same run, which is what can be promised; `median` = ours as it is;
 * `tail` = our 99th percentile to our median.
 */
export type Judge = "ratio" | "median" | "tail";

export type Bound = { readonly atMost: number } | { readonly atLeast: number };

export type Unit = "ms" | "MiB" | "MiB/s" | "per s" | "% of a core" | "processes";

/** One line of the table. */
export interface Line {
  readonly what: string;
  /** What ours is compared with; absent where there is nothing to compare with. */
  readonly baseline?: string;
  readonly unit: Unit;
  readonly judge: Judge;
  /** What is promised. Absent: shown only. */
  readonly reach?: Bound;
  /** What comes after that. */
  readonly aim?: Bound;
}

/** `sameBuild`: what the baseline does, with the build of runsc that is ours where the baseline's is another one. Shown, and not judged by. */
export type Side = "ours" | "baseline" | "sameBuild";

export interface Sample {
  readonly line: Line;
  readonly side: Side;
  readonly value: number;
}

/** @param round - from 0 */
export type Step = (round: number) => Promise<readonly Sample[]>;

/** A row that is set up. Disposing of it ends what it has started. */
export interface OpenRow extends AsyncDisposable {
  /** Taken in turn in each round, every second round backwards: drift of the host hits all of them, and none always follows the same other. */
  readonly steps: readonly Step[];
}

/** What is set up and measured together: one line of the table or several. */
export interface Row {
  /** For `--only`. */
  readonly name: string;
  readonly lines: readonly Line[];
  /** It takes this share of the run's rounds, and at least one. Default: 1. */
  readonly roundsShare?: number;
  open(bench: Bench): Promise<OpenRow>;
}

export function ours(line: Line, value: number): Sample {
  return { line, side: "ours", value };
}

export function baseline(line: Line, value: number): Sample {
  return { line, side: "baseline", value };
}

export function sameBuild(line: Line, value: number): Sample {
  return { line, side: "sameBuild", value };
}
