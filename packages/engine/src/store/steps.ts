import type { DatabaseSync } from "node:sqlite";
import type { Digest } from "../layers/layer.ts";
import { storageError } from "../storage-error.ts";

/** What a step of a build has made. Its key says what it was made of (builds/chain.ts). */
export interface StepRecord {
  readonly key: Digest;
  /** Null = it changed no file. */
  readonly layer: Digest | null;
  readonly bytes: number;
  readonly createdAtMs: number;
  readonly lastUsedAtMs: number;
  /** The template whose build ran it. */
  readonly template: string;
}

/** Results of steps, so that none is run again while its layer is there. */
export class StepStore {
  readonly #put;
  readonly #get;
  readonly #touch;
  readonly #delete;
  readonly #all;

  constructor(db: DatabaseSync) {
    this.#put = db.prepare(
      "INSERT OR REPLACE INTO build_steps (key, layer, bytes, created_at_ms, last_used_at_ms, template) VALUES (?, ?, ?, ?, ?, ?)",
    );
    this.#get = db.prepare("SELECT * FROM build_steps WHERE key = ?");
    this.#touch = db.prepare("UPDATE build_steps SET last_used_at_ms = ? WHERE key = ?");
    this.#delete = db.prepare("DELETE FROM build_steps WHERE key = ?");
    this.#all = db.prepare("SELECT * FROM build_steps ORDER BY last_used_at_ms");
  }

  /** @throws quota_exceeded (disk full) */
  put({ key, layer, bytes, createdAtMs, lastUsedAtMs, template }: StepRecord): void {
    this.#guarded(() => this.#put.run(key, layer, bytes, createdAtMs, lastUsedAtMs, template));
  }

  get(key: Digest): StepRecord | undefined {
    const row = this.#get.get(key);
    return row && stepOf(row);
  }

  touch(key: Digest, atMs: number): void {
    this.#guarded(() => this.#touch.run(atMs, key));
  }

  delete(key: Digest): void {
    this.#guarded(() => this.#delete.run(key));
  }

  /** The longest unused first. */
  all(): StepRecord[] {
    return this.#all.all().map(stepOf);
  }

  #guarded(write: () => void): void {
    try {
      write();
    } catch (error) {
      throw storageError(error) ?? error;
    }
  }
}

function stepOf(row: Record<string, unknown>): StepRecord {
  return {
    key: row.key as Digest,
    layer: row.layer as Digest | null,
    bytes: Number(row.bytes),
    createdAtMs: Number(row.created_at_ms),
    lastUsedAtMs: Number(row.last_used_at_ms),
    template: String(row.template),
  };
}
