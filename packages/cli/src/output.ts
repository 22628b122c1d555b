import { Option } from "commander";
import { type Failure, UsageError } from "./exit.ts";
import { paint } from "./style.ts";

/** `error:`, `cause:` and `next step:` lines on standard error. */
export function printFailure({ message, cause, nextStep }: Failure): void {
  const label = (text: string, style: "red" | "bold") => paint(process.stderr, style, text);
  const lines = [`${label("error:", "red")} ${message}`];
  if (cause) lines.push(`${label("cause:", "bold")} ${cause}`);
  if (nextStep) lines.push(`${label("next step:", "bold")} ${nextStep}`);
  process.stderr.write(`${lines.join("\n")}\n`);
}

export function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

export function printJson(value: unknown): void {
  print(JSON.stringify(value, null, 2));
}

/** Resolves when the bytes have been taken, so that a slow reader of our output slows the program in the sandbox. */
export function write(stream: NodeJS.WriteStream, data: Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    stream.write(data, (error) => (error ? reject(error) : resolve()));
  });
}

export interface OutputOptions {
  readonly output?: string;
  readonly json?: boolean;
}

/** The flags of every command that lists or describes. Fresh ones: an option belongs to one command. */
export function outputFlags(): readonly [Option, Option] {
  const formats = new Option("-o, --output <format>", "table or json").argParser((text: string) => {
    if (text === "table" || text === "json") return text;
    throw new UsageError(`unknown output format '${text}'`, "Use -o table or -o json.");
  });
  formats.argChoices = ["table", "json"];
  return [formats, new Option("--json", "the same as -o json")];
}

export function isJson({ output, json }: OutputOptions): boolean {
  return json === true || output === "json";
}

export type Rows = readonly (readonly (string | undefined)[])[];

/**
 * Two spaces between columns, the last one not padded, `-` for what is missing.
 *
 * @param width - of the terminal: the widest columns are cut until a line fits. Default: as wide as it gets
 */
export function table(header: readonly string[], rows: Rows, width = Number.POSITIVE_INFINITY): string {
  const cells = [header, ...rows.map((row) => row.map((cell) => cell || "-"))];
  const widths = header.map((_, column) => Math.max(...cells.map((row) => row[column]!.length)));
  narrow(widths, width);
  const fit = (cell: string, column: number) => (cell.length > widths[column]! ? `${cell.slice(0, widths[column]! - 1)}…` : cell);
  return cells
    .map((row) =>
      row.map((cell, column) => (column === row.length - 1 ? fit(cell, column) : fit(cell, column).padEnd(widths[column]!))).join("  "),
    )
    .join("\n");
}

const columnWidthMin = 8;

function narrow(widths: number[], width: number): void {
  for (;;) {
    const total = widths.reduce((sum, each) => sum + each, 2 * (widths.length - 1));
    const widest = Math.max(...widths);
    if (total <= width || widest <= columnWidthMin) return;
    widths[widths.lastIndexOf(widest)]!--;
  }
}

/** On a terminal as wide as it is, its header bold; elsewhere nothing is cut. */
export function printTable(header: readonly string[], rows: Rows): void {
  const [first, ...rest] = table(header, rows, process.stdout.isTTY ? process.stdout.columns : undefined).split("\n");
  print([paint(process.stdout, "bold", first!), ...rest].join("\n"));
}

/** `12s`, `5m`, `3h`, `2d` */
export function age(seconds: number): string {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)}h`;
  return `${Math.floor(seconds / 86_400)}d`;
}

/** `17 B`, `1.5 KiB`, `20.0 MiB` */
export function byteSize(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; bytes >= 1024 && unit < units.length - 1; unit++) bytes /= 1024;
  return `${unit === 0 ? bytes : bytes.toFixed(1)} ${units[unit]}`;
}
