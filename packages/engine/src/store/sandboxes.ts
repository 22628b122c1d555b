import type { DatabaseSync } from "node:sqlite";
import type { EndCause, Sandbox } from "../actions.ts";
import type { Snapshot } from "../driver.ts";
import type { Digest } from "../layers/layer.ts";
import { storageError } from "../storage-error.ts";
import { durably, parseRecord, transaction } from "./database.ts";

/** What the engine shows of a sandbox, and what only it knows. */
export interface SandboxRecord extends Omit<Sandbox, "children" | "endReason"> {
  /** Never used twice, unlike an id: lineage hangs on it. */
  readonly uid: number;
  readonly parentUid: number | null;
  /** That it was given secrets or inherited them. Their values are never stored. */
  readonly hasSecrets: boolean;
  /** Strictly increases along every line of descent. */
  readonly generation: number;
  /** The key that gave the fork budget. */
  readonly budgetKeyId: string | null;
  /** The machine it runs on, written before the machine is started, so that a crash in between leaves nothing unknown. */
  readonly machineId: string | null;
  /** What its root is made of; null = the host's files, as is absent in records of earlier versions. */
  readonly layers?: readonly Digest[] | null | undefined;
  /** Where a paused sandbox waits. */
  readonly snapshot: Snapshot | null;
  readonly end: { readonly cause: EndCause; readonly detail: string; readonly atMs: number } | null;
}

/**
 * The sandboxes' records on the disk.
 *
 * What is still to be decided is written first (`put`), and not done when the disk refuses it. What has happened already cannot be refused
 * (`putEventually`, `deleteEventually`): it is owed to the disk, and written as soon as that takes it. A server that dies meanwhile leaves
 * the earlier record, which recovery compares with the machine.
 */
export class SandboxStore {
  readonly #db;
  readonly #put;
  readonly #delete;
  readonly #all;
  readonly #owed = new Map<number, SandboxRecord | null>();

  constructor(db: DatabaseSync) {
    this.#db = db;
    this.#put = db.prepare("INSERT INTO sandboxes (uid, record) VALUES (?, ?) ON CONFLICT (uid) DO UPDATE SET record = excluded.record");
    this.#delete = db.prepare("DELETE FROM sandboxes WHERE uid = ?");
    this.#all = db.prepare("SELECT record FROM sandboxes ORDER BY uid");
  }

  /** All of the records, or none. @throws quota_exceeded (disk full), internal with a remedy */
  put(...records: readonly SandboxRecord[]): void {
    this.#guarded(() =>
      transaction(this.#db, () => {
        for (const record of records) this.#write(record.uid, record);
      }),
    );
    for (const { uid } of records) this.#owed.delete(uid);
    this.settle(); // the disk has just taken something
  }

  /** The same, and a power cut cannot take it back: for what the files on the disk are about to depend on. */
  putDurably(record: SandboxRecord): void {
    this.#guarded(() => durably(this.#db, () => this.#write(record.uid, record)));
    this.#owed.delete(record.uid);
    this.settle();
  }

  putEventually(record: SandboxRecord): void {
    this.#owed.set(record.uid, record);
    this.settle();
  }

  deleteEventually(uid: number): void {
    this.#owed.set(uid, null);
    this.settle();
  }

  /** Writes what is owed. @returns why that is not possible now */
  settle(): unknown {
    for (const [uid, record] of this.#owed) {
      try {
        this.#write(uid, record);
      } catch (error) {
        return error;
      }
      this.#owed.delete(uid);
    }
    return undefined;
  }

  get owes(): boolean {
    return this.#owed.size > 0;
  }

  all(): SandboxRecord[] {
    return this.#all.all().map((row) => parseRecord<SandboxRecord>(row));
  }

  #write(uid: number, record: SandboxRecord | null): void {
    if (record) this.#put.run(uid, JSON.stringify(record));
    else this.#delete.run(uid);
  }

  #guarded(write: () => void): void {
    try {
      write();
    } catch (error) {
      throw storageError(error) ?? error;
    }
  }
}
