import type { DatabaseSync } from "node:sqlite";
import type { Sandbox } from "../actions.ts";
import type { Snapshot } from "../driver.ts";
import { transaction } from "./database.ts";

/** Why a sandbox is no more. The first three are somebody's wish, the others happened to it. */
export type EndCause = "terminated" | "time-out" | "idle" | "oom_killed" | "exited" | "killed" | "lost" | "snapshot_lost";

/** What the engine shows of a sandbox, and what only it knows. */
export interface SandboxRecord extends Omit<Sandbox, "children" | "endReason"> {
  /** Never used twice, unlike an id: lineage hangs on it. */
  readonly uid: number;
  readonly parentUid: number | null;
  /** That it was given secrets or inherited them. Their values are never stored. */
  readonly hasSecrets: boolean;
  /** Strictly increases along every line of descent. */
  readonly generation: number;
  /** How many children it may still ask for from inside. */
  readonly forkBudget: number;
  /** The machine it runs on, written before the machine is started, so that a crash in between leaves nothing unknown. */
  readonly machineId: string | null;
  /** Where a paused sandbox waits. */
  readonly snapshot: Snapshot | null;
  readonly end: { readonly cause: EndCause; readonly detail: string; readonly atMs: number } | null;
}

export class SandboxStore {
  readonly #db;
  readonly #put;
  readonly #delete;
  readonly #all;

  constructor(db: DatabaseSync) {
    this.#db = db;
    this.#put = db.prepare("INSERT INTO sandboxes (uid, record) VALUES (?, ?) ON CONFLICT (uid) DO UPDATE SET record = excluded.record");
    this.#delete = db.prepare("DELETE FROM sandboxes WHERE uid = ?");
    this.#all = db.prepare("SELECT record FROM sandboxes ORDER BY uid");
  }

  put(record: SandboxRecord): void {
    this.#put.run(record.uid, JSON.stringify(record));
  }

  delete(uid: number): void {
    this.#delete.run(uid);
  }

  /** All of the changes hold, or none. */
  atomically(changes: () => void): void {
    transaction(this.#db, changes);
  }

  all(): SandboxRecord[] {
    return this.#all.all().map((row) => JSON.parse(String(row.record)) as SandboxRecord);
  }
}
