/** The files of the user's configuration: for the user alone, and whole or not at all. */

import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { CommandError } from "./exit.ts";

/** @param name - of a file in the configuration directory */
export function configFile(name: string): string {
  return path.join(process.env.MITOS_CONFIG_DIR || path.join(os.homedir(), ".config/mitos"), name);
}

/** @returns undefined when the file is missing or cannot be read, which is no error: it is a convenience */
export function readPrivate(name: string): string | undefined {
  try {
    return readFileSync(configFile(name), "utf8");
  } catch {
    return undefined;
  }
}

export function savePrivate(name: string, content: object): void {
  const file = configFile(name);
  const fresh = `${file}.${process.pid}`;
  try {
    mkdirSync(path.dirname(file), { recursive: true, mode: 0o700 });
    // `wx`: never through a link that somebody put there.
    rmSync(fresh, { force: true });
    writeFileSync(fresh, `${JSON.stringify(content, null, 2)}\n`, { mode: 0o600, flag: "wx" });
    renameSync(fresh, file);
  } catch (error) {
    throw new CommandError(
      `${file} cannot be written`,
      error instanceof Error ? error.message : String(error),
      "Make the directory writable for you, or name another with MITOS_CONFIG_DIR.",
    );
  }
}

export function removePrivate(name: string): void {
  rmSync(configFile(name), { force: true });
}
