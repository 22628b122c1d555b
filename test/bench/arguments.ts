import { parseArgs } from "node:util";

export const imagesName = "images";
const roundsDefault = 15;

export interface MeasureArguments {
  readonly kind: "measure";
  readonly rounds: number;
  /** Names of what is measured. */
  readonly only: ReadonlySet<string>;
  readonly jsonFile: string | undefined;
}

/** What the user asked for cannot be done; the message says what can. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** Runs `work`; a UsageError of it is told without a stack, and ends the program with 2. */
export function orUsage<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    process.stderr.write(`error: ${error.message}\nnext:  npm run bench -- --help\n`);
    process.exit(2);
  }
}

/** @param names - what can be measured. @throws UsageError */
export function parseArguments(args: readonly string[], names: readonly string[]): MeasureArguments | { readonly kind: "help" } {
  const { values, positionals } = parse(args);
  if (values.help) return { kind: "help" };
  const [extra] = positionals;
  if (extra !== undefined) throw new UsageError(`${extra} is no option: the number of rounds is given as --rounds N`);
  const rounds = values.rounds === undefined ? roundsDefault : parseRounds(values.rounds);
  const only = values.only === undefined ? names : values.only.split(",");
  const unknown = only.find((name) => !names.includes(name));
  if (unknown !== undefined) throw new UsageError(`--only ${unknown}: there is only ${names.join(", ")}`);
  return { kind: "measure", rounds, only: new Set(only), jsonFile: values.json };
}

/**
 * What follows `--microvm` and `--profile`.
 *
 * @param file - where a picture is written to
 * @throws UsageError
 */
export function parseRoundsAndFile(
  flag: string,
  args: readonly string[],
  roundsDefault: number,
): { readonly rounds: number; readonly file: string | undefined } {
  const [rounds, file, ...extra] = args;
  if (args.some((arg) => arg.startsWith("-")) || extra.length > 0) {
    throw new UsageError(`${flag} ${args.join(" ")}: only a number of rounds and a file for the picture can follow`);
  }
  return { rounds: rounds === undefined ? roundsDefault : parseRounds(rounds), file };
}

function parseRounds(text: string): number {
  const rounds = Number(text);
  if (!Number.isInteger(rounds) || rounds < 1) throw new UsageError(`${text} rounds: a whole number from 1 is needed`);
  return rounds;
}

function parse(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      options: { rounds: { type: "string" }, only: { type: "string" }, json: { type: "string" }, help: { type: "boolean" } },
      allowPositionals: true,
    });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

export function usage(names: readonly string[]): string {
  return `npm run bench -- [--rounds N] [--only ROW[,ROW]] [--json FILE]

Measures sandboxes on gVisor, in turn with what somebody does with runsc by hand, and prints a table with medians, 99th percentiles and ratios.
Progress is on standard error.

  --rounds N     samples of each line (default: ${roundsDefault}); what takes long takes a part of them
  --only ROW,…   only these: ${names.join(", ")}
  --json FILE    all samples and figures as JSON
  --help         this

npm run bench -- --profile [ROUNDS [PICTURE.svg]] tells where the time of the hot paths goes.
npm run bench -- --microvm [ROUNDS [PICTURE.svg]] measures virtual machines.
`;
}
