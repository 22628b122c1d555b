import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { type BuildEvent, type BuildStep, type Engine, openEngine, type TemplateRequest } from "@mitos/engine";
import { resourceDefaults, toSandboxId, toTemplateId } from "@mitos/protocol";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { debian, onDebian } from "../support/base-image.ts";
import { engineOptions, engineUnderTest } from "../support/engine-under-test.ts";
import { type LiveEngine, quiet, startLiveEngine } from "../support/live-server.ts";
import { layerOf } from "../support/oci.ts";
import { type Registry, startRegistry } from "../support/registry.ts";
import { tarOf } from "../support/tar.ts";
import { noTraces, Tracker } from "../support/traces.ts";
import { until } from "../support/until.ts";

const network = { block: false, egress: "deny", allowDomains: [], allowCidrs: [], inbound: "deny", inboundCidrs: [] } as const;

let registry: Registry;
let live: LiveEngine;
let engine: Engine;
/** Debian with Python; an image on top of it that says how it is run. */
let python: string;
let app: string;

beforeAll(async () => {
  registry = await startRegistry();
  python = await registry.push(await debian("python"), "team/python:1");
  const files = [
    { name: "etc/passwd", content: "root:x:0:0:root:/root:/bin/sh\napp:x:1200:1300::/home/app:/bin/sh\n" },
    { name: "home/app", type: "dir", uid: 1200, gid: 1300 },
    { name: "srv/app", type: "dir", uid: 1200, gid: 1300 },
    { name: "srv/app/greeting", content: "hello from the image\n", uid: 1200, gid: 1300, mode: 0o640 },
  ] as const;
  const run = {
    Env: ["PATH=/usr/bin:/bin", "GREETING=hi"],
    User: "app",
    WorkingDir: "/srv/app",
    Cmd: ["python3", "-m", "http.server", "8080", "--bind", "127.0.0.1"],
  };
  app = await registry.push(await onDebian("python", [layerOf(files)], run), "team/app:1");
  live = await startLiveEngine();
  engine = live.engine;
});

afterEach(async () => {
  await Promise.all(engine.list().map(({ id }) => engine.terminate(id)));
});

afterAll(async () => {
  await live.close(engine);
  await registry[Symbol.asyncDispose]();
});

const run = (command: string): BuildStep => ({ kind: "run", command });

function request(id: string, change: Partial<TemplateRequest> = {}): TemplateRequest {
  return { id: toTemplateId(id), network, resources: resourceDefaults, ...change };
}

async function start(template: string, name: string): Promise<void> {
  const id = toSandboxId(name);
  const rest = { env: {}, secrets: {}, timeoutSeconds: null, idleTimeoutSeconds: null, metadata: {} };
  await engine.create({ template: toTemplateId(template), id, ...rest });
}

/** What a shell command in a sandbox prints; a failure of the command fails the test. */
async function sh(name: string, shellCommand: string): Promise<string> {
  let output = "";
  for await (const event of engine.runtime(toSandboxId(name)).exec({ shellCommand })) {
    if (event.kind === "output") output += Buffer.from(event.data).toString();
    if (event.kind === "exit") expect({ exitCode: event.exitCode, error: event.error, output }).toMatchObject({ exitCode: 0, error: "" });
  }
  return output.trim();
}

function eventsOf(id: string): Promise<BuildEvent[]> {
  return Array.fromAsync(engine.buildEvents(toTemplateId(id), { follow: false }));
}

async function stepsOf(id: string): Promise<string[]> {
  return (await eventsOf(id)).flatMap((event) => (event.kind === "step" && event.state !== "running" ? [event.state] : []));
}

describe("a template of an image", () => {
  it("has its files with their owners, and its environment, user and folder for what runs in its sandboxes", async () => {
    const { source } = await engine.createTemplate(request("app", { image: app }));
    expect(source).toMatchObject({ kind: "image", reference: app, layers: 3 });
    await start("app", "a");
    expect(await sh("a", "id -un; id -g; pwd; echo $GREETING $PATH; cat greeting; stat -c '%U %g %a' greeting")).toBe(
      "app\n1300\n/srv/app\nhi /usr/bin:/bin\nhello from the image\napp 1300 640",
    );
    await sh("a", "echo mine > greeting; touch new; test ! -w /etc/passwd");
    await start("app", "b");
    expect(await sh("b", "cat greeting; ls")).toBe("hello from the image\ngreeting");
  });

  it("wakes with a Python kernel of the image's own interpreter", async () => {
    await engine.createTemplate(request("kernel", { image: python }));
    await start("kernel", "a");
    const results: string[] = [];
    for await (const { msg } of engine.runtime(toSandboxId("a")).runCode({
      code: "import sys, os; (sys.executable, os.path.exists('/usr/bin/apt-get'))",
      language: "python",
      timeoutMs: 20_000,
    })) {
      if (msg.case === "result") results.push(msg.value.text);
    }
    expect(results).toEqual([expect.stringMatching(/^\('\/usr\/bin\/python3[.\d]*', True\)$/)]);
  });

  it("is forked and paused as any other, also after it was deleted", async () => {
    await engine.createTemplate(request("passing", { image: app, steps: [run("echo built > built")] }));
    await start("passing", "parent");
    await sh("parent", "echo one > state");
    await engine.runtime(toSandboxId("parent")).start({ shellCommand: "exec sleep 1000" });
    await engine.fork({ source: toSandboxId("parent"), ids: [toSandboxId("child")], inheritSecrets: false, env: {} });
    await sh("parent", "echo two > state");
    expect(await sh("child", "cat state built")).toBe("one\nbuilt");
    await engine.pause(toSandboxId("parent"));
    await engine.terminate(toSandboxId("child"));
    await engine.deleteTemplate(toTemplateId("passing"));
    await engine.prune({ olderThanMs: 0 });
    await engine.resume(toSandboxId("parent"));
    expect(await sh("parent", "cat state built; id -un")).toBe("two\nbuilt\napp");
    expect((await engine.runtime(toSandboxId("parent")).listProcesses()).map(({ state }) => state)).toContain("running");
  });

  it("has what the last of its layers says, one that comes twice included", async () => {
    const one = layerOf(tarOf({ "srv/which": "one" }));
    const two = layerOf(tarOf({ "srv/which": "two", "srv/.wh.gone": "", "srv/there": "" }));
    await engine.createTemplate(request("twice", { image: await registry.push(await onDebian("base", [one, two, one]), "team/twice:1") }));
    await start("twice", "a");
    expect(await sh("a", "cat /srv/which; ls /srv")).toBe("onethere\nwhich");
  });

  it("is not made of one that the registry does not have", async () => {
    const missing = app.replace(":1", ":2").replace(/:2$/, ":nosuch");
    await expect(engine.createTemplate(request("missing", { image: missing }))).rejects.toMatchObject({ code: "not_found" });
    await expect(engine.createTemplate(request("missing", { image: "nosuchname" }))).rejects.toMatchObject({ code: "not_found" });
    expect(engine.listTemplates().map(({ id }) => String(id))).not.toContain("missing");
  });
});

describe("steps", () => {
  it("honour environment, folder and user, and what they make is in the sandboxes", async () => {
    const files = tarOf({ "main.py": "print('copied')\n" });
    const context = `sha256:${createHash("sha256").update(files).digest("hex")}` as const;
    await engine.putContext(
      context,
      (async function* () {
        yield files;
      })(),
    );
    const steps: BuildStep[] = [
      { kind: "user", user: "root" },
      run("/usr/sbin/useradd --create-home --uid 2000 worker && echo secret > /root/note"),
      { kind: "env", name: "LEVEL", value: "a b" },
      { kind: "workdir", path: "/opt/tool/data" },
      { kind: "copy", source: "src", dest: "lib/", context },
      { kind: "user", user: "worker" },
      run('echo "$LEVEL $(id -un) $PWD $HOME" > ~/said; python3 lib/main.py'),
    ];
    const { source } = await engine.createTemplate(request("built", { image: app, steps }));
    expect(source).toMatchObject({ kind: "build", reference: app, layers: 7 });
    await start("built", "a");
    expect(await sh("a", "cat ~/said; id -un; pwd; echo $LEVEL; stat -c '%U' lib/main.py . ~/said; python3 lib/main.py")).toBe(
      "a b worker /opt/tool/data /home/worker\nworker\n/opt/tool/data\na b\nroot\nroot\nworker\ncopied",
    );
    const logs = (await eventsOf("built")).flatMap((event) => (event.kind === "log" ? [event] : []));
    expect(logs).toContainEqual(expect.objectContaining({ step: 6, stream: "stdout", text: "copied\n" }));
  });

  it("run again only from the first that has changed", async () => {
    const first = run("date +%s%N > /var/stamp; rm -r /usr/share/doc; ln -s /var/stamp /srv/stamp");
    await engine.createTemplate(request("cached", { image: python, steps: [first, run("echo 1 > /srv/number")] }));
    await start("cached", "a");
    await engine.createTemplate(request("cached", { image: python, steps: [first, run("echo 2 > /srv/number")] }));
    expect(await stepsOf("cached")).toEqual(["cached", "done"]);
    await start("cached", "b");
    expect(await sh("b", "cat /srv/number; test ! -e /usr/share/doc")).toBe("2");
    expect(await sh("b", "cat /srv/stamp")).toBe(await sh("a", "cat /srv/stamp"));
    await engine.createTemplate(request("cached", { image: python, steps: [first, run("echo 2 > /srv/number")] }), { noCache: true });
    expect(await stepsOf("cached")).toEqual(["done", "done"]);
    await start("cached", "c");
    expect(await sh("c", "cat /srv/stamp")).not.toBe(await sh("a", "cat /srv/stamp"));
  });

  it("that two builds have in common run once, and both hear them", async () => {
    const common = run("echo begun; sleep 1; head -c 16 /dev/urandom | md5sum > /srv/random");
    const events: BuildEvent[] = [];
    const one = engine.createTemplate(request("one", { image: python, steps: [common, run("true")] }));
    const two = engine.createTemplate(request("two", { image: python, steps: [common, run("echo two > /srv/two")] }), {
      onEvent: (event) => events.push(event),
    });
    await Promise.all([one, two]);
    expect(events).toContainEqual(expect.objectContaining({ kind: "log", step: 0, text: "begun\n" }));
    await start("one", "a");
    await start("two", "b");
    expect(await sh("b", "cat /srv/random")).toBe(await sh("a", "cat /srv/random"));
  });

  it("that fail say which, how and with what output; what came before is kept", async () => {
    const steps = [run("echo first > /srv/first"), run("echo fetching; echo 'no such package: nosuch' >&2; exit 100")];
    await expect(engine.createTemplate(request("broken", { image: python, steps }))).rejects.toMatchObject({
      code: "build_failed",
      detail: {
        cause: expect.stringMatching(/^step 1 \(run .*\): it ended with exit code 100; [\s\S]*fetching[\s\S]*no such package: nosuch$/),
        context: { step: 1, step_kind: "run" },
      },
    });
    expect((await eventsOf("broken")).at(-1)).toMatchObject({ kind: "failed", code: "build_failed" });
    await engine.createTemplate(request("broken", { image: python, steps: [steps[0] as BuildStep] }));
    expect(await stepsOf("broken")).toEqual(["cached"]);
  });

  it("name a user that is there, or the build says that it is not", async () => {
    const steps: BuildStep[] = [{ kind: "user", user: "nobodysuch" }];
    await expect(engine.createTemplate(request("userless", { image: python, steps }))).rejects.toMatchObject({
      code: "build_failed",
      detail: { cause: expect.stringMatching(/nobodysuch.*no user/) },
    });
    await engine.createTemplate(request("numbered", { image: python, steps: [{ kind: "user", user: "4711:4712" }] }));
    await start("numbered", "a");
    expect(await sh("a", "id -u; id -g")).toBe("4711\n4712");
  });

  it("end with what they have left running, which is not waited for", async () => {
    const steps = [run("(while :; do date >> /srv/log; sleep 0.01; done) & until test -s /srv/log; do sleep 0.01; done; echo started")];
    await engine.createTemplate(request("busy", { image: python, steps }));
    await start("busy", "a");
    expect(await sh("a", "test -s /srv/log; tail -c 1 /srv/log | od -An -c")).toBe("\\n");
  });

  it("that need more memory than there is say so", async () => {
    // Linux refuses what is more than all memory at once, which is then the program's own error: in a virtual machine it is taken in pieces.
    const taken = engineUnderTest === "microvm" ? "[b'x' * (16 << 20) for _ in range(128)]" : "b'x' * (2 << 30)";
    const steps = [run(`python3 -c "held = ${taken}"`)];
    await expect(engine.createTemplate(request("greedy", { image: python, steps }))).rejects.toMatchObject({
      code: "build_failed",
      detail: {
        cause: expect.stringMatching(/step 0 .*needed more memory than the 1024 MiB/),
        remediation: expect.stringContaining("mem_size_mib"),
      },
    });
  });

  it("reach nothing that the template's network does not allow", async () => {
    const steps = [run("python3 -c 'import urllib.request as r; r.urlopen(\"http://example.com\")'")];
    await expect(engine.createTemplate(request("offline", { image: python, steps }))).rejects.toMatchObject({
      code: "build_failed",
      detail: { cause: expect.stringContaining("denied") },
    });
  });

  it("end when their caller leaves, with nothing left of them", async () => {
    const caller = new AbortController();
    const steps = [run("echo begun; sleep 1000")];
    const building = engine.createTemplate(request("left", { image: python, steps }), {
      signal: caller.signal,
      onEvent: (event) => event.kind === "log" && caller.abort(),
    });
    await expect(building).rejects.toMatchObject({ code: "canceled" });
    await until("the build is over", async () => (await eventsOf("left")).at(-1)?.kind === "failed");
    expect(engine.listTemplates().map(({ id }) => String(id))).not.toContain("left");
  });
});

describe("a program that is ready", () => {
  it("when a port of it takes connections, started as the image starts it", async () => {
    const workload = { command: [], env: {}, ready: { kind: "port", port: 8080, timeoutSeconds: 30 } } as const;
    await engine.createTemplate(request("served", { image: app, workload }));
    await start("served", "a");
    const fetch = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080/greeting').read().decode())";
    expect(await sh("a", `python3 -c "${fetch}"`)).toBe("hello from the image");
  });

  it("when a command of it says so; and when it never does, the build fails with what was last seen", async () => {
    const command = ["sh", "-c", "sleep 0.5; echo up > /tmp/up; exec sleep 1000"];
    const ready = { kind: "command", command: "cat /tmp/up", timeoutSeconds: 30 } as const;
    await engine.createTemplate(request("commanded", { image: app, workload: { command, env: {}, ready } }));
    await start("commanded", "a");
    expect(await sh("a", "cat /tmp/up")).toBe("up");
    const never = { kind: "command", command: "echo not yet; exit 4", timeoutSeconds: 3 } as const;
    await expect(
      engine.createTemplate(request("never", { image: app, workload: { command, env: {}, ready: never } })),
    ).rejects.toMatchObject({
      code: "build_failed",
      detail: { cause: expect.stringMatching(/not ready after 3 s.*exit code 4: not yet/) },
    });
  });

  it("is started by nothing where the image starts nothing", async () => {
    const bare = await registry.push(await onDebian("base", []), "team/bare:1");
    await expect(engine.createTemplate(request("bare", { image: bare, workload: { command: [], env: {} } }))).rejects.toMatchObject({
      code: "invalid_input",
    });
  });
});

describe("warm code", () => {
  it("has run in every sandbox before its first line", async () => {
    const warm = { language: "python", code: "import json\nvalue = json.dumps([1, 2])", timeoutSeconds: 30 } as const;
    await engine.createTemplate(request("warm", { image: python, warm }));
    await start("warm", "a");
    const results: string[] = [];
    for await (const { msg } of engine.runtime(toSandboxId("a")).runCode({ code: "value", language: "python", timeoutMs: 10_000 })) {
      if (msg.case === "result") results.push(msg.value.text);
    }
    expect(results).toEqual(["'[1, 2]'"]);
  });

  it("that raises fails the build with its traceback", async () => {
    const warm = { language: "python", code: "import nosuchmodule", timeoutSeconds: 30 } as const;
    await expect(engine.createTemplate(request("cold", { image: python, warm }))).rejects.toMatchObject({
      code: "build_failed",
      detail: { cause: expect.stringMatching(/ModuleNotFoundError[\s\S]*nosuchmodule/) },
    });
  });
});

describe("a pushed template", () => {
  it("is pulled elsewhere as an image, with its files, environment, user, folder and program", async () => {
    const workload = {
      command: ["python3", "-m", "http.server", "8181"],
      env: { A: "b" },
      ready: { kind: "port", port: 8181, timeoutSeconds: 30 },
    } as const;
    await engine.createTemplate(request("mine", { image: app, steps: [run("echo pushed > pushed")], workload }));
    const { reference } = await engine.pushTemplate(toTemplateId("mine"), `${registry.host}/team/mine:1`);
    const elsewhere = await startLiveEngine();
    try {
      const template = request("theirs", { image: reference, workload: { command: [], env: {} } });
      expect((await elsewhere.engine.createTemplate(template)).source).toMatchObject({ kind: "image", layers: 4 });
      const id = toSandboxId("a");
      const rest = { env: {}, secrets: {}, timeoutSeconds: null, idleTimeoutSeconds: null, metadata: {} };
      await elsewhere.engine.create({ template: toTemplateId("theirs"), id, ...rest });
      const previous = engine;
      engine = elsewhere.engine;
      try {
        const fetch = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8181/pushed').read().decode())";
        expect(await sh("a", `id -un; pwd; echo $A; python3 -c "${fetch}"`)).toBe("app\n/srv/app\nb\npushed");
        await engine.terminate(id);
      } finally {
        engine = previous;
      }
    } finally {
      await elsewhere.close();
    }
  });
});

describe("the next server", () => {
  it("makes templates anew, where it must, of what the last one has pulled and built, without a registry", async () => {
    await engine.createTemplate(request("lasting", { image: app, steps: [run("echo lasting > lasting")] }));
    const before = engine.listTemplates().find(({ id }) => id === "lasting");
    // Their snapshots were in memory and are given back.
    await engine.close({ sandboxes: "end" });
    engine = await openEngine({ dataDir: live.dataDir, ...engineOptions, log: quiet });
    registry.forgetRequests();
    await start("lasting", "a");
    expect(await sh("a", "cat lasting; id -un; pwd")).toBe("lasting\napp\n/srv/app");
    expect(registry.requests).toEqual([]);
    expect(engine.listTemplates().find(({ id }) => id === "lasting")?.source).toEqual(before?.source);
    await engine.createTemplate(request("other", { image: app, steps: [run("echo lasting > lasting"), run("true")] }));
    expect(await stepsOf("other")).toEqual(["cached", "done"]);
  });
});

describe("a server that is killed in the middle of a build", () => {
  it("leaves to the next one a log with an end, the steps that were done, and nothing else", async () => {
    const dataDir = mkdtempSync(path.join(tmpdir(), "mitos-test-"));
    const tracker = new Tracker(dataDir);
    const server = spawn(process.execPath, [path.join(import.meta.dirname, "keep-building.ts"), dataDir, python], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    await once(server.stdout, "data");
    server.kill("SIGKILL");
    await once(server, "exit");

    const next = await openEngine({ dataDir, ...engineOptions, log: quiet });
    const id = toTemplateId("unfinished");
    expect(next.listTemplates()).toEqual([]);
    const events = await Array.fromAsync(next.buildEvents(id, { follow: true }));
    expect(events.at(-1)).toMatchObject({ kind: "failed", code: "unavailable", message: expect.stringContaining("server ended") });
    const rest: BuildEvent[] = [];
    const steps = [run("echo done > /srv/done"), run("true")];
    await next.createTemplate(request("unfinished", { image: python, steps }), { onEvent: (event) => rest.push(event) });
    expect(rest).toContainEqual(expect.objectContaining({ kind: "step", index: 0, state: "cached" }));
    await next.close({ sandboxes: "end" });
    rmSync(dataDir, { recursive: true, force: true });
    expect(tracker.find()).toEqual(noTraces);
  });
});

describe("what nothing needs any more", () => {
  it("is removed when it is asked for, with the roots that were made of it, and nothing else", async () => {
    await engine.createTemplate(request("kept", { image: app }));
    await engine.createTemplate(request("gone", { image: app, steps: [run("head -c 1M /dev/urandom > /srv/app/random")] }));
    for (const { id } of engine.listTemplates()) if (id !== "kept") await engine.deleteTemplate(id);
    const { removedBytes } = await engine.prune({ olderThanMs: 0 });
    expect(removedBytes).toBeGreaterThanOrEqual(1024 * 1024);
    const usage = await engine.diskUsage();
    expect(usage.layers).toMatchObject({ count: 3, unusedBytes: 0 });
    expect(usage.templates).toEqual([expect.objectContaining({ id: "kept", ownBytes: usage.layers.bytes, rootBytes: usage.layers.bytes })]);
    const folders = (name: string) => readdirSync(path.join(live.dataDir, name)).filter((each) => !each.startsWith("."));
    expect(folders("layers")).toHaveLength(3);
    expect(existsSync(path.join(live.dataDir, engineUnderTest))).toBe(true);
    await start("kept", "a");
    expect(await sh("a", "cat greeting")).toBe("hello from the image");
  });
});
