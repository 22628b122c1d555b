import type { DatabaseSync } from "node:sqlite";
import { MitosError } from "@mitos/protocol";
import type { IdempotencyStore } from "../actions.ts";
import type { Clock } from "../clock.ts";
import { storageError } from "../storage-error.ts";

const lifetimeMs = 24 * 60 * 60 * 1000;
/** Above this the oldest records go early: a client that sends a fresh key with each request must not fill the disk. */
const recordsMax = 100_000;

interface Row {
  kind: string;
  resource: string | null;
  at_ms: number;
}

/**
 * Opened after what an earlier server left was taken up: what that server had under way and never answered is decided by what is there.
 *
 * @param wasMade - whether a sandbox of this id, made later than the one of this uid, is there
 */
export function createIdempotencyStore(
  db: DatabaseSync,
  clock: Clock,
  wasMade: (id: string, afterUid: number) => boolean,
): IdempotencyStore {
  const find = db.prepare("SELECT kind, resource, at_ms FROM idempotency WHERE key = ?");
  const reserve = db.prepare(`INSERT OR REPLACE INTO idempotency (key, kind, resource, at_ms, intended, after_uid)
    VALUES (?, ?, NULL, ?, ?, (SELECT coalesce(max(uid), 0) FROM sandboxes))`);
  const complete = db.prepare("UPDATE idempotency SET resource = ? WHERE key = ? AND kind = ?");
  const release = db.prepare("DELETE FROM idempotency WHERE key = ? AND kind = ?");
  const expire = db.prepare("DELETE FROM idempotency WHERE at_ms <= ?");
  const trim = db.prepare(`DELETE FROM idempotency WHERE key IN
    (SELECT key FROM idempotency WHERE resource IS NOT NULL ORDER BY at_ms DESC LIMIT -1 OFFSET ${recordsMax})`);

  // All of it was done, and a retry is answered with it; or it must run.
  for (const { key, kind, intended, after_uid } of db.prepare("SELECT * FROM idempotency WHERE resource IS NULL").all()) {
    const ids = intended === null ? [] : String(intended).split(",");
    const isDone = ids.length > 0 && ids.every((id) => wasMade(id, Number(after_uid)));
    if (isDone) complete.run(intended!, key!, kind!);
    else release.run(key!, kind!);
  }

  /** What the disk had no room for: known to this server, and to the next one a request that was never answered. */
  const unsaved = new Map<string, Row | null>();
  const saveOrKeep = (key: string, row: Row | null, save: () => void): void => {
    try {
      save();
      unsaved.delete(key);
    } catch {
      if (unsaved.size >= recordsMax) unsaved.clear();
      unsaved.set(key, row);
    }
  };

  let begun = 0;
  return {
    begin(kind, key, intended = []) {
      const now = clock.nowMs();
      begun += 1;
      if (begun % 256 === 1) {
        try {
          expire.run(now - lifetimeMs);
          trim.run();
        } catch {
          // Tried again with a later request.
        }
      }
      const row = unsaved.has(key) ? unsaved.get(key) : (find.get(key) as Row | undefined);
      // The same key for another kind of thing is treated as absent: one client's two calls, not a repetition.
      if (row && row.kind === kind && row.at_ms > now - lifetimeMs) {
        if (row.resource !== null) return { first: false, resource: row.resource };
        throw new MitosError("conflict", { cause: "a request with this Idempotency-Key is under way", retryAfterMs: 1000 });
      }
      try {
        reserve.run(key, kind, now, intended.length > 0 ? intended.join(",") : null);
      } catch (error) {
        throw storageError(error) ?? error;
      }
      unsaved.delete(key);
      return { first: true };
    },
    complete(kind, key, resource) {
      saveOrKeep(key, { kind, resource, at_ms: clock.nowMs() }, () => complete.run(resource, key, kind));
    },
    release(kind, key) {
      saveOrKeep(key, null, () => release.run(key, kind));
    },
  };
}
