import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";

const root = path.resolve(import.meta.dirname, "../..");

/**
 * Runs a program in a folder where the SDK is installed and no framework is: neither beside the program nor anywhere above it.
 *
 * @param program - an ES module
 * @returns what it printed
 */
export function runWithoutFrameworks(program: string): string {
  const folder = mkdtempSync(path.join(os.tmpdir(), "mitos-consumer-"));
  try {
    mkdirSync(path.join(folder, "node_modules/@mitos"), { recursive: true });
    for (const name of ["sdk", "protocol"]) {
      const source = path.join(root, "packages", name);
      for (const part of ["package.json", "src"]) cpSync(path.join(source, part), path.join(folder, name, part), { recursive: true });
      // A link: Node reads TypeScript outside node_modules only, and looks at where a file really is.
      symlinkSync(path.join(folder, name), path.join(folder, "node_modules/@mitos", name));
    }
    writeFileSync(path.join(folder, "package.json"), '{"type":"module"}');
    writeFileSync(path.join(folder, "program.js"), program);
    return execFileSync(process.execPath, ["--disable-warning=ExperimentalWarning", "program.js"], { cwd: folder, encoding: "utf8" });
  } finally {
    rmSync(folder, { recursive: true });
  }
}
