import type { DatabaseSync } from "node:sqlite";
import type { Language, TemplateRequest, TemplateSource, Workload } from "../actions.ts";
import type { Snapshot } from "../driver.ts";
import type { Image, ImageConfig } from "../images/image.ts";
import type { Digest } from "../layers/layer.ts";
import { storageError } from "../storage-error.ts";
import { parseRecord } from "./database.ts";

/** A template that is ready: a build under way is not stored, so a crash in it leaves nothing to clean but its folder. */
export interface TemplateRecord {
  readonly request: TemplateRequest;
  /** With it a template is made again, on another host or for another agent, without any registry. */
  readonly root: TemplateRoot;
  readonly snapshot: Snapshot;
  readonly warnings: readonly string[];
  readonly createdAtMs: number;
  readonly creationTimeMs: number;
}

/** What the root file system of a template was found, or built, to be. */
export interface TemplateRoot {
  readonly source: TemplateSource;
  /** What its steps were built on (builds/chain.ts); null for the host's files. */
  readonly baseKey: Digest | null;
  /** Lowest first; null = the host's files. */
  readonly layers: Image["layers"] | null;
  /** What programs in it start with, the steps' part included. */
  readonly config: ImageConfig;
  /** Whose kernel it wakes with, if it has that; null = none. */
  readonly language: Language | null;
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

  /** @param hostRoot - of records of earlier versions, whose templates are all made of the host's files */
  all(hostRoot: (request: TemplateRequest) => TemplateRoot): TemplateRecord[] {
    return this.#all.all().map((row) => {
      const record = parseRecord<TemplateRecord & { root?: TemplateRoot; warnings?: string[] }>(row);
      const request = { ...record.request, ...(record.request.workload ? { workload: withKind(record.request.workload) } : {}) };
      return { ...record, request, root: record.root ?? hostRoot(request), warnings: record.warnings ?? [] };
    });
  }
}

/** Earlier versions knew one kind of ready check, and did not say it. */
function withKind(workload: Workload): Workload {
  return workload.ready && !("kind" in workload.ready)
    ? { ...workload, ready: { kind: "http", ...(workload.ready as object) } as never }
    : workload;
}
