import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import type { DatabaseSync } from "node:sqlite";
import { MitosError } from "@mitos/protocol";
import { type ApiKey, type KeyLimits, type KeyRequest, type KeyStatus, type Keys, type Scope, scopes } from "../actions.ts";
import { type Clock, systemClock } from "../clock.ts";
import { openDatabase } from "./database.ts";

const keyPrefix = "mitos_sk_";
const randomBytesCount = 32;
/** Characters of the random part that are shown: enough to tell keys apart, too few to help a guess. */
const shownChars = 4;
/** Above this, keys that are not active any more make room, the oldest first. */
const keysMax = 10_000;
/** How exactly the last use is known: each use would otherwise be a write. */
const touchMs = 60_000;
const ttlSecondsMax = 10 * 366 * 86_400;

const limitDefaults: KeyLimits = { maxSandboxes: 1000, maxMemoryMiB: 524_288, maxStreams: 256, requestsPerSecond: 200 };
const limitMax: KeyLimits = { maxSandboxes: 100_000, maxMemoryMiB: 64 * 1024 * 1024, maxStreams: 100_000, requestsPerSecond: 100_000 };

/** The keys of a data directory that no server uses now: how the first one is made. @throws conflict when a server does */
export function openKeys(dataDir: string): Keys & Disposable {
  const db = openDatabase(dataDir);
  return { ...createKeys(db, systemClock), [Symbol.dispose]: () => db.close() };
}

/** A key is stored as its SHA-256 alone; all of them are few enough to be held here, so that no request reads the disk. */
export function createKeys(db: DatabaseSync, clock: Clock): Keys {
  const insert = db.prepare("INSERT INTO keys (id, hash, record) VALUES (?, ?, ?)");
  const update = db.prepare("UPDATE keys SET record = ? WHERE id = ?");
  const remove = db.prepare("DELETE FROM keys WHERE id = ?");
  const hashById = new Map<string, string>();
  const byHash = new Map<string, ApiKey>();
  for (const row of db.prepare("SELECT id, hash, record FROM keys ORDER BY rowid").all()) {
    hashById.set(String(row.id), String(row.hash));
    byHash.set(String(row.hash), JSON.parse(String(row.record)) as ApiKey);
  }

  const list = () => [...byHash.values()];
  const statusOf = ({ revokedAtMs, expiresAtMs }: ApiKey): KeyStatus => {
    if (revokedAtMs !== null) return "revoked";
    return expiresAtMs !== null && expiresAtMs <= clock.nowMs() ? "expired" : "active";
  };
  const replace = (record: ApiKey): ApiKey => {
    update.run(JSON.stringify(record), record.id);
    byHash.set(hashById.get(record.id)!, record);
    return record;
  };
  const require = (id: string): ApiKey => {
    const record = byHash.get(hashById.get(id) ?? "");
    if (!record) throw new MitosError("not_found", { cause: `no key has the id ${id}`, remediation: "List the keys with GET /v1/keys." });
    return record;
  };
  const makeRoom = (): void => {
    if (byHash.size < keysMax) return;
    const oldest = list().find((record) => statusOf(record) !== "active");
    if (!oldest) {
      throw new MitosError("quota_exceeded", {
        message: "there are too many keys",
        cause: `a server keeps ${keysMax}`,
        remediation: "Revoke keys that are not used any more.",
        context: { op: "create_key", dimension: "keys", limit: keysMax },
      });
    }
    remove.run(oldest.id);
    byHash.delete(hashById.get(oldest.id)!);
    hashById.delete(oldest.id);
  };

  return {
    create(request) {
      const checked = check(request);
      makeRoom();
      const key = `${keyPrefix}${randomBytes(randomBytesCount).toString("base64url")}`;
      const nowMs = clock.nowMs();
      const record: ApiKey = {
        id: `key-${randomBytes(6).toString("hex")}`,
        name: checked.name,
        prefix: key.slice(0, keyPrefix.length + shownChars),
        owner: checked.owner,
        organisation: checked.organisation,
        scopes: checked.scopes,
        limits: { ...limitDefaults, ...withoutUndefined(checked.limits) },
        createdAtMs: nowMs,
        expiresAtMs: checked.ttlSeconds === 0 ? null : nowMs + checked.ttlSeconds * 1000,
        lastUsedAtMs: null,
        revokedAtMs: null,
      };
      const hash = hashOf(key);
      insert.run(record.id, hash, JSON.stringify(record));
      hashById.set(record.id, hash);
      byHash.set(hash, record);
      return { key, record };
    },
    list,
    statusOf,
    revoke(id) {
      const record = require(id);
      return record.revokedAtMs === null ? replace({ ...record, revokedAtMs: clock.nowMs() }) : record;
    },
    find(key) {
      // The look-up is by the hash of what was presented, whose relation to the stored hashes nobody can steer.
      const hash = hashOf(key);
      const record = byHash.get(hash);
      const stored = record ? hashById.get(record.id)! : absentHash;
      return timingSafeEqual(Buffer.from(hash), Buffer.from(stored)) ? record : undefined;
    },
    touch(id) {
      const record = require(id);
      const nowMs = clock.nowMs();
      if (record.lastUsedAtMs === null || nowMs - record.lastUsedAtMs >= touchMs) replace({ ...record, lastUsedAtMs: nowMs });
    },
  };
}

/** Compared with when there is nothing to compare with. */
const absentHash = "0".repeat(64);

/** A plain hash is right for a key of 256 random bits: there is no dictionary to slow down. */
function hashOf(key: string): string {
  return createHash("sha256").update(key).digest("hex");
}

/** @throws invalid_input */
function check(request: KeyRequest): KeyRequest {
  const { name, owner, organisation, ttlSeconds } = request;
  if (!/^[\x21-\x7e](?:[\x20-\x7e]{0,98}[\x21-\x7e])?$/.test(name)) throw invalid("name must be 1 to 100 printable ASCII characters");
  for (const [field, value] of Object.entries({ owner, organisation })) {
    if (!/^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}$/.test(value)) {
      throw invalid(`${field} must be 1 to 128 letters, digits, '.', '_', '@', '+' or '-', and begin with a letter or digit`);
    }
  }
  const chosen = scopes.filter((scope) => request.scopes.includes(scope));
  const unknown = request.scopes.find((scope) => !(scopes as readonly string[]).includes(scope));
  if (chosen.length === 0 || unknown !== undefined) throw invalid(`scopes must be some of ${scopes.join(", ")}`);
  if (!isWhole(ttlSeconds, 0, ttlSecondsMax)) throw invalid(`ttl_seconds must be 0 to ${ttlSecondsMax}; 0 = never`);
  const limits = withoutUndefined(request.limits);
  for (const [field, value] of Object.entries(limits)) {
    const max = limitMax[field as keyof KeyLimits];
    if (!isWhole(value, 1, max)) throw invalid(`the limit ${field} must be 1 to ${max}`);
  }
  return { name, owner, organisation, ttlSeconds, limits, scopes: chosen satisfies readonly Scope[] };
}

function withoutUndefined(limits: KeyRequest["limits"]): Partial<KeyLimits> {
  return Object.fromEntries(Object.entries(limits).filter(([, value]) => value !== undefined));
}

function isWhole(value: number, min: number, max: number): boolean {
  return Number.isSafeInteger(value) && value >= min && value <= max;
}

function invalid(cause: string): MitosError {
  return new MitosError("invalid_input", { cause });
}
