import type { Connection } from "@mitos/sdk";
import type { Command } from "commander";
import { UsageError } from "./exit.ts";

/** What every command may be given, wherever on the line it stands. */
export interface GlobalOptions {
  server?: string;
  apiKey?: string;
  pool?: string;
}

/** What follows `--` on the command line: words for the program in the sandbox, whatever they look like. */
export type PassThrough = readonly string[];

export function connectionOf(command: Command): Connection {
  const { server, apiKey } = command.optsWithGlobals<GlobalOptions>();
  return { baseUrl: server, apiKey };
}

export function poolOf(command: Command): string {
  return command.optsWithGlobals<GlobalOptions>().pool || "python";
}

/** One word is a line for the shell, several are a program and its arguments. */
export function toCommand(words: readonly string[], passThrough: PassThrough): string | readonly string[] {
  const all = [...words, ...passThrough];
  if (all.length === 0) throw new UsageError("the command is missing", "Name the program to run, for example: mitos run echo hello");
  return all.length === 1 ? all[0]! : all;
}

export function positiveInteger(flag: string): (text: string) => number {
  return wholeNumber(flag, 1);
}

/**
 * @param min - the least that is accepted
 * @param max - the most; default: any
 */
export function wholeNumber(flag: string, min: number, max = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\d+$/.test(text) && Number.isSafeInteger(value) && value >= min && value <= max) return value;
    const range = max === Number.MAX_SAFE_INTEGER ? `from ${min} on` : `from ${min} to ${max}`;
    throw new UsageError(`${flag} ${text} is not valid`, `Give a whole number ${range}.`);
  };
}
