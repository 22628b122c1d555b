import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { openDatabase } from "./database.ts";
import { SettingsStore } from "./settings.ts";

describe("a stored secret", () => {
  let dataDir: string;
  beforeEach(() => {
    dataDir = mkdtempSync(path.join(os.tmpdir(), "mitos-settings-"));
  });
  afterEach(() => rmSync(dataDir, { recursive: true }));

  function secret(name: string): Uint8Array {
    const db = openDatabase(dataDir);
    try {
      return new SettingsStore(db).secret(name, 32);
    } finally {
      db.close();
    }
  }

  it("is the same after a restart, and another one under another name and in another directory", () => {
    const first = secret("preview");
    expect(first).toHaveLength(32);
    expect(secret("preview")).toEqual(first);
    expect(secret("other")).not.toEqual(first);
    rmSync(dataDir, { recursive: true });
    expect(secret("preview")).not.toEqual(first);
  });
});
