import type { Bench } from "./bench.ts";
import type { Line, Row, Side } from "./row.ts";

/** The samples of one line. */
export type Taken = Readonly<Record<Side, readonly number[]>>;

export interface Measured {
  /** In the order of the table. Of a row that failed or was interrupted what had been taken until then. */
  readonly lines: ReadonlyMap<Line, Taken>;
  readonly failures: readonly { readonly row: string; readonly error: unknown }[];
}

export interface MeasureOptions {
  readonly rounds: number;
  /** Told before each round. */
  readonly onRound?: (row: Row, round: number, rounds: number) => void;
}

/** One row after the other: sets it up, takes the steps of every round in turn, and puts it away. A row that fails does not keep the others from being measured. */
export async function measure(rows: readonly Row[], bench: Bench, options: MeasureOptions): Promise<Measured> {
  const lines = new Map<Line, Record<Side, number[]>>();
  const failures: { row: string; error: unknown }[] = [];
  for (const row of rows) {
    if (bench.signal.aborted) break;
    for (const line of row.lines) lines.set(line, { ours: [], baseline: [], sameBuild: [] });
    try {
      await measureRow(row, bench, options, (line, side, value) => {
        const taken = lines.get(line);
        if (!taken) throw new Error(`a sample of a line that ${row.name} does not have: ${line.what}`);
        taken[side].push(value);
      });
    } catch (error) {
      if (bench.signal.aborted) break;
      failures.push({ row: row.name, error });
    }
  }
  return { lines, failures };
}

type RecordSample = (line: Line, side: Side, value: number) => void;

async function measureRow(row: Row, bench: Bench, { rounds: all, onRound }: MeasureOptions, record: RecordSample): Promise<void> {
  const rounds = Math.max(1, Math.round(all * (row.roundsShare ?? 1)));
  onRound?.(row, 0, rounds);
  await using open = await row.open(bench);
  for (let round = 0; round < rounds; round++) {
    if (round > 0) onRound?.(row, round, rounds);
    for (const step of round % 2 === 0 ? open.steps : open.steps.toReversed()) {
      if (bench.signal.aborted) return;
      for (const { line, side, value } of await step(round)) record(line, side, value);
    }
  }
}
