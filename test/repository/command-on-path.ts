import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { vi } from "vitest";

/**
 * Puts a command first on PATH, until the test unstubs its environment.
 *
 * @param folder - where it lies, with what it was asked
 * @param command - `versionFlag`: what asks it for its version, and `version`: what it says then; `work`: lines for the shell that it does
 *   for anything else
 * @returns reads the arguments of each call but those for the version; throws before the first
 */
export function putOnPath(folder: string, name: string, command: { versionFlag: string; version: string; work: string }): () => string[] {
  const { versionFlag, version, work } = command;
  const asked = path.join(folder, "asked");
  const script = `#!/bin/sh\n[ "$1" = ${versionFlag} ] && { echo ${version}; exit; }\necho "$@" >> ${asked}\n${work}\n`;
  writeFileSync(path.join(folder, name), script, { mode: 0o755 });
  vi.stubEnv("PATH", `${folder}:${process.env.PATH}`);
  return () => readFileSync(asked, "utf8").trim().split("\n");
}
