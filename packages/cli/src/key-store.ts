/** Where `auth keys` works: at a server, or in a data directory that no server uses. */

import { existsSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import type { Scope } from "@mitos/engine";
import type { HttpClient, KeyJson, NewKeyJson } from "@mitos/sdk";
import { UsageError } from "./exit.ts";

export interface NewKey {
  readonly name: string;
  readonly owner?: string | undefined;
  readonly organisation?: string | undefined;
  readonly scopes: readonly string[];
  readonly ttlSeconds: number;
  readonly maxSandboxes?: number | undefined;
  readonly maxMemoryMiB?: number | undefined;
  readonly maxStreams?: number | undefined;
  readonly requestsPerSecond?: number | undefined;
}

export type KeyRow = Pick<KeyJson, "id" | "name" | "prefix" | "scopes" | "status">;

export interface KeyStore {
  /** @returns the key, which nobody can tell again */
  create(request: NewKey): Promise<string>;
  list(organisation: string | undefined): Promise<readonly KeyRow[]>;
  revoke(id: string): Promise<void>;
}

export function serverKeys(http: HttpClient): KeyStore {
  return {
    async create({ ttlSeconds, maxSandboxes, maxMemoryMiB, maxStreams, requestsPerSecond, ...rest }) {
      const limits = {
        max_sandboxes: maxSandboxes,
        max_memory_mib: maxMemoryMiB,
        max_streams: maxStreams,
        requests_per_second: requestsPerSecond,
      };
      return ((await http.post("/v1/keys", { ...rest, ttl_seconds: ttlSeconds, limits })) as NewKeyJson).key;
    },
    async list(organisation) {
      const query = organisation ? `?${new URLSearchParams({ organisation })}` : "";
      return ((await http.get(`/v1/keys${query}`)) as { keys: KeyJson[] }).keys;
    },
    async revoke(id) {
      await http.del(`/v1/keys/${encodeURIComponent(id)}`);
    },
  };
}

/** Whoever may write to the directory is its administrator. The engine's code is loaded only now. */
export async function dataDirKeys(dataDir: string, mayCreate: boolean): Promise<KeyStore & Disposable> {
  if (!mayCreate && !existsSync(path.join(dataDir, "mitos.db"))) {
    throw new UsageError(`${dataDir} is not a data directory`, "Name the one that `mitos serve` prints.");
  }
  const { openKeys } = await import("@mitos/engine");
  const keys = openKeys(dataDir);
  return {
    async create({ name, scopes, ttlSeconds, owner = os.userInfo().username, organisation = "default", ...limits }) {
      return keys.create({ name, owner, organisation, scopes: scopes as readonly Scope[], ttlSeconds, limits }).key;
    },
    async list(organisation) {
      const rows = keys.list().filter((record) => organisation === undefined || record.organisation === organisation);
      return rows.map((record) => ({ ...record, status: keys.statusOf(record) }));
    },
    async revoke(id) {
      keys.revoke(id);
    },
    [Symbol.dispose]: () => keys[Symbol.dispose](),
  };
}
