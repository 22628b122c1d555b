import type { DatabaseSync } from "node:sqlite";
import type { TemplateRequest } from "../actions.ts";
import type { Snapshot } from "../driver.ts";
import { storageError } from "../storage-error.ts";
import { parseRecord } from "./database.ts";

/** A template that is ready: a build under way is not stored, so a crash in it leaves nothing to clean but its folder. */
export interface TemplateRecord {
  readonly request: TemplateRequest;
  readonly snapshot: Snapshot;
  readonly createdAtMs: number;
  readonly creationTimeMs: number;
}

export class TemplateStore {
  readonly #put;
  readonly #delete;
  readonly #all;

  constructor(db: DatabaseSync) {
    this.#put = db.prepare("INSERT INTO templates (id, record) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record");
    this.#delete = db.prepare("DELETE FROM templates WHERE id = ?");
    this.#all = db.prepare("SELECT record FROM templates ORDER BY id");
  }

  put(record: TemplateRecord): void {
    try {
      this.#put.run(record.request.id, JSON.stringify(record));
    } catch (error) {
      throw storageError(error) ?? error;
    }
  }

  delete(id: string): void {
    try {
      this.#delete.run(id);
    } catch (error) {
      throw storageError(error) ?? error;
    }
  }

  all(): TemplateRecord[] {
    return this.#all.all().map((row) => parseRecord<TemplateRecord>(row));
  }
}
