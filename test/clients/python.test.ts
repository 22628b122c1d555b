/** The published Python clients, as PyPI has them: each fixture is a program that a user could have written against that client. */

import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { type HostSet, hostPackages, sandboxPython } from "../support/python-packages.ts";

const run = promisify(execFile);
const fixtures = path.join(import.meta.dirname, "fixtures");
/** A first run fetches packages. */
const setUpMs = 10 * 60_000;
const scriptMs = 100_000;

let live: LiveServer;
let configDir: string;
beforeAll(async () => {
  live = await startLiveServer();
  // No key of whoever runs the tests finds its way in.
  configDir = mkdtempSync(path.join(os.tmpdir(), "mitos-no-config-"));
});
afterEach(async () => {
  const left = live.engine.list().map(({ id }) => id);
  await Promise.all(left.map((id) => live.engine.terminate(id)));
  expect(left).toEqual([]);
});
afterAll(async () => {
  rmSync(configDir, { recursive: true, force: true });
  await live?.close();
});

async function python(script: string, sets: readonly HostSet[]): Promise<void> {
  const packages = await Promise.all(sets.map(hostPackages));
  const env = {
    PATH: process.env.PATH,
    HOME: configDir,
    PYTHONPATH: packages.join(path.delimiter),
    MITOS_CONFIG_DIR: configDir,
    MITOS_BASE_URL: live.url,
  };
  const { stdout } = await run(sandboxPython, [path.join(fixtures, script)], { env, timeout: scriptMs }).catch(
    (error: { stderr?: string }) => {
      throw new Error(`${script} failed: ${error.stderr || error}`);
    },
  );
  expect(stdout.trimEnd().split("\n").at(-1)).toBe("ok");
}

describe.each(["mitos-run-0.1.0", "mitos-run-0.1.1"] as const)("%s", (client) => {
  beforeAll(async () => {
    await hostPackages(client);
  }, setUpMs);

  it.each([
    ["does what its published quickstart shows", "quickstart.py"],
    ["runs programs, and raises its typed errors", "execs.py"],
    ["reads, writes, lists and removes files", "files.py"],
    ["runs code, with every kind of result", "codes.py"],
    ["holds a terminal", "terminal.py"],
    ["works asynchronously", "asynchronous.py"],
    ["forks the running sandbox, not its template", "forks.py"],
    ["sets time-outs, pauses, resumes, and retries", "lifecycle.py"],
    ["opens ports of the sandbox", "ports.py"],
    ["serves code that was written for E2B", "e2b.py"],
    ["brings its adapters for agent frameworks", "adapters.py"],
  ])("%s", (_, script) => python(script, [client]));
});

describe("the frameworks themselves, over mitos-run-0.1.1", () => {
  beforeAll(async () => {
    await Promise.all([hostPackages("frameworks"), hostPackages("zenml")]);
  }, setUpMs);

  it("deepagents, openai-agents and claude-agent-sdk work in a sandbox", () => python("frameworks.py", ["mitos-run-0.1.1", "frameworks"]));

  // Apart: its dependencies do not fit the others'.
  it("zenml is there for the component, whose registration is pending", () => python("zenml_component.py", ["mitos-run-0.1.1", "zenml"]));
});
