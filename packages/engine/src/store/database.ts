import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { DatabaseSync } from "node:sqlite";
import { MitosError } from "@mitos/protocol";
import { storageError } from "../storage-error.ts";

/** Step n leads from schema n to n + 1. Steps are only ever added; a database of a later version is refused, not guessed at. */
const migrations: readonly string[] = [
  `CREATE TABLE sandboxes (uid INTEGER PRIMARY KEY, record TEXT NOT NULL) STRICT;
   CREATE TABLE templates (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
   CREATE TABLE idempotency (key TEXT PRIMARY KEY, kind TEXT NOT NULL, resource TEXT, at_ms INTEGER NOT NULL) STRICT;
   CREATE INDEX idempotency_at ON idempotency (at_ms);`,
  `CREATE TABLE keys (id TEXT PRIMARY KEY, hash TEXT NOT NULL UNIQUE, record TEXT NOT NULL) STRICT;`,
  `CREATE TABLE settings (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;`,
  `ALTER TABLE idempotency ADD COLUMN intended TEXT;
   ALTER TABLE idempotency ADD COLUMN after_uid INTEGER NOT NULL DEFAULT 0;`,
  `CREATE TABLE previews (
     sandbox TEXT PRIMARY KEY, created_at_ms INTEGER NOT NULL, until_unix INTEGER NOT NULL, earlier_until_unix INTEGER NOT NULL
   ) STRICT;`,
  `CREATE TABLE build_steps (
     key TEXT PRIMARY KEY, layer TEXT, bytes INTEGER NOT NULL, created_at_ms INTEGER NOT NULL, last_used_at_ms INTEGER NOT NULL,
     template TEXT NOT NULL
   ) STRICT;`,
  `CREATE TABLE images (reference TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;`,
];

/**
 * Opens the database of a data directory and locks the directory for this process.
 *
 * The lock is SQLite's own (`locking_mode=EXCLUSIVE`): the kernel releases it when the process ends, however it ends.
 *
 * @throws conflict when another server uses the directory; internal when the file is corrupt or newer than this program
 */
export function openDatabase(dataDir: string): DatabaseSync {
  const file = path.join(dataDir, "mitos.db");
  let db: DatabaseSync | undefined;
  try {
    mkdirSync(dataDir, { recursive: true, mode: 0o700 });
    db = new DatabaseSync(file, { timeout: 0 });
    db.exec("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;");
    // The first write takes the lock; until then another server could still open the file.
    db.exec("BEGIN EXCLUSIVE; COMMIT;");
    migrate(db, file);
    if (checkResult(db) !== "ok") throw corrupt(file, undefined);
    noteHolder(dataDir);
  } catch (error) {
    db?.close();
    throw asOpenError(error, dataDir, file);
  }
  return db;
}

/** For the message to whoever tries to use the directory too; a server on a full disk runs without it. */
function noteHolder(dataDir: string): void {
  const file = path.join(dataDir, "server.pid");
  try {
    writeFileSync(file, `${process.pid}\n`);
  } catch {
    rmSync(file, { force: true });
  }
}

/** A record of a row. @throws internal for one that no server has written so */
export function parseRecord<T>(row: Record<string, unknown>): T {
  try {
    return JSON.parse(String(row.record)) as T;
  } catch (error) {
    throw corrupt("mitos.db", error);
  }
}

/** Runs `work` as one step on the disk: all of its writes hold, or none. */
export function transaction<T>(db: DatabaseSync, work: () => T): T {
  db.exec("BEGIN IMMEDIATE");
  try {
    const result = work();
    db.exec("COMMIT");
    return result;
  } catch (error) {
    // A full disk has rolled it back already.
    if (db.isTransaction) db.exec("ROLLBACK");
    throw error;
  }
}

/**
 * Runs one write that is on the disk itself when this returns, with everything before it. Other commits survive the end of this process,
 * but a power cut can take the last of them back (`synchronous=NORMAL`).
 */
export function durably(db: DatabaseSync, write: () => void): void {
  db.exec("PRAGMA synchronous = FULL");
  try {
    write();
  } finally {
    db.exec("PRAGMA synchronous = NORMAL");
  }
}

function migrate(db: DatabaseSync, file: string): void {
  const version = Number(db.prepare("PRAGMA user_version").get()?.user_version);
  if (version > migrations.length) {
    throw new MitosError("internal", {
      message: "the database was written by a newer server",
      cause: `${file} has schema ${version}, this server knows ${migrations.length}`,
      remediation: "Start the newer server again, or choose another --data-dir.",
    });
  }
  for (const [step, sql] of migrations.entries()) {
    if (step < version) continue;
    transaction(db, () => {
      db.exec(sql);
      db.exec(`PRAGMA user_version = ${step + 1}`);
    });
  }
}

function checkResult(db: DatabaseSync): unknown {
  return db.prepare("PRAGMA quick_check(1)").get()?.quick_check;
}

const sqliteBusy = 5;
const sqliteCorrupt = 11;
const sqliteNotADatabase = 26;

function asOpenError(error: unknown, dataDir: string, file: string): MitosError {
  if (error instanceof MitosError) return error;
  const code = (error as { errcode?: number }).errcode;
  if (code !== undefined && (code & 0xff) === sqliteBusy) {
    return new MitosError("conflict", {
      message: "another server uses this data directory",
      cause: `${dataDir}${holder(dataDir)}`,
      remediation: "Stop that server, or choose another --data-dir.",
      reason: error,
    });
  }
  if (code !== undefined && [sqliteCorrupt, sqliteNotADatabase].includes(code & 0xff)) return corrupt(file, error);
  const known = storageError(error, dataDir);
  if (known) return known;
  return new MitosError("internal", {
    message: "the database could not be opened",
    cause: `${file}: ${error instanceof Error ? error.message : String(error)}`,
    remediation: "Check that the data directory is writable and its disk is not full, or choose another --data-dir.",
    reason: error,
  });
}

function corrupt(file: string, reason: unknown): MitosError {
  return new MitosError("internal", {
    message: "the database is damaged",
    cause: file,
    remediation: `Move ${file} and ${path.basename(file)}-wal away and start again: templates are rebuilt, sandboxes of the old database are removed.`,
    reason,
  });
}

function holder(dataDir: string): string {
  try {
    const pid = Number.parseInt(readFileSync(path.join(dataDir, "server.pid"), "utf8"), 10);
    return Number.isInteger(pid) ? ` (server process ${pid})` : "";
  } catch {
    return "";
  }
}
