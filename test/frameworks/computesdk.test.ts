import { inspect } from "node:util";
import type { Sandbox } from "@mitos/sdk";
import { mitos } from "@mitos/sdk/integrations/computesdk";
import { compute } from "computesdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { runWithoutFrameworks } from "../support/consumer.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";

// Through ComputeSDK's own entry, as its users call it.
/** What is waited for comes at once, but not on a machine that is busy. */
const soon = { timeout: 20_000 };

let live: LiveServer;
let sandbox: Awaited<ReturnType<typeof compute.sandbox.create>>;
beforeAll(async () => {
  live = await startLiveServer();
  compute.setConfig({ provider: mitos({ baseUrl: live.url }) });
  sandbox = await compute.sandbox.create({ envs: { KEPT: "yes" }, metadata: { team: "blue", build: 7 }, timeout: 600_000 });
});
afterAll(() => live.close());

describe("commands", () => {
  it("run in a folder and with variables, and give output, exit code and duration", async () => {
    const result = await sandbox.runCommand("echo $KEPT $OWN; pwd; echo oh >&2; exit 3", { cwd: "/tmp", env: { OWN: "too" } });
    expect(result).toEqual({ stdout: "yes too\n/tmp\n", stderr: "oh\n", exitCode: 3, durationMs: expect.any(Number) });
  });

  it("stream what they print while they run, without anything installed in the sandbox", async () => {
    const seen: string[] = [];
    const work = sandbox.runCommand("echo one; until test -e /tmp/go; do sleep 0.05; done; echo två; echo oh >&2", {
      onStdout: (text) => seen.push(text),
      onStderr: (text) => seen.push(`! ${text}`),
    });
    await expect.poll(() => seen, soon).toEqual(["one\n"]);
    await sandbox.filesystem.writeFile("/tmp/go", "");
    expect(await work).toMatchObject({ exitCode: 0, stdout: "one\ntvå\n", stderr: "oh\n" });
    expect([...seen].sort()).toEqual(["! oh\n", "one\n", "två\n"]);
  });

  it("run on in the background", async () => {
    const started = await sandbox.runCommand('cd "$HERE" && python3 -m http.server 4567 --bind 127.0.0.1', {
      background: true,
      env: { HERE: "/tmp" },
    });
    expect(started).toMatchObject({ exitCode: 0, stdout: "" });
    const url = await sandbox.getUrl({ port: 4567 });
    await expect.poll(async () => (await fetch(url).catch(() => undefined))?.status, soon).toBe(200);
    await sandbox.runCommand("pkill -f '[h]ttp.server'");
  });

  it("whose time is up are killed and end with 124, with what they had printed", async () => {
    const result = await sandbox.runCommand("echo begun; exec sleep 4343", { timeout: 900 });
    expect(result).toMatchObject({ exitCode: 124, stdout: "begun\n" });
    expect((await sandbox.runCommand("pgrep -f 'sleep 434[3]'")).exitCode).toBe(1);
  });
});

describe("a sandbox", () => {
  it("has files", async () => {
    const { filesystem } = sandbox;
    await filesystem.mkdir("/workspace/a/b");
    await filesystem.writeFile("/workspace/a/f.txt", "hällo");
    expect(await filesystem.readFile("/workspace/a/f.txt")).toBe("hällo");
    const entries = (await filesystem.readdir("/workspace/a")).sort((one, other) => one.name.localeCompare(other.name));
    expect(entries).toEqual([
      expect.objectContaining({ name: "b", type: "directory" }),
      { name: "f.txt", type: "file", size: 6, modified: expect.any(Date) },
    ]);
    expect([await filesystem.exists("/workspace/a/f.txt"), await filesystem.exists("/workspace/a/nope")]).toEqual([true, false]);
    await filesystem.remove("/workspace/a");
    expect(await filesystem.exists("/workspace/a")).toBe(false);
  });

  it("tells what it is", async () => {
    const info = await sandbox.getInfo();
    expect(info).toMatchObject({ id: sandbox.sandboxId, provider: "mitos", status: "running", metadata: { team: "blue", build: "7" } });
    expect(info.createdAt.getTime() + info.timeout).toBeGreaterThan(Date.now());
  });

  it("has URLs of the server's own scheme only", async () => {
    expect(await sandbox.getUrl({ port: 80, protocol: "ws" })).toMatch(/^ws:\/\/127\.0\.0\.1/);
    await expect(sandbox.getUrl({ port: 80, protocol: "https" })).rejects.toThrow(/invalid_input.*http or ws/);
  });

  it("is found, listed and destroyed by its id", async () => {
    const other = await compute.sandbox.create();
    expect((await compute.sandbox.list()).map(({ sandboxId }) => sandboxId).sort()).toEqual([sandbox.sandboxId, other.sandboxId].sort());
    const again = await compute.sandbox.getById(other.sandboxId);
    expect((await again!.runCommand("echo found")).stdout).toBe("found\n");
    await compute.sandbox.destroy(other.sandboxId);
    expect(await compute.sandbox.getById(other.sandboxId)).toBeNull();
    await again!.destroy();
    expect(await compute.sandbox.getById("nobody")).toBeNull();
  });

  it("is a Mitos sandbox underneath, which forks and runs code", async () => {
    const instance = (sandbox as unknown as { getInstance(): Sandbox }).getInstance();
    expect((await instance.runCode("kept = 42; kept")).text).toBe("42");
    const children = await instance.fork(2);
    const values = await Promise.all(children.map(async (child) => (await child.runCode("kept")).text));
    expect(values).toEqual(["42", "42"]);
    await Promise.all(children.map((child) => compute.sandbox.destroy(child.id)));
  });

  it("is of the size and template that are asked for", async () => {
    const other = await compute.sandbox.create({ templateId: "base", vcpus: 1, memoryMiB: 256, name: "small" });
    const row = await live.engine.get(other.sandboxId as never);
    expect(row).toMatchObject({ templateId: "base", resources: { vcpuCount: 1, memSizeMiB: 256 }, metadata: { name: "small" } });
    await other.destroy();
  });
});

describe("a snapshot", () => {
  it("keeps memory and files, outlives its sandbox, and gives any number of sandboxes", async () => {
    const origin = await compute.sandbox.create();
    const instance = (origin as unknown as { getInstance(): Sandbox }).getInstance();
    await instance.runCode("saved = [1, 2, 3]");
    await origin.filesystem.writeFile("/workspace/saved", "there");
    const snapshot = await compute.snapshot.create(origin.sandboxId, { name: "good" });
    expect(snapshot).toMatchObject({
      id: "snapshot-good",
      provider: "mitos",
      metadata: { sandboxId: origin.sandboxId },
      createdAt: expect.any(Date),
    });
    await origin.filesystem.writeFile("/workspace/saved", "later");
    await origin.destroy();

    expect((await compute.snapshot.list()).map(({ id }) => id)).toEqual(["snapshot-good"]);
    expect((await compute.sandbox.list()).map(({ sandboxId }) => sandboxId)).not.toContain("snapshot-good");
    const restored = await Promise.all(
      [1, 2].map((index) => compute.sandbox.create({ snapshotId: snapshot.id, envs: { INDEX: `${index}` } })),
    );
    for (const [index, each] of restored.entries()) {
      expect(await each.filesystem.readFile("/workspace/saved")).toBe("there");
      expect((await each.runCommand("echo $INDEX")).stdout).toBe(`${index + 1}\n`);
      const code = await (each as unknown as { getInstance(): Sandbox }).getInstance().runCode("sum(saved)");
      expect(code.text).toBe("6");
      await each.destroy();
    }
    await compute.snapshot.delete(snapshot.id);
    expect(await compute.snapshot.list()).toEqual([]);
  });

  it("of a sandbox with a time limit has its own", async () => {
    const snapshot = await compute.snapshot.create(sandbox.sandboxId);
    const [row, parent] = await Promise.all([snapshot.id, sandbox.sandboxId].map((id) => live.engine.get(id as never)));
    expect(row!.deadlineMs! - parent!.deadlineMs!).toBeGreaterThan(3_600_000);
    await compute.snapshot.delete(snapshot.id);
  });
});

describe("what is wrong", () => {
  it.each<[string, () => Promise<unknown>, RegExp]>([
    ["a template that is no name", () => compute.sandbox.create({ templateId: "../x" }), /\[invalid_input\].*remediation: /s],
    ["a time-out", () => sandbox.runCommand("true", { timeout: -1 }), /\[invalid_input\].*Pass milliseconds/],
    ["a port", () => sandbox.getUrl({ port: 0 }), /\[invalid_input\].*Pass the port/],
    ["a file", () => sandbox.filesystem.readFile("/nope"), /\[not_found\].*remediation: /],
    ["a folder to run in", () => sandbox.runCommand("true", { cwd: "/nope" }), /remediation: /],
    ["an unknown sandbox", () => compute.sandbox.destroy("nobody"), /\[not_found\].*remediation: /],
    ["a sandbox where a snapshot is meant", () => compute.snapshot.delete(sandbox.sandboxId), /\[invalid_input\].*not a snapshot/],
    ["metadata of a restored sandbox", () => compute.sandbox.create({ snapshotId: "snapshot-x", metadata: { a: 1 } }), /metadata/],
  ])("comes as ComputeSDK's plain error, with code and remedy in its message: %s", async (_what, call, message) => {
    const error = await call().catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(Error);
    expect((error as Error).message).toMatch(message);
  });

  it("never shows the key, nor does anything that can be printed", async () => {
    const provider = mitos({ baseUrl: "http://127.0.0.1:1", apiKey: "secret-key-of-mine" });
    const error = await provider.sandbox.list().catch((reason: unknown) => reason);
    expect((error as Error).message).toMatch(/\[transport_error\].*mitos serve/);
    const made = await mitos({ baseUrl: live.url, apiKey: "secret-key-of-mine" }).sandbox.getById(sandbox.sandboxId);
    for (const each of [error, provider, made, made!.getProvider(), made!.getInstance()]) {
      expect(inspect(each, { depth: null, showHidden: false })).not.toContain("secret-key-of-mine");
    }
  });

  it("is a missing framework: the first call names the package to install", () => {
    const program = `
      import { mitos } from "@mitos/sdk/integrations/computesdk";
      const provider = mitos({});
      await provider.sandbox.create().catch((error) => console.log(error.code, "|", error.message));
    `;
    expect(runWithoutFrameworks(program)).toMatch(/^integration_dependency_missing \| .*npm install @computesdk\/provider/);
  });
});
