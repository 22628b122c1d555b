import { MitosError } from "@mitos/protocol";

const sqliteReadOnly = 8;
const sqliteIo = 10;
const sqliteCorrupt = 11;
const sqliteFull = 13;
const sqliteNotADatabase = 26;
const fullCodes = new Set(["ENOSPC", "EDQUOT"]);
const retryAfterMs = 5_000;

/** What the disk or its database refused, as one of our errors; undefined for a failure of another kind. */
export function storageError(error: unknown, where = "the data directory"): MitosError | undefined {
  if (error instanceof MitosError || !(error instanceof Error)) return undefined;
  const { code, errcode } = error as { code?: string; errcode?: number };
  const sqlite = errcode === undefined ? undefined : errcode & 0xff;
  if (sqlite === sqliteFull || (code !== undefined && fullCodes.has(code))) return diskFull(where, error);
  if (sqlite === sqliteReadOnly || code === "EROFS" || code === "EACCES") {
    return new MitosError("internal", {
      message: "the data directory cannot be written",
      cause: `${where}: ${error.message}`,
      remediation: "Make it writable for the user of the server (or mount its disk read-write), or choose another --data-dir.",
      reason: error,
    });
  }
  if (sqlite === sqliteCorrupt || sqlite === sqliteNotADatabase) {
    return new MitosError("internal", {
      message: "the database is damaged",
      cause: `${where}: ${error.message}`,
      remediation: "Stop the server, move mitos.db and mitos.db-wal away and start it again: templates are rebuilt, sandboxes are removed.",
      reason: error,
    });
  }
  if (sqlite === sqliteIo || code === "EIO") {
    return new MitosError("internal", {
      message: "the disk of the data directory fails",
      cause: `${where}: ${error.message}`,
      remediation: "Check the disk (dmesg) and its free space, then send the request again.",
      reason: error,
    });
  }
  return undefined;
}

export function diskFull(where: string, reason: unknown): MitosError {
  return new MitosError("quota_exceeded", {
    message: "the disk has no room for it now",
    cause: `${where} is full`,
    context: { dimension: "disk" },
    remediation: "Free space there, or terminate paused sandboxes and delete templates that are not needed, then send the request again.",
    retryAfterMs,
    reason,
  });
}

/** Whether an operation failed because there was no room, told by whoever noticed it. */
export function isDiskFull(error: unknown): boolean {
  return error instanceof MitosError && error.code === "quota_exceeded" && error.detail.context?.dimension === "disk";
}
