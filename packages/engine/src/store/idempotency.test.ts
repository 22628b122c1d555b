import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import type { DatabaseSync } from "node:sqlite";
import type { SandboxId } from "@mitos/protocol";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ids, ManualClock } from "../testing.ts";
import { openDatabase } from "./database.ts";
import { createIdempotencyStore } from "./idempotency.ts";

const [a, b, c] = ids("a", "b", "c") as [SandboxId, SandboxId, SandboxId];
let dataDir: string;
let db: DatabaseSync;
beforeEach(() => {
  dataDir = mkdtempSync(path.join(tmpdir(), "mitos-store-"));
  db = openDatabase(dataDir);
});
/** With the sandboxes that are there when it is opened. */
const open = (clock = new ManualClock(), there: readonly string[] = []) => createIdempotencyStore(db, clock, (id) => there.includes(id));

afterEach(() => {
  db.close();
  rmSync(dataDir, { recursive: true });
});

describe("idempotency", () => {
  it("answers a repetition with the first resource, for 24 hours", () => {
    const clock = new ManualClock();
    const store = open(clock);
    expect(store.begin("fork", "key")).toEqual({ first: true });
    store.complete("fork", "key", "a");
    clock.advance(24 * 3_600_000 - 1);
    expect(store.begin("fork", "key")).toEqual({ first: false, resource: "a" });
    clock.advance(1);
    expect(store.begin("fork", "key")).toEqual({ first: true });
  });

  it("refuses a repetition while the first is under way, and lets it run when that has failed", () => {
    const store = open();
    store.begin("fork", "key");
    expect(() => store.begin("fork", "key")).toThrow(expect.objectContaining({ code: "conflict" }));
    store.release("fork", "key");
    expect(store.begin("fork", "key")).toEqual({ first: true });
  });

  it("treats a key of another kind as absent", () => {
    const store = open();
    store.begin("template", "key");
    store.complete("template", "key", "python");
    expect(store.begin("fork", "key")).toEqual({ first: true });
    store.complete("template", "key", "python");
    expect(() => store.begin("fork", "key")).toThrow(expect.objectContaining({ code: "conflict" }));
  });

  it("answers a repetition with the first resource after a restart", () => {
    const store = open();
    store.begin("fork", "key");
    store.complete("fork", "key", "a");
    db.close();
    db = openDatabase(dataDir);
    expect(open().begin("fork", "key")).toEqual({ first: false, resource: "a" });
  });

  it("answers what a killed server had done and not yet answered, and lets what it had not done run", () => {
    const killed = open();
    killed.begin("fork", "done", [a, b]);
    killed.begin("fork", "half", [a, c]);
    killed.begin("template", "made-again");
    const store = open(undefined, ["a", "b"]);
    expect(store.begin("fork", "done", [a, b])).toEqual({ first: false, resource: "a,b" });
    expect(store.begin("fork", "half", [a, c])).toEqual({ first: true });
    expect(store.begin("template", "made-again")).toEqual({ first: true });
    expect(() => store.begin("fork", "half", [a, c])).toThrow(expect.objectContaining({ code: "conflict" }));
  });
});
