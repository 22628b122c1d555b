import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import type { DatabaseSync } from "node:sqlite";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ManualClock } from "../testing.ts";
import { openDatabase } from "./database.ts";
import { createIdempotencyStore } from "./idempotency.ts";

let dataDir: string;
let db: DatabaseSync;
beforeEach(() => {
  dataDir = mkdtempSync(path.join(tmpdir(), "mitos-store-"));
  db = openDatabase(dataDir);
});
afterEach(() => {
  db.close();
  rmSync(dataDir, { recursive: true });
});

describe("idempotency", () => {
  it("answers a repetition with the first resource, for 24 hours", () => {
    const clock = new ManualClock();
    const store = createIdempotencyStore(db, clock);
    expect(store.begin("fork", "key")).toEqual({ first: true });
    store.complete("fork", "key", "a");
    clock.advance(24 * 3_600_000 - 1);
    expect(store.begin("fork", "key")).toEqual({ first: false, resource: "a" });
    clock.advance(1);
    expect(store.begin("fork", "key")).toEqual({ first: true });
  });

  it("refuses a repetition while the first is under way, and lets it run when that has failed", () => {
    const store = createIdempotencyStore(db, new ManualClock());
    store.begin("fork", "key");
    expect(() => store.begin("fork", "key")).toThrow(expect.objectContaining({ code: "conflict" }));
    store.release("fork", "key");
    expect(store.begin("fork", "key")).toEqual({ first: true });
  });

  it("treats a key of another kind as absent", () => {
    const store = createIdempotencyStore(db, new ManualClock());
    store.begin("template", "key");
    store.complete("template", "key", "python");
    expect(store.begin("fork", "key")).toEqual({ first: true });
    store.complete("template", "key", "python");
    expect(() => store.begin("fork", "key")).toThrow(expect.objectContaining({ code: "conflict" }));
  });

  it("answers a repetition with the first resource after a restart", () => {
    const store = createIdempotencyStore(db, new ManualClock());
    store.begin("fork", "key");
    store.complete("fork", "key", "a");
    db.close();
    db = openDatabase(dataDir);
    expect(createIdempotencyStore(db, new ManualClock()).begin("fork", "key")).toEqual({ first: false, resource: "a" });
  });

  it("lets what a killed server had under way run again", () => {
    createIdempotencyStore(db, new ManualClock()).begin("fork", "key");
    expect(createIdempotencyStore(db, new ManualClock()).begin("fork", "key")).toEqual({ first: true });
  });
});
