/** For tests of the command as users start it: a process of its own. */

import { spawn } from "node:child_process";
import path from "node:path";

export const bin = path.resolve(import.meta.dirname, "../bin/mitos.js");

export interface Ended {
  code: number | null;
  out: string;
  err: string;
}

/** @param env - the whole environment but PATH */
export function start(args: readonly string[], env: Record<string, string>) {
  const child = spawn(process.execPath, [bin, ...args], { env: { PATH: process.env.PATH, ...env }, stdio: ["ignore", "pipe", "pipe"] });
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
