/** What a request for something inside a sandbox must look like, checked before anything is done. All of it throws invalid_input. */

import { isId, limits, MitosError } from "@mitos/protocol";
import { type Language, languages, type ProcessStart } from "./actions.ts";

const pidMax = 0x7fff_ffff;
const terminalSizeMax = 65_535;
const shortTextBytesMax = 256;
const vitalsIntervalSecondsMax = 3_600;

export function checkProcessStart(start: ProcessStart): void {
  const { argv, shellCommand } = start;
  if ((argv === undefined) === (shellCommand === undefined)) throw invalid("give exactly one of argv and a shell command");
  if (argv !== undefined) {
    if (argv.length === 0 || argv[0] === "") throw invalid("argv must name a program");
    let bytes = 0;
    for (const argument of argv) bytes += textBytes(argument, "an argument") + 1;
    if (bytes > limits.commandBytesMax) throw invalid(`the command is longer than ${limits.commandBytesMax} bytes`);
  }
  if (shellCommand !== undefined) {
    if (shellCommand === "") throw invalid("the command is empty");
    if (textBytes(shellCommand, "the command") > limits.commandBytesMax) {
      throw invalid(`the command is longer than ${limits.commandBytesMax} bytes`);
    }
  }
  if (start.cwd) checkPath(start.cwd, "cwd");
  if (start.user) checkShortText(start.user, "user");
  if (start.env) checkEnv(start.env);
  if (start.pty) {
    checkTerminalSize(start.pty.cols, start.pty.rows);
    if (start.pty.term) checkShortText(start.pty.term, "term");
  }
}

export function checkEnv(env: Readonly<Record<string, string>>): void {
  const entries = Object.entries(env);
  if (entries.length > limits.envEntriesMax) throw invalid(`more than ${limits.envEntriesMax} environment variables`);
  let bytes = 0;
  for (const [name, value] of entries) {
    if (name === "" || name.includes("=")) throw invalid("the name of an environment variable is empty or contains =");
    bytes += textBytes(name, "the name of an environment variable") + textBytes(value, `the environment variable ${name}`) + 2;
  }
  if (bytes > limits.envBytesMax) throw invalid(`the environment is larger than ${limits.envBytesMax} bytes`);
}

export function checkPath(path: string, field = "path"): void {
  if (path === "") throw invalid(`${field} is empty`);
  if (textBytes(path, field) > limits.pathBytesMax) throw invalid(`${field} is longer than ${limits.pathBytesMax} bytes`);
}

export function checkLanguage(language: Language): void {
  if (!languages.includes(language)) throw invalid(`language must be one of ${languages.join(", ")}`);
}

export function checkContextId(id: string): void {
  if (!isId(id)) throw invalid("the id of a context has 1 to 64 letters, digits, '_' and '-'");
}

export function checkPid(pid: number): void {
  checkInteger(pid, 1, pidMax, "pid");
}

export function checkSignal(signal: number): void {
  checkInteger(signal, 1, 64, "signal");
}

export function checkPort(port: number): void {
  checkInteger(port, 1, 65_535, "port");
}

export function checkMode(mode: number): void {
  checkInteger(mode, 0, 0o7777, "mode");
}

export function checkOffset(offset: number, field: string): void {
  checkInteger(offset, 0, Number.MAX_SAFE_INTEGER, field);
}

export function checkTerminalSize(cols: number, rows: number): void {
  checkInteger(cols, 0, terminalSizeMax, "cols");
  checkInteger(rows, 0, terminalSizeMax, "rows");
}

export function checkVitalsInterval(seconds: number): void {
  checkInteger(seconds, 0, vitalsIntervalSecondsMax, "interval_seconds");
}

export function checkShortText(text: string, field: string): void {
  if (textBytes(text, field) > shortTextBytesMax) throw invalid(`${field} is longer than ${shortTextBytesMax} bytes`);
}

/** @returns bytes in UTF-8. */
export function textBytes(text: string, field: string): number {
  if (text.includes("\0")) throw invalid(`${field} contains NUL`);
  if (!text.isWellFormed()) throw invalid(`${field} is not valid Unicode`);
  return Buffer.byteLength(text, "utf8");
}

/** @returns whole milliseconds, 0 = none. @throws timeout_too_large */
export function checkTimeout(timeoutMs: number | undefined): bigint {
  if (timeoutMs === undefined) return 0n;
  if (!Number.isFinite(timeoutMs) || timeoutMs < 0) throw invalid("the time-out must be a positive number, or 0 for none");
  if (timeoutMs > limits.timeoutSecondsCounted * 1000) {
    const context = { requested_s: Math.ceil(timeoutMs / 1000), max_timeout_s: limits.timeoutSecondsCounted };
    throw new MitosError("timeout_too_large", { cause: `${context.requested_s} s`, context });
  }
  return BigInt(Math.ceil(timeoutMs));
}

function checkInteger(value: number, min: number, max: number, field: string): void {
  if (!Number.isInteger(value) || value < min || value > max) throw invalid(`${field} must be a whole number from ${min} to ${max}`);
}

export function invalid(cause: string): MitosError {
  return new MitosError("invalid_input", { cause });
}
