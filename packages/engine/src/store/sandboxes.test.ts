import { DatabaseSync } from "node:sqlite";
import { afterEach, beforeEach, expect, it } from "vitest";
import { type SandboxRecord, SandboxStore } from "./sandboxes.ts";

let db: DatabaseSync;
let store: SandboxStore;
beforeEach(() => {
  db = new DatabaseSync(":memory:");
  db.exec("CREATE TABLE sandboxes (uid INTEGER PRIMARY KEY, record TEXT NOT NULL) STRICT");
  store = new SandboxStore(db);
});
afterEach(() => db.close());

function record(uid: number, state: string, bytes = 0): SandboxRecord {
  return { uid, state, metadata: { filler: "x".repeat(bytes) } } as unknown as SandboxRecord;
}

/** No page more than now: what SQLite answers on a full disk. */
function fillUp(): () => void {
  const pages = Number(db.prepare("PRAGMA page_count").get()?.page_count);
  db.exec(`PRAGMA max_page_count = ${pages}`);
  return () => db.exec("PRAGMA max_page_count = 1000000");
}

const states = () => store.all().map(({ uid, state }) => `${uid} ${state}`);
const diskFull = expect.objectContaining({ code: "quota_exceeded", detail: expect.objectContaining({ context: { dimension: "disk" } }) });

it("refuses what is to be decided when the disk is full, all of it or nothing", () => {
  store.put(record(1, "running"));
  const giveBack = fillUp();
  expect(() => store.put(record(1, "pausing"), record(2, "starting", 100_000))).toThrow(diskFull);
  expect(() => store.putDurably(record(1, "paused", 100_000))).toThrow(diskFull);
  expect(states()).toEqual(["1 running"]);
  giveBack();
  store.put(record(1, "pausing"), record(2, "starting", 100_000));
  expect(states()).toEqual(["1 pausing", "2 starting"]);
});

it("owes the disk what has happened already, and writes it when there is room", () => {
  store.put(record(1, "running"), record(2, "running"));
  const giveBack = fillUp();
  store.putEventually(record(1, "failed", 100_000));
  store.deleteEventually(2);
  expect(store.owes).toBe(true);
  expect(store.settle()).toBeInstanceOf(Error);
  expect(states()).toContain("1 running");
  giveBack();
  expect(store.settle()).toBeUndefined();
  expect(store.owes).toBe(false);
  expect(states()).toEqual(["1 failed"]);
});

it("does not write an older record over a newer one", () => {
  const giveBack = fillUp();
  store.putEventually(record(1, "running", 100_000));
  giveBack();
  store.put(record(1, "ended"));
  store.settle();
  expect(states()).toEqual(["1 ended"]);
});

it.each(["put", "putDurably"] as const)("writes what it owes right after the next record that the disk takes, by %s", (write) => {
  store.put(record(1, "running"), record(2, "paused"));
  const giveBack = fillUp();
  store.putEventually(record(1, "failed", 100_000));
  store.deleteEventually(2);
  giveBack();
  store[write](record(3, "running"));
  expect(store.owes).toBe(false);
  expect(states()).toEqual(["1 failed", "3 running"]);
});
