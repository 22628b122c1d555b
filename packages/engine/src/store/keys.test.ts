import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import type { DatabaseSync } from "node:sqlite";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { KeyRequest } from "../actions.ts";
import { ManualClock } from "../testing.ts";
import { openDatabase } from "./database.ts";
import { createKeys, openKeys } from "./keys.ts";

let dataDir: string;
let db: DatabaseSync;
beforeEach(() => {
  dataDir = mkdtempSync(path.join(tmpdir(), "mitos-keys-"));
  db = openDatabase(dataDir);
});
afterEach(() => {
  if (db.isOpen) db.close();
  rmSync(dataDir, { recursive: true });
});

const request: KeyRequest = { name: "laptop", owner: "alice", organisation: "acme", scopes: ["read"], ttlSeconds: 0, limits: {} };

describe("keys", () => {
  it("begin with mitos_sk_, hold 256 random bits, and never repeat", () => {
    const keys = createKeys(db, new ManualClock());
    const made = Array.from({ length: 50 }, () => keys.create(request).key);
    for (const key of made) {
      expect(key).toMatch(/^mitos_sk_[A-Za-z0-9_-]{43}$/);
      expect(Buffer.from(key.slice("mitos_sk_".length), "base64url")).toHaveLength(32);
    }
    expect(new Set(made).size).toBe(50);
  });

  it("are found by their whole text alone", () => {
    const keys = createKeys(db, new ManualClock());
    const { key, record } = keys.create(request);
    expect(keys.find(key)).toEqual(record);
    for (const wrong of ["", record.prefix, key.slice(0, -1), `${key}x`, key.toUpperCase(), record.id])
      expect(keys.find(wrong)).toBeUndefined();
  });

  it("are in no file of the data directory", () => {
    const keys = createKeys(db, new ManualClock());
    const { key, record } = keys.create(request);
    keys.touch(record.id);
    const bytes = () => Buffer.concat(readdirSync(dataDir).map((name) => readFileSync(path.join(dataDir, name))));
    expect(bytes().includes(record.prefix)).toBe(true);
    expect(bytes().includes(key.slice(record.prefix.length))).toBe(false);
    db.close();
    expect(bytes().includes(key.slice(record.prefix.length))).toBe(false);
  });

  it("stay with their states when the server starts again", () => {
    const clock = new ManualClock();
    const first = createKeys(db, clock);
    const kept = first.create(request);
    const revoked = first.create({ ...request, name: "old" });
    first.revoke(revoked.record.id);
    db.close();
    db = openDatabase(dataDir);
    const again = createKeys(db, clock);
    expect(again.find(kept.key)).toEqual(kept.record);
    expect(again.list().map(again.statusOf)).toEqual(["active", "revoked"]);
  });

  it("expire to the millisecond", () => {
    const clock = new ManualClock();
    const keys = createKeys(db, clock);
    const { record } = keys.create({ ...request, ttlSeconds: 60 });
    clock.advance(59_999);
    expect(keys.statusOf(record)).toBe("active");
    clock.advance(1);
    expect(keys.statusOf(record)).toBe("expired");
  });

  it("remember their last use to the minute", () => {
    const clock = new ManualClock();
    const keys = createKeys(db, clock);
    const { key, record } = keys.create(request);
    const first = clock.nowMs();
    keys.touch(record.id);
    clock.advance(59_999);
    keys.touch(record.id);
    expect(keys.find(key)?.lastUsedAtMs).toBe(first);
    clock.advance(1);
    keys.touch(record.id);
    expect(keys.find(key)?.lastUsedAtMs).toBe(first + 60_000);
  });

  it("are revoked once and for all, and an unknown id is not_found", () => {
    const clock = new ManualClock();
    const keys = createKeys(db, clock);
    const { record } = keys.create(request);
    const { revokedAtMs } = keys.revoke(record.id);
    clock.advance(1000);
    expect(keys.revoke(record.id).revokedAtMs).toBe(revokedAtMs);
    expect(() => keys.revoke("key-none")).toThrow(expect.objectContaining({ code: "not_found" }));
  });

  it.each([
    ["name", { name: "a\nb" }],
    ["owner", { owner: "" }],
    ["organisation", { organisation: "-x" }],
    ["scopes", { scopes: [] }],
    ["scopes", { scopes: ["root" as "read"] }],
    ["ttl_seconds", { ttlSeconds: 1.5 }],
    ["maxStreams", { limits: { maxStreams: 0 } }],
  ])("are not made with a wrong %s", (field, wrong) => {
    const keys = createKeys(db, new ManualClock());
    expect(() => keys.create({ ...request, ...wrong })).toThrow(
      expect.objectContaining({ code: "invalid_input", message: expect.stringContaining(field) }),
    );
    expect(keys.list()).toEqual([]);
  });

  it("can be made without a server, and not beside one", () => {
    expect(() => openKeys(dataDir)).toThrow(expect.objectContaining({ code: "conflict" }));
    db.close();
    {
      using keys = openKeys(dataDir);
      keys.create(request);
    }
    db = openDatabase(dataDir);
    expect(createKeys(db, new ManualClock()).list()).toHaveLength(1);
  });
});
