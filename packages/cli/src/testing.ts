/** For tests of the command as users start it: a process of its own. */

import { type ChildProcessByStdio, spawn } from "node:child_process";
import path from "node:path";
import type { Readable, Writable } from "node:stream";

export const bin = path.resolve(import.meta.dirname, "../bin/mitos.js");

export interface Ended {
  code: number | null;
  out: string;
  err: string;
}

/**
 * @param env - the whole environment but PATH
 * @param input - what standard input holds; default: it is empty, as `/dev/null` is
 */
export function start(args: readonly string[], env: Record<string, string>, input?: Uint8Array | string) {
  const child = spawn(process.execPath, [bin, ...args], {
    env: { PATH: process.env.PATH, ...env },
    stdio: [input === undefined ? "ignore" : "pipe", "pipe", "pipe"],
  }) as ChildProcessByStdio<Writable | null, Readable, Readable>;
  // A program that ends without reading it all is no failure of the test.
  child.stdin?.on("error", () => undefined).end(input);
  const seen = { out: "", err: "" };
  child.stdout.on("data", (data) => (seen.out += data));
  child.stderr.on("data", (data) => (seen.err += data));
  const ended = new Promise<Ended>((resolve) => child.on("close", (code) => resolve({ code, ...seen })));
  return { child, seen, ended };
}

export async function firstLine(process: ReturnType<typeof start>): Promise<string> {
  await Promise.race([new Promise((resolve) => process.child.stdout.once("data", resolve)), process.ended]);
  return process.seen.out.split("\n", 1)[0]!;
}
