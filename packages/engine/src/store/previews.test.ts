import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import type { DatabaseSync } from "node:sqlite";
import type { SandboxId } from "@mitos/protocol";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ids, ManualClock } from "../testing.ts";
import { openDatabase } from "./database.ts";
import { createPreviewTerms } from "./previews.ts";

const [a, b] = ids("a", "b") as [SandboxId, SandboxId];

let dataDir: string;
let db: DatabaseSync;
/** When the sandbox that has the id now was created. */
let createdAtMs: number;
const open = (clock = new ManualClock()) => createPreviewTerms(db, clock, () => createdAtMs);
beforeEach(() => {
  dataDir = mkdtempSync(path.join(tmpdir(), "mitos-store-"));
  db = openDatabase(dataDir);
  createdAtMs = 1_000;
});
afterEach(() => {
  db.close();
  rmSync(dataDir, { recursive: true });
});

describe("the terms of previews", () => {
  it("are as wanted for a sandbox whose id is new, in whatever order", () => {
    const terms = open();
    expect(terms.issue(a, 500)).toBe(500);
    expect(terms.issue(a, 400)).toBe(400);
    for (const expiry of [1, 400, 500, 600]) expect(terms.isOfEarlier(a, expiry)).toBe(false);
  });

  it("tell the tokens of a sandbox from those of the ones before it, also when all want the same or a shorter time", () => {
    const terms = open();
    terms.issue(a, 500);
    createdAtMs = 2_000;
    expect(terms.isOfEarlier(a, 500)).toBe(true);
    expect(terms.issue(a, 500)).toBe(501);
    expect(terms.issue(a, 700)).toBe(700);
    expect(terms.issue(a, 600)).toBe(600);
    createdAtMs = 3_000;
    expect(terms.issue(a, 10)).toBe(701);
    expect([500, 501, 600, 700, 701].map((expiry) => terms.isOfEarlier(a, expiry))).toEqual([true, true, true, true, false]);
  });

  it("hold after a restart", () => {
    open().issue(a, 500);
    db.close();
    db = openDatabase(dataDir);
    expect(open().isOfEarlier(a, 500)).toBe(false);
    createdAtMs = 2_000;
    expect(open().isOfEarlier(a, 500)).toBe(true);
  });

  it("are forgotten when nothing of them is valid any more", () => {
    const clock = new ManualClock();
    const nowUnix = Math.floor(clock.nowMs() / 1000);
    open(clock).issue(a, nowUnix + 10);
    clock.advance(11_000);
    open(clock).issue(b, nowUnix + 100);
    expect(db.prepare("SELECT sandbox FROM previews").all()).toEqual([{ sandbox: "b" }]);
  });
});
