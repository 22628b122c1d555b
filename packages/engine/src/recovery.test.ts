import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { DatabaseSync } from "node:sqlite";
import type { SandboxId } from "@mitos/protocol";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { openEngine } from "./index.ts";
import type { SandboxRecord } from "./store/sandboxes.ts";
import { Bench, ids, quiet, sandbox } from "./testing.ts";

const [a, b, c] = ids("a", "b", "c") as [SandboxId, SandboxId, SandboxId];

describe("the next server on a data directory", () => {
  let bench: Bench;
  beforeEach(async () => {
    bench = await Bench.open();
  });
  afterEach(async () => {
    await bench[Symbol.asyncDispose]();
    expect(bench.driver.machines.size).toBe(0);
  });

  /** What the database says of a sandbox, changed as if the server had died at that point. */
  function rewrite(id: string, change: (record: SandboxRecord) => Partial<SandboxRecord>): void {
    const db = new DatabaseSync(path.join(bench.dataDir, "mitos.db"));
    for (const row of db.prepare("SELECT uid, record FROM sandboxes").all()) {
      const record = JSON.parse(String(row.record)) as SandboxRecord;
      if (record.id !== id) continue;
      db.prepare("UPDATE sandboxes SET record = ? WHERE uid = ?").run(JSON.stringify({ ...record, ...change(record) }), record.uid);
    }
    db.close();
  }

  /** What is on the disk now. The answer puts it back, as if the server had been killed then. */
  async function diskNow(): Promise<() => Promise<void>> {
    const names = (await readdir(bench.dataDir)).filter((name) => name.startsWith("mitos.db"));
    const files = await Promise.all(
      names.map(async (name) => [path.join(bench.dataDir, name), await readFile(path.join(bench.dataDir, name))] as const),
    );
    return async () => {
      for (const [file, content] of files) await writeFile(file, content);
    };
  }

  it("takes up living machines, with their lineage, deadline and template", async () => {
    await bench.engine.create(sandbox("a", { timeoutSeconds: 60 }));
    await bench.engine.fork({ source: a, ids: [b], inheritSecrets: false, env: {} });
    await bench.engine.close({ sandboxes: "keep" });
    const { boots } = bench.driver;
    await bench.reopen();
    expect(bench.engine.list().map(({ id, state }) => [id, state])).toEqual([
      ["a", "running"],
      ["b", "running"],
    ]);
    expect(bench.engine.get(a).children).toEqual([b]);
    await bench.engine.fork({ source: b, ids: [c], inheritSecrets: false, env: {} });
    expect(bench.driver.boots).toBe(boots);
    bench.clock.advance(60_000);
    expect(bench.engine.list()).toEqual([]);
  });

  it("reports a machine that died meanwhile once, and sweeps what is not known", async () => {
    await bench.engine.create(sandbox("a"));
    await bench.engine.create(sandbox("b"));
    await bench.engine.close({ sandboxes: "keep" });
    const [machineOfA, machineOfB] = [...bench.driver.machines.values()];
    await machineOfA?.end("power cut");
    await bench.reopen();
    expect(bench.engine.get(a)).toMatchObject({ state: "failed", endReason: expect.stringMatching(/^lost/) });
    expect(bench.engine.get(b).state).toBe("running");
    expect(bench.driver.swept.at(-1)).toEqual(new Set([machineOfB?.machineId]));
    await bench.engine.terminate(a);
    await bench.engine.close({ sandboxes: "keep" });
    await bench.reopen();
    expect(bench.engine.list().map(({ id }) => id)).toEqual(["b"]);
  });

  it("resumes what an earlier one paused", async () => {
    await bench.engine.create(sandbox("a"));
    await bench.engine.pause(a);
    await bench.engine.close({ sandboxes: "keep" });
    await bench.reopen();
    expect(bench.engine.get(a).state).toBe("paused");
    await bench.engine.resume(a);
    expect(bench.engine.get(a).state).toBe("running");
  });

  it("goes on with a sandbox that was being paused, and leaves one that was being resumed paused", async () => {
    await bench.engine.create(sandbox("a"));
    await bench.engine.create(sandbox("b"));
    await bench.engine.pause(b);
    await bench.engine.close({ sandboxes: "keep" });
    rewrite("a", () => ({ state: "pausing" }));
    rewrite("b", () => ({ state: "resuming", machineId: "m0000000000000000" }));
    await bench.reopen();
    expect([bench.engine.get(a).state, bench.engine.get(b).state]).toEqual(["running", "paused"]);
    await bench.engine.resume(b);
  });

  it("removes sandboxes that were being started, half-made snapshots, and those whose sandbox has ended", async () => {
    await bench.engine.create(sandbox("a"));
    await bench.engine.create(sandbox("b"));
    const folders = await bench.snapshotFolders();
    await bench.engine.close({ sandboxes: "keep" });
    rewrite("b", () => ({ state: "starting" }));
    await mkdir(path.join(bench.dataDir, "snapshots", "pause-0123456789abcdef.part"));
    await bench.reopen();
    expect(bench.engine.list().map(({ id }) => id)).toEqual(["a"]);
    expect(bench.driver.machines.size).toBe(1);
    expect(await bench.snapshotFolders()).toEqual(folders);
  });

  it("has spent nothing of a budget for children that were being started", async () => {
    await bench.engine.create(sandbox("a", { forkBudget: 2 }));
    const [restoring, go] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    bench.driver.onRestore = () => {
      restoring.resolve();
      return go.promise;
    };
    const asked = bench.hooks.get(a)!.onForkSelf(2, "");
    await restoring.promise;
    const killedThen = await diskNow();
    go.resolve();
    await asked;
    await bench.engine.close({ sandboxes: "keep" });
    await killedThen();
    await bench.reopen();
    expect(bench.engine.list()).toMatchObject([{ id: "a", forkBudget: 2, forksUsed: 0, children: [] }]);
  });

  it("answers a repeated request with what an earlier one had made and not yet told, and runs one that had made nothing", async () => {
    await bench.engine.create(sandbox("a"));
    const { idempotency } = bench.engine;
    idempotency.begin("fork", "made", [b, c]);
    await bench.engine.fork({ source: a, ids: [b, c], inheritSecrets: false, env: {} });
    // Another key for an id that was in use before: that sandbox is not what the request has made.
    idempotency.begin("fork", "refused", [a]);
    idempotency.begin("fork", "half-made", ids("d"));
    await bench.engine.create(sandbox("d"));
    idempotency.begin("fork", "ended", ids("e"));
    await bench.engine.create(sandbox("e"));
    await bench.engine.terminate(ids("e")[0]!);
    await bench.engine.close({ sandboxes: "keep" });
    rewrite("d", () => ({ state: "starting" }));
    const next = (await bench.reopen()).idempotency;
    expect(next.begin("fork", "made", [b, c])).toEqual({ first: false, resource: "b,c" });
    for (const key of ["refused", "half-made", "ended"]) expect(next.begin("fork", key), key).toEqual({ first: true });
  });

  it("remembers what has ended, and forgets it after a day", async () => {
    await bench.engine.create(sandbox("a"));
    await bench.engine.terminate(a);
    await bench.engine.close({ sandboxes: "keep" });
    await bench.reopen();
    expect(() => bench.engine.get(a)).toThrow(/terminated/);
    await bench.engine.close({ sandboxes: "keep" });
    bench.clock.advance(25 * 3_600_000);
    await bench.reopen();
    expect(() => bench.engine.get(a)).toThrow(expect.objectContaining({ code: "not_found" }));
  });

  it("refuses actions after it was closed", async () => {
    await bench.engine.close({ sandboxes: "keep" });
    await expect(bench.engine.create(sandbox("a"))).rejects.toMatchObject({ code: "unavailable" });
    await bench.reopen();
  });
});

describe("the data directory", () => {
  let dataDir: string;
  beforeEach(async () => {
    dataDir = await mkdtemp(path.join(tmpdir(), "mitos-engine-"));
  });
  afterEach(() => rm(dataDir, { recursive: true, force: true }));
  const options = () => ({ dataDir, engine: "mock" as const, log: quiet });

  it("is used by one server at a time, and free again after that one was killed, whose sandboxes have failed", async () => {
    const program = `
      import { openEngine } from ${JSON.stringify(path.join(import.meta.dirname, "index.ts"))};
      import { quiet, sandbox, template } from ${JSON.stringify(path.join(import.meta.dirname, "testing.ts"))};
      const engine = await openEngine({ dataDir: process.argv[1], engine: "mock", log: quiet });
      await engine.createTemplate(template("python"));
      await engine.create(sandbox("a"));
      engine.idempotency.begin("fork", "done"); engine.idempotency.complete("fork", "done", "a");
      engine.idempotency.begin("fork", "under-way");
      process.stdout.write("ready");
      setInterval(() => {}, 1000);
    `;
    const server = spawn(process.execPath, ["--input-type=module", "--eval", program, dataDir], { stdio: ["ignore", "pipe", "inherit"] });
    await once(server.stdout, "data");
    await expect(openEngine(options())).rejects.toMatchObject({
      code: "conflict",
      detail: { cause: expect.stringContaining(String(server.pid)), remediation: expect.stringContaining("--data-dir") },
    });
    server.kill("SIGKILL");
    await once(server, "exit");

    const engine = await openEngine(options());
    expect(engine.list()).toMatchObject([{ id: "a", state: "failed" }]);
    expect(engine.listTemplates()).toHaveLength(1);
    expect(engine.idempotency.begin("fork", "done")).toEqual({ first: false, resource: "a" });
    expect(engine.idempotency.begin("fork", "under-way")).toEqual({ first: true });
    expect(() => engine.runtime(a)).toThrow(/failed/);
    await engine.terminate(a);
    for (const { id } of engine.listTemplates()) await engine.deleteTemplate(id);
    await engine.close({ sandboxes: "end" });
  });

  it("names the file and the way out when the database is damaged", async () => {
    await writeFile(path.join(dataDir, "mitos.db"), "this is no database, and long enough to be looked at as one".repeat(100));
    await expect(openEngine(options())).rejects.toMatchObject({
      code: "internal",
      detail: { message: "the database is damaged", remediation: expect.stringMatching(/mitos\.db and mitos\.db-wal away/) },
    });
  });

  it("refuses a database of a newer server", async () => {
    const db = new DatabaseSync(path.join(dataDir, "mitos.db"));
    db.exec("PRAGMA user_version = 99");
    db.close();
    await expect(openEngine(options())).rejects.toMatchObject({ detail: { message: "the database was written by a newer server" } });
  });
});

describe("the mock engine", () => {
  it("answers the life cycle, refuses to run anything, and says what it is", async () => {
    const dataDir = await mkdtemp(path.join(tmpdir(), "mitos-engine-"));
    const engine = await openEngine({ dataDir, engine: "mock", log: quiet });
    const { template } = await import("./testing.ts");
    await expect(engine.createTemplate(template("python", { workload: { command: ["true"], env: {} } }))).rejects.toMatchObject({
      code: "not_supported",
    });
    await engine.createTemplate(template("python"));
    const made = await engine.create(sandbox("a"));
    expect([engine.driverName, made.isolation]).toEqual(["mock", "mock"]);
    expect(() => engine.runtime(a)).toThrow(expect.objectContaining({ code: "not_supported" }));
    await expect(engine.console(a)).rejects.toMatchObject({ code: "not_supported" });
    await engine.pause(a);
    await engine.fork({ source: a, ids: [b], inheritSecrets: false, env: {} });
    await engine.resume(a);
    await engine.terminate(a, { subtree: true });
    expect(engine.list()).toEqual([]);
    await engine.deleteTemplate(template("python").id);
    await engine.close({ sandboxes: "end" });
    await rm(dataDir, { recursive: true });
  });
});
