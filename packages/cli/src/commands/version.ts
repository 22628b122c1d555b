import { readFileSync, statSync } from "node:fs";
import path from "node:path";
import { Command } from "commander";
import { print } from "../output.ts";

export function versionCommand(): Command {
  return new Command("version").action(printVersion);
}

export function printVersion(): void {
  print(`mitos ${version()} (commit ${commit() ?? "unknown"}, built from source, ${process.platform}/${process.arch})`);
}

export function version(): string {
  const manifest = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  return (JSON.parse(manifest) as { version: string }).version;
}

const checkout = path.resolve(import.meta.dirname, "../../../..");

/** Of the checkout that this runs from, read without starting git. */
function commit(): string | undefined {
  try {
    const gitDir = gitDirectory();
    const head = readFileSync(path.join(gitDir, "HEAD"), "utf8").trim();
    const hash = head.startsWith("ref: ") ? branchHash(gitDir, head.slice("ref: ".length)) : head;
    return /^[0-9a-f]{40,64}$/.test(hash ?? "") ? hash!.slice(0, 12) : undefined;
  } catch {
    return undefined; // not a checkout
  }
}

function gitDirectory(): string {
  const entry = path.join(checkout, ".git");
  if (statSync(entry).isDirectory()) return entry;
  return path.resolve(
    checkout,
    readFileSync(entry, "utf8")
      .replace(/^gitdir: /, "")
      .trim(),
  );
}

/** A worktree shares the branches of its main checkout; a branch that was packed away has no file of its own. */
function branchHash(gitDir: string, branch: string): string | undefined {
  let common = gitDir;
  try {
    common = path.resolve(gitDir, readFileSync(path.join(gitDir, "commondir"), "utf8").trim());
  } catch {}
  try {
    return readFileSync(path.join(common, branch), "utf8").trim();
  } catch {
    const packed = readFileSync(path.join(common, "packed-refs"), "utf8");
    return packed
      .split("\n")
      .find((line) => line.endsWith(` ${branch}`))
      ?.split(" ")[0];
  }
}
