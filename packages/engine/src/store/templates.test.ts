import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { earlierRoot } from "../templates.ts";
import { template } from "../testing.ts";
import { openDatabase } from "./database.ts";
import { TemplateStore } from "./templates.ts";

let dataDir: string;
beforeEach(() => {
  dataDir = mkdtempSync(path.join(tmpdir(), "mitos-templates-"));
});
afterEach(() => rmSync(dataDir, { recursive: true, force: true }));

describe("a template that an earlier version has recorded", () => {
  it("is made of the host's files, and waits for HTTP where it waits for something", () => {
    const db = openDatabase(dataDir);
    const ready = { port: 80, path: "/", expect: 200, timeoutSeconds: 5 };
    const request = { ...template("node"), workload: { command: ["serve"], env: {}, ready } };
    const snapshot = { dir: "/nowhere", bytes: 1, requirements: {} };
    const record = { request, snapshot, createdAtMs: 1, creationTimeMs: 2 };
    db.prepare("INSERT INTO templates (id, record) VALUES (?, ?)").run("node", JSON.stringify(record));
    const [found] = new TemplateStore(db).all(earlierRoot);
    db.close();
    expect(found).toMatchObject({
      request: { workload: { command: ["serve"], ready: { kind: "http", ...ready } } },
      root: { source: { kind: "host" }, layers: null, language: "javascript" },
      warnings: [],
      createdAtMs: 1,
    });
  });
});
