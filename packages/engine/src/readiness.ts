import { rm, writeFile } from "node:fs/promises";
import path from "node:path";

/** Whoever asks more often gets the same answer. */
const checkedMsMax = 5000;
/** More than what a file system keeps for its own books: a full one refuses it. */
const probeBytes = 64 * 1024;

/** Whether machines can still be started: all of them need a folder and a line in the database, in a data directory that takes writes. */
export class Readiness {
  readonly #probe: string;
  #answer: Promise<string | null> | undefined;
  #validUntilMs = 0;

  constructor(dataDir: string) {
    this.#probe = path.join(dataDir, ".ready");
  }

  problem(): Promise<string | null> {
    const nowMs = performance.now();
    if (!this.#answer || nowMs >= this.#validUntilMs) {
      this.#answer = this.#check();
      this.#validUntilMs = nowMs + checkedMsMax;
    }
    return this.#answer;
  }

  async #check(): Promise<string | null> {
    try {
      await writeFile(this.#probe, new Uint8Array(probeBytes), { mode: 0o600 });
      await rm(this.#probe);
      return null;
    } catch (error) {
      const code = error instanceof Error && "code" in error ? String(error.code) : "unknown error";
      return `the data directory cannot be written to (${code})`;
    }
  }
}
