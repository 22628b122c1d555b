/** The published Python clients, as PyPI has them: each fixture is a program that a user could have written against that client. */

import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { Sandbox, SandboxServer } from "@mitos/sdk";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { debian } from "../support/base-image.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { type HostSet, hostPackages, sandboxPython } from "../support/python-packages.ts";
import { type Registry, startRegistry } from "../support/registry.ts";
import { until } from "../support/until.ts";

const run = promisify(execFile);
const fixtures = path.join(import.meta.dirname, "fixtures");
/** A first run fetches packages. */
const setUpMs = 10 * 60_000;
const scriptMs = 100_000;

let registry: Registry;
let live: LiveServer;
let configDir: string;
beforeAll(async () => {
  registry = await startRegistry();
  await registry.push(await debian("python"), "library/python:3.12");
  live = await startLiveServer("real", undefined, { mirrors: { "docker.io": [registry.host] } });
  // What an emulated processor takes to make the first one is no client's patience.
  await new SandboxServer(live.url).ensureTemplate("python");
  // No key of whoever runs the tests finds its way in.
  configDir = mkdtempSync(path.join(os.tmpdir(), "mitos-no-config-"));
}, setUpMs);
afterEach(async () => {
  const left = live.engine.list().map(({ id }) => id);
  await Promise.all(left.map((id) => live.engine.terminate(id)));
  expect(left).toEqual([]);
});
afterAll(async () => {
  rmSync(configDir, { recursive: true, force: true });
  await live?.close();
  await registry?.[Symbol.asyncDispose]();
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
    ["makes sandboxes of images", "images.py"],
    ["opens ports of the sandbox", "ports.py"],
    ["serves code that was written for E2B", "e2b.py"],
    ["brings its adapters for agent frameworks", "adapters.py"],
  ])("%s", (_, script) => python(script, [client]));

  it("knows where it is inside a sandbox, and forks it", async () => {
    await using sandbox = await live.create({ template: "base", forkBudget: 2 });
    const { stdout: packages } = await run("tar", ["-cz", "-C", await hostPackages(client), "."], {
      encoding: "buffer",
      maxBuffer: 2 ** 28,
    });
    await sandbox.files.write("/workspace/packages.tar.gz", packages);
    await sandbox.files.write("/workspace/guest.py", readFileSync(path.join(fixtures, "guest.py")));
    const program = "mkdir packages && tar -xzf packages.tar.gz -C packages && PYTHONPATH=packages python3 guest.py";
    const { exitCode, stderr } = await sandbox.exec(program, { timeoutSeconds: 100 });
    expect(exitCode, stderr).toBe(0);
    const report = async (at: Sandbox) => JSON.parse(await at.files.read("/workspace/report.json"));

    const { children = [] } = await sandbox.info();
    expect(children).toHaveLength(2);
    const spent = { max_forks: 2, max_checkpoints: 0, forks_used: 2 };
    const refused = expect.stringContaining("0 are left of the fork budget of 2");
    expect(await report(sandbox)).toEqual({ before: sandbox.id, now: sandbox.id, children: expect.any(Array), budget: spent, refused });
    for (const id of children) {
      const child = await Sandbox.connect(id, { baseUrl: live.url });
      await until("the program has gone on in the child", () => child.files.exists("/workspace/report.json"));
      const none = { max_forks: 0, max_checkpoints: 0, forks_used: 0 };
      expect(await report(child)).toEqual({ before: sandbox.id, now: id, children: [], budget: none });
      expect((await child.info()).metadata).toEqual({ label: "worker" });
      await child.terminate();
    }
  });
});

describe("the frameworks themselves, over mitos-run-0.1.1", () => {
  beforeAll(async () => {
    await Promise.all([hostPackages("frameworks"), hostPackages("zenml")]);
  }, setUpMs);

  it("deepagents, openai-agents and claude-agent-sdk work in a sandbox", () => python("frameworks.py", ["mitos-run-0.1.1", "frameworks"]));

  // Apart: its dependencies do not fit the others'.
  it("zenml is there for the component, whose registration is pending", () => python("zenml_component.py", ["mitos-run-0.1.1", "zenml"]));
});
