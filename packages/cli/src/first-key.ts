import os from "node:os";
import type { Keys } from "@mitos/engine";
import { UsageError } from "./exit.ts";

/**
 * The way into a server whose store has no key for an administrator: one is made once the server listens, and shown on the terminal.
 *
 * @throws UsageError when one is needed and standard output is no terminal: a key must not end up in a journal or a log
 */
export function needsFirstKey(keys: Keys, dataDir: string): boolean {
  if (keys.list().some((record) => record.scopes.includes("admin") && keys.statusOf(record) === "active")) return false;
  if (process.stdout.isTTY) return true;
  throw new UsageError(
    "--auth needs a key for an administrator, and the data directory has none",
    `Make one first: mitos auth keys create --data-dir ${dataDir} --name admin --scopes admin`,
  );
}

export function makeFirstKey(keys: Keys): string {
  const owner = os.userInfo().username;
  return keys.create({ name: "admin", owner, organisation: "default", scopes: ["admin"], ttlSeconds: 0, limits: {} }).key;
}
