import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { type CreateRequest, type Engine, openEngine } from "@mitos/engine";
import { resourceDefaults, type SandboxId, toSandboxId, toTemplateId } from "@mitos/protocol";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { engineOptions } from "../support/engine-under-test.ts";
import { type LiveEngine, quiet, startLiveEngine } from "../support/live-server.ts";
import { memoryHog } from "../support/memory-hog.ts";
import { noTraces, Tracker } from "../support/traces.ts";
import { until } from "../support/until.ts";

const template = toTemplateId("base");
const network = { block: false, egress: "deny", allowDomains: [], allowCidrs: [], inbound: "deny", inboundCidrs: [] } as const;

let live: LiveEngine;
let engine: Engine;

beforeAll(async () => {
  live = await startLiveEngine();
  engine = live.engine;
  await engine.createTemplate({ id: template, network, resources: resourceDefaults });
});

afterEach(async () => {
  await Promise.all(engine.list().map(({ id }) => engine.terminate(id)));
});

afterAll(async () => {
  await live.close(engine);
});

function idOf(name: string): SandboxId {
  return toSandboxId(name);
}

function create(name: string, change: Partial<CreateRequest> = {}) {
  return engine.create({
    template,
    id: idOf(name),
    env: {},
    secrets: {},
    timeoutSeconds: null,
    idleTimeoutSeconds: null,
    metadata: {},
    ...change,
  });
}

function fork(source: string, names: readonly string[], change: { inheritSecrets?: boolean } = {}) {
  return engine.fork({ source: idOf(source), ids: names.map(idOf), inheritSecrets: false, env: {}, ...change });
}

/** What a shell command in a sandbox prints; a failure of the command fails the test. */
async function sh(name: string, shellCommand: string): Promise<string> {
  let output = "";
  for await (const event of engine.runtime(idOf(name)).exec({ shellCommand })) {
    if (event.kind === "output") output += Buffer.from(event.data).toString();
    if (event.kind === "exit") expect({ exitCode: event.exitCode, error: event.error, output }).toMatchObject({ exitCode: 0, error: "" });
  }
  return output.trim();
}

describe("a live fork", () => {
  it("leaves a parent alive that uses most of its memory", async () => {
    await create("full");
    const program =
      'import os, time\nb = bytearray(os.urandom(1 << 20)) * 330\nopen("/tmp/held", "w").write(str(os.getpid()))\ntime.sleep(1e6)';
    await engine.runtime(idOf("full")).start({ argv: ["python3", "-c", program] });
    await until("it holds them", async () => (await sh("full", "cat /tmp/held 2> /dev/null || true")) !== "", 60_000);
    // The second finds what the first has left.
    for (const name of ["half", "other"]) {
      await fork("full", [name]);
      for (const each of ["full", name]) expect(await sh(each, 'kill -0 "$(cat /tmp/held)" && echo alive')).toBe("alive");
      await engine.terminate(idOf(name));
    }
  });

  it("gives three children the parent's files and running processes, and keeps all four apart afterwards", async () => {
    await create("parent");
    await sh("parent", "echo common > shared");
    // A process whose memory counts, and says so in a file.
    await engine.runtime(idOf("parent")).start({ shellCommand: "n=0; while :; do n=$((n+1)); echo $n > count; sleep 0.05; done" });
    await until("the counter counts", async () => Number(await sh("parent", "cat count || echo 0")) > 2);
    const names = ["c1", "c2", "c3"];
    const { pausedMs, children } = await fork("parent", names);
    expect(pausedMs).toBeGreaterThan(0);
    expect(children.map(({ state }) => state)).toEqual(["running", "running", "running"]);

    const all = ["parent", ...names];
    for (const name of all) {
      expect(await sh(name, "cat shared")).toBe("common");
      const before = Number(await sh(name, "cat count"));
      await until(`the counter of ${name} goes on`, async () => Number(await sh(name, "cat count")) > before);
    }
    await Promise.all(all.map((name) => sh(name, `echo ${name} > shared`)));
    expect(await Promise.all(all.map((name) => sh(name, "cat shared")))).toEqual(all);
    expect(await Promise.all(names.map((name) => sh(name, "hostname")))).toEqual(names);
    const machineIds = await Promise.all(all.map((name) => sh(name, "cat /etc/machine-id")));
    expect(new Set(machineIds).size).toBe(4);
  });

  it("forks a fork of a fork, each with what its own line has written", async () => {
    await create("g0");
    for (const [generation, name] of ["g0", "g1", "g2", "g3"].entries()) {
      await sh(name, `echo ${name} >> line`);
      if (generation < 3) await fork(name, [`g${generation + 1}`]);
    }
    expect(await sh("g3", "cat line")).toBe("g0\ng1\ng2\ng3");
    expect(await sh("g1", "cat line")).toBe("g0\ng1");
    const generations = await Promise.all(["g0", "g1", "g2", "g3"].map((name) => sh(name, "cat /run/sandbox/fork-generation")));
    expect(generations.map(Number)).toEqual([...generations].map(Number).sort((a, b) => a - b));
    expect(new Set(generations).size).toBe(4);
    await engine.terminate(idOf("g1"), { subtree: true });
    expect(engine.list().map(({ id }) => id)).toEqual(["g0"]);
  });

  it("makes sixteen children at once, each with an identity of its own", async () => {
    await create("parent");
    await sh("parent", "head -c 1000000 /dev/urandom > data");
    const sum = await sh("parent", "md5sum < data");
    const names = Array.from({ length: 16 }, (_, index) => `many-${index}`);
    await fork("parent", names);
    const sums = await Promise.all(names.map((name) => sh(name, "md5sum < data")));
    expect(new Set(sums)).toEqual(new Set([sum]));
    const random = await Promise.all(names.map((name) => sh(name, "head -c 16 /dev/urandom | md5sum")));
    expect(new Set(random).size).toBe(16);
  });

  it("loses and repeats nothing of an exec that is under way", async () => {
    await create("parent");
    const exec = engine.runtime(idOf("parent")).exec({ shellCommand: "for i in $(seq 1 100); do echo $i; sleep 0.005; done" });
    let output = "";
    let forks = 0;
    for await (const event of exec) {
      if (event.kind === "output") output += Buffer.from(event.data).toString();
      if (event.kind === "output" && forks < 3) {
        forks += 1;
        await fork("parent", [`during-${forks}`]);
      }
    }
    expect(forks).toBe(3);
    expect(output).toBe(Array.from({ length: 100 }, (_, index) => `${index + 1}\n`).join(""));
  });

  it("refuses a parent that was given secrets, and forgets them in no child that may inherit them", async () => {
    await create("parent", { secrets: { API_TOKEN: "s3cret" } });
    expect(await sh("parent", "printenv API_TOKEN")).toBe("s3cret");
    await expect(fork("parent", ["child"])).rejects.toMatchObject({ code: "secret_inheritance_denied" });
    await fork("parent", ["child"], { inheritSecrets: true });
    expect(await sh("child", "printenv API_TOKEN")).toBe("s3cret");
  });
});

describe("a sandbox that forks itself", () => {
  const ask = `import json, socket
s = socket.socket(socket.AF_UNIX)
s.connect("/run/mitos.sock")
s.sendall(b'{"type":"fork","fork":{"n":2}}\\n')
open("/workspace/reply", "w").write(s.makefile().readline())`;

  async function writeProgram(name: string): Promise<void> {
    await engine.runtime(idOf(name)).writeFile(
      "/workspace/ask.py",
      0o644,
      (async function* () {
        yield Buffer.from(ask);
      })(),
    );
  }

  it("gets its children's ids, and in each child an empty list; its budget is spent then", async () => {
    await create("self", { forkBudget: 2 });
    await writeProgram("self");
    await sh("self", "python3 ask.py");
    const children = engine.get(idOf("self")).children;
    expect(children).toHaveLength(2);
    expect(JSON.parse(await sh("self", "cat reply"))).toMatchObject({ ok: true, sandbox_id: "self", fork: { children: [...children] } });
    for (const child of children) {
      await until("the child has its answer", async () => (await sh(child, "cat reply || true")) !== "");
      expect(JSON.parse(await sh(child, "cat reply"))).toMatchObject({ ok: true, sandbox_id: child, fork: { children: [] } });
    }
    await sh("self", "python3 ask.py");
    expect(await sh("self", "cat reply")).toContain("budget");
    expect(engine.list()).toHaveLength(3);
  });

  it("is refused when it was not allowed to", async () => {
    await create("self");
    await writeProgram("self");
    await sh("self", "python3 ask.py");
    expect(await sh("self", "cat reply")).toContain("budget");
    expect(engine.list()).toHaveLength(1);
  });
});

describe("pause and resume", () => {
  it("keep files and processes, five times in a row with writes between", async () => {
    await create("sleeper");
    await engine.runtime(idOf("sleeper")).start({ shellCommand: "exec sleep 1000" });
    for (let round = 1; round <= 5; round += 1) {
      await sh("sleeper", `echo ${round} >> rounds`);
      await engine.pause(idOf("sleeper"));
      expect(() => engine.runtime(idOf("sleeper"))).toThrow(expect.objectContaining({ code: "sandbox_not_running" }));
      await engine.resume(idOf("sleeper"));
    }
    expect(await sh("sleeper", "cat rounds")).toBe("1\n2\n3\n4\n5");
    const processes = await engine.runtime(idOf("sleeper")).listProcesses();
    expect(processes.filter(({ state }) => state === "running").map(({ command }) => command)).toEqual(["exec sleep 1000"]);
  });

  it("end an open stream with sandbox_not_running, and fork what is paused", async () => {
    await create("sleeper");
    const followed = (async () => {
      for await (const _ of engine.runtime(idOf("sleeper")).exec({ shellCommand: "echo begun > begun; sleep 1000" }));
    })();
    const ended = expect(followed).rejects.toMatchObject({ code: "sandbox_not_running" });
    await until("the exec runs", async () => (await sh("sleeper", "cat begun || true")) === "begun");
    await engine.pause(idOf("sleeper"));
    await ended;
    await fork("sleeper", ["awake"]);
    expect(await sh("awake", "cat begun")).toBe("begun");
    expect(engine.get(idOf("sleeper")).state).toBe("paused");
  });
});

describe("the end of a sandbox", () => {
  it("comes at its deadline, also while it is busy", async () => {
    await create("short", { timeoutSeconds: 1 });
    await engine.runtime(idOf("short")).start({ shellCommand: "while :; do :; done" });
    await until("the sandbox is gone", () => engine.list().length === 0, 5_000);
    expect(() => engine.get(idOf("short"))).toThrow(expect.objectContaining({ code: "idle_timeout" }));
  });

  it("comes when nothing goes on in it, but not while an exec runs", async () => {
    await create("idler", { idleTimeoutSeconds: 1 });
    await sh("idler", "sleep 2.5");
    expect(engine.get(idOf("idler")).state).toBe("running");
    await until("the sandbox is gone", () => engine.list().length === 0, 5_000);
  });

  it("is reported as oom_killed when it takes more memory than it may", async () => {
    // A virtual machine has the memory of its template.
    const small = toTemplateId("small");
    await engine.createTemplate({ id: small, network, resources: { ...resourceDefaults, memSizeMiB: 128 } });
    await create("greedy", { template: small });
    await expect(sh("greedy", memoryHog)).rejects.toThrow();
    await until("the sandbox has failed", () => engine.list()[0]?.state === "failed");
    expect(() => engine.get(idOf("greedy"))).toThrow(expect.objectContaining({ code: "oom_killed" }));
  });
});

describe("a server that is killed", () => {
  it("leaves its sandboxes to the next one, running and paused, with their processes", async () => {
    const ownDir = mkdtempSync(path.join(tmpdir(), "mitos-test-"));
    const ownTracker = new Tracker(ownDir);
    const server = spawn(process.execPath, [path.join(import.meta.dirname, "keep-alive.ts"), ownDir], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    await once(server.stdout, "data");
    server.kill("SIGKILL");
    await once(server, "exit");

    const next = await openEngine({ dataDir: ownDir, ...engineOptions, log: quiet });
    const state = () => next.list().map(({ id, state }) => [id, state]);
    expect(state()).toEqual([
      ["survivor", "running"],
      ["sleeper", "paused"],
    ]);
    await next.resume(idOf("sleeper"));
    for (const name of ["survivor", "sleeper"]) {
      const rows = await next.runtime(idOf(name)).listProcesses();
      expect(rows.map(({ command, state }) => [command, state])).toEqual([[expect.stringContaining("exec sleep 1000"), "running"]]);
      const { data } = await next.runtime(idOf(name)).readFile("/workspace/name", { offset: 0, length: 0 });
      expect(Buffer.concat(await Array.fromAsync(data)).toString()).toBe(`${name}\n`);
    }
    await next.fork({ source: idOf("survivor"), ids: [idOf("heir")], inheritSecrets: false, env: {} });
    await next.close({ sandboxes: "end" });
    rmSync(ownDir, { recursive: true, force: true });
    expect(ownTracker.find()).toEqual(noTraces);
  });
});
