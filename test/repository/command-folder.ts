import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, vi } from "vitest";

/** How a command answers. */
interface Command {
  /** What asks it for its version. */
  readonly versionFlag: string;
  readonly version: string;
  /** Lines for the shell that it does for anything else. */
  readonly work: string;
}

/** A folder for each test of a file, which goes with the test, and commands in it that are first on PATH until then. */
export class CommandFolder {
  #dir = "";

  /** Called once, at the top of a file. */
  constructor(prefix: string) {
    beforeEach(() => {
      this.#dir = mkdtempSync(path.join(tmpdir(), prefix));
    });
    afterEach(() => {
      vi.unstubAllEnvs();
      rmSync(this.#dir, { recursive: true, force: true });
    });
  }

  file(name: string): string {
    return path.join(this.#dir, name);
  }

  /** @returns reads the arguments of each call but those for the version; throws before the first */
  put(name: string, { versionFlag, version, work }: Command): () => string[] {
    const asked = this.file("asked");
    const script = `#!/bin/sh\n[ "$1" = ${versionFlag} ] && { echo ${version}; exit; }\necho "$@" >> ${asked}\n${work}\n`;
    writeFileSync(this.file(name), script, { mode: 0o755 });
    vi.stubEnv("PATH", `${this.#dir}:${process.env.PATH}`);
    return () => readFileSync(asked, "utf8").trim().split("\n");
  }
}
