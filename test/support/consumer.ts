import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";

const root = path.resolve(import.meta.dirname, "../..");

/**
 * Runs a program in a folder where the SDK is at hand and no framework is: neither beside the program nor anywhere above it.
 *
 * @param program - an ES module; `./sdk/<path>.ts` are the SDK's sources
 * @returns what it printed
 */
export function runWithoutFrameworks(program: string): string {
  const folder = mkdtempSync(path.join(os.tmpdir(), "mitos-consumer-"));
  try {
    cpSync(path.join(root, "packages/sdk/src"), path.join(folder, "sdk"), { recursive: true });
    mkdirSync(path.join(folder, "node_modules/@mitos"), { recursive: true });
    symlinkSync(path.join(root, "packages/protocol"), path.join(folder, "node_modules/@mitos/protocol"));
    writeFileSync(path.join(folder, "package.json"), '{"type":"module"}');
    writeFileSync(path.join(folder, "program.js"), program);
    return execFileSync(process.execPath, ["program.js"], { cwd: folder, encoding: "utf8" });
  } finally {
    rmSync(folder, { recursive: true });
  }
}
