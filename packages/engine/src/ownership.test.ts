import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { DatabaseSync } from "node:sqlite";
import { type toSandboxId, toTemplateId } from "@mitos/protocol";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { systemClock } from "./clock.ts";
import { openDatabase } from "./store/database.ts";
import { createIdempotencyStore } from "./store/idempotency.ts";
import { Bench, ids, sandbox, template } from "./testing.ts";

const alice = { owner: "alice", organisation: "acme" };
const bob = { owner: "bob", organisation: "acme" };
const [parent, child] = ids("parent", "child") as [ReturnType<typeof toSandboxId>, ReturnType<typeof toSandboxId>];

let bench: Bench;
beforeEach(async () => {
  bench = await Bench.open();
});
afterEach(() => bench[Symbol.asyncDispose]());

describe("a sandbox", () => {
  it("is its creator's, its children are as well, also when it has ended and when the server starts again", async () => {
    await bench.engine.create(sandbox("parent", { owner: alice }));
    await bench.engine.fork({ source: parent, ids: [child], inheritSecrets: false, env: {} });
    await bench.engine.terminate(parent);
    await bench.engine.close({ sandboxes: "keep" });
    const engine = await bench.reopen();
    expect(engine.list().map(({ id, owner }) => [id, owner])).toEqual([["child", alice]]);
    expect([engine.ownerOf(parent), engine.ownerOf(child)]).toEqual([alice, alice]);
  });

  it("that was made without a key has no owner, and an unknown one is not_found", async () => {
    expect(await bench.engine.create(sandbox("parent"))).toMatchObject({ owner: null });
    expect(bench.engine.ownerOf(parent)).toBeNull();
    expect(() => bench.engine.ownerOf(child)).toThrow(expect.objectContaining({ code: "not_found" }));
  });
});

describe("a template", () => {
  const resources = { vcpuCount: 1, memSizeMiB: 1024, processesMax: 1024 };

  it("is redefined by its owner only; the same definition is anybody's, and changes no owner", async () => {
    await bench.engine.createTemplate(template("app", { owner: alice }));
    expect(await bench.engine.createTemplate(template("app", { owner: bob }))).toMatchObject({ owner: alice });
    await expect(bench.engine.createTemplate(template("app", { owner: bob, resources }))).rejects.toMatchObject({ code: "forbidden" });
    expect(await bench.engine.createTemplate(template("app", { owner: alice, resources }))).toMatchObject({ owner: alice, resources });
  });

  it("stays with its owner when another's request finds that it must be built anew", async () => {
    await bench.engine.createTemplate(template("app", { owner: alice }));
    bench.driver.onCheck = () => {
      throw new Error("does not fit");
    };
    const boots = bench.driver.boots;
    expect(await bench.engine.createTemplate(template("app", { owner: bob }))).toMatchObject({ owner: alice });
    expect(bench.driver.boots).toBe(boots + 1);
  });

  it("of two owners who define it at the same time is the first one's", async () => {
    const both = [template("app", { owner: alice }), template("app", { owner: bob, resources })].map((one) =>
      bench.engine.createTemplate(one),
    );
    const [first, second] = await Promise.allSettled(both);
    expect(first).toMatchObject({ status: "fulfilled", value: { owner: alice } });
    expect(second).toMatchObject({ status: "rejected", reason: { code: "forbidden" } });
    expect(bench.engine.listTemplates().find(({ id }) => id === toTemplateId("app"))).toMatchObject({ resources: { memSizeMiB: 512 } });
  });
});

it("a database from before there were keys is taken over", () => {
  const dataDir = mkdtempSync(path.join(tmpdir(), "mitos-old-"));
  const old = new DatabaseSync(path.join(dataDir, "mitos.db"));
  old.exec(`
    CREATE TABLE sandboxes (uid INTEGER PRIMARY KEY, record TEXT NOT NULL) STRICT;
    CREATE TABLE templates (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
    CREATE TABLE idempotency (key TEXT PRIMARY KEY, kind TEXT NOT NULL, resource TEXT, at_ms INTEGER NOT NULL) STRICT;
    CREATE INDEX idempotency_at ON idempotency (at_ms);
    INSERT INTO idempotency VALUES ('done', 'fork', 'a', ${Date.now()}), ('under way', 'fork', NULL, ${Date.now()});
    PRAGMA user_version = 1;`);
  old.close();
  const db = openDatabase(dataDir);
  expect(db.prepare("SELECT count(*) AS n FROM keys").get()).toEqual({ n: 0 });
  const store = createIdempotencyStore(db, systemClock, () => true);
  expect(store.begin("fork", "done")).toEqual({ first: false, resource: "a" });
  expect(store.begin("fork", "under way")).toEqual({ first: true });
  db.close();
  rmSync(dataDir, { recursive: true });
});
