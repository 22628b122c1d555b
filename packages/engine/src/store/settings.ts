import { randomBytes } from "node:crypto";
import type { DatabaseSync } from "node:sqlite";

/** What a data directory must remember and nobody has to choose. */
export class SettingsStore {
  readonly #db: DatabaseSync;

  constructor(db: DatabaseSync) {
    this.#db = db;
  }

  /** Random bytes under a name: made once, then always the same. */
  secret(name: string, bytes: number): Uint8Array {
    this.#db.prepare("INSERT OR IGNORE INTO settings (name, value) VALUES (?, ?)").run(name, randomBytes(bytes));
    return this.#db.prepare("SELECT value FROM settings WHERE name = ?").get(name)?.value as Uint8Array;
  }
}
