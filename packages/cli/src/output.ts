import { type Failure, UsageError } from "./exit.ts";

/** `error:`, `cause:` and `next step:` lines on standard error. */
export function printFailure({ message, cause, nextStep }: Failure): void {
  const lines = [`error: ${message}`];
  if (cause) lines.push(`cause: ${cause}`);
  if (nextStep) lines.push(`next step: ${nextStep}`);
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

export type OutputFormat = "table" | "json";

export function outputFormat({ output, json }: { output?: string; json?: boolean }): OutputFormat {
  if (json) return "json";
  if (output === undefined || output === "table") return "table";
  if (output === "json") return "json";
  throw new UsageError(`unknown output format '${output}'`, "Use -o table or -o json.");
}

/** Two spaces between columns, the last one not padded, `-` for what is missing. */
export function table(header: readonly string[], rows: readonly (readonly (string | undefined)[])[]): string {
  const cells = [header, ...rows.map((row) => row.map((cell) => cell || "-"))];
  const widths = header.map((_, column) => Math.max(...cells.map((row) => row[column]?.length ?? 0)));
  return cells
    .map((row) => row.map((cell, column) => (column === row.length - 1 ? cell : cell!.padEnd(widths[column]!))).join("  "))
    .join("\n");
}

/** `12s`, `5m`, `3h`, `2d` */
export function age(seconds: number): string {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)}h`;
  return `${Math.floor(seconds / 86_400)}d`;
}
