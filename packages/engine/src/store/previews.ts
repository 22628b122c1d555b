import type { DatabaseSync } from "node:sqlite";
import type { SandboxId } from "@mitos/protocol";
import type { PreviewTerms } from "../actions.ts";
import type { Clock } from "../clock.ts";
import { unknownSandbox } from "../sandboxes.ts";
import { storageError } from "../storage-error.ts";

/** How often rows whose tokens have all expired are looked for, in tokens. */
const expireEvery = 256;

interface Row {
  /** Of the sandbox that the latest tokens are for; with the id it is never used twice. */
  created_at_ms: number;
  /** When the last token of this id expires. */
  until_unix: number;
  /** The same of those for earlier sandboxes of the id. */
  earlier_until_unix: number;
}

/**
 * Of each id only two times are kept, since the tokens of one sandbox all expire later than those of the sandboxes before it: `issue` sees
 * to that.
 *
 * @param createdAtMsOf - of the latest sandbox that has the id, or had it
 */
export function createPreviewTerms(db: DatabaseSync, clock: Clock, createdAtMsOf: (id: SandboxId) => number | undefined): PreviewTerms {
  const find = db.prepare("SELECT created_at_ms, until_unix, earlier_until_unix FROM previews WHERE sandbox = ?");
  const put = db.prepare("INSERT OR REPLACE INTO previews (sandbox, created_at_ms, until_unix, earlier_until_unix) VALUES (?, ?, ?, ?)");
  const expire = db.prepare("DELETE FROM previews WHERE until_unix < ?");

  const rowOf = (id: SandboxId) => find.get(id) as Row | undefined;
  const earlierUntil = (id: SandboxId, createdAtMs: number): number => {
    const row = rowOf(id);
    if (!row) return 0;
    return row.created_at_ms === createdAtMs ? row.earlier_until_unix : row.until_unix;
  };

  let issued = 0;
  return {
    issue(id, wantedUnix) {
      const createdAtMs = createdAtMsOf(id);
      if (createdAtMs === undefined) throw unknownSandbox(id);
      const earlierUnix = earlierUntil(id, createdAtMs);
      const expiresUnix = Math.max(wantedUnix, earlierUnix + 1);
      const untilUnix = Math.max(expiresUnix, rowOf(id)?.until_unix ?? 0);
      try {
        if (issued++ % expireEvery === 0) expire.run(Math.floor(clock.nowMs() / 1000));
        put.run(id, createdAtMs, untilUnix, earlierUnix);
      } catch (error) {
        throw storageError(error) ?? error;
      }
      return expiresUnix;
    },
    isOfEarlier(id, expiresUnix) {
      const createdAtMs = createdAtMsOf(id);
      return createdAtMs !== undefined && expiresUnix <= earlierUntil(id, createdAtMs);
    },
  };
}
