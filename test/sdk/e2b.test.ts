import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { inspect } from "node:util";
import { AgentRunError, Sandbox as NativeSandbox } from "@mitos/sdk";
import {
  ALL_TRAFFIC,
  CommandExitError,
  E2B,
  FileNotFoundError,
  type FilesystemEvent,
  NotFoundError,
  Sandbox,
  SandboxError,
  SandboxNotFoundError,
  TimeoutError,
} from "@mitos/sdk/e2b";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { installPackages } from "../support/python-packages.ts";
import { until } from "../support/until.ts";

const root = path.resolve(import.meta.dirname, "../..");
/** Where `@mitos/sdk` is found, and git looks for nothing. */
const copyDir = path.join(root, ".cache/e2b-program");
const copy = path.join(copyDir, `program-${process.pid}.ts`);

let live: LiveServer;
let sandbox: Sandbox;
// biome-ignore lint/suspicious/noExplicitAny: the same file with another import
let program: Record<string, (argument?: any) => Promise<any>>;

beforeAll(async () => {
  live = await startLiveServer();
  vi.stubEnv("MITOS_BASE_URL", live.url);
  sandbox = await Sandbox.create();
  const text = readFileSync(path.join(import.meta.dirname, "e2b-program.ts"), "utf8");
  mkdirSync(copyDir, { recursive: true });
  writeFileSync(copy, text.replaceAll('from "@e2b/code-interpreter"', 'from "@mitos/sdk/e2b"'));
  program = await import(copy);
});
afterAll(async () => {
  vi.unstubAllEnvs();
  rmSync(copy, { force: true });
  await live.close();
});

describe("a program for E2B, with one import changed", () => {
  it("is right by our types as well", () => {
    const config = path.join(copyDir, `tsconfig-${process.pid}.json`);
    writeFileSync(config, JSON.stringify({ extends: "../../tsconfig.json", include: [path.basename(copy)] }));
    const { stdout, status } = spawnSync(process.execPath, [path.join(root, "node_modules/typescript/bin/tsc"), "-p", config], {
      encoding: "utf8",
    });
    rmSync(config);
    expect([stdout, status]).toEqual(["", 0]);
  });

  it("creates, prolongs and finds a sandbox", async () => {
    expect(await program.lifecycle!()).toEqual({
      metadata: { userId: "123" },
      state: "running",
      longer: true,
      notShortened: true,
      started: true,
      greeting: "hello",
      running: true,
    });
  });

  it("pauses and resumes, with variables and files", async () => {
    expect(await program.persistence!()).toEqual({
      paused: true,
      pausedAgain: false,
      isRunning: false,
      text: "42",
      kept: "kept",
      killed: true,
      killedAgain: false,
    });
  });

  it("lists page by page, the newest first, by metadata and state", async () => {
    expect(await program.listing!()).toEqual({ pages: [[1], [0]], paused: [0], oldest: 0, rest: [1] });
  });

  it("runs commands, hears them, and is told of failures by exceptions", async () => {
    expect(await program.commands!(sandbox)).toEqual({
      exitCode: 0,
      stdout: "out\n",
      stderr: "err\n",
      lines: ["before\n", "err:err\n", "out:out\n"],
      folder: "/tmp value\n",
      failed: 7,
      timedOut: true,
    });
  });

  it("runs commands in the background, writes to them, finds and kills them", async () => {
    const script = 'while read line; do echo "got $line"; done; exit 3';
    expect(await program.backgroundCommands!(sandbox)).toEqual({
      cmd: "/bin/bash",
      last: script,
      output: "got one\ngot two\n",
      stdout: "got one\ngot two\n",
      ended: 3,
      exitCode: 3,
      killed: true,
      waited: true,
      killedAgain: false,
    });
  });

  it("writes and reads files in every form, lists, makes and removes them", async () => {
    const at = (...names: string[]) => names.map((name) => `/home/user/project/${name}`);
    expect(await program.files!(sandbox)).toEqual({
      info: { name: "a.txt", type: "file", path: "/home/user/project/a.txt" },
      many: at("b.bin", "deep/c.txt", "d.txt"),
      text: "text",
      bytes: [0, 1, 255],
      blob: "blob",
      streamed: "stream",
      list: [
        ["a.txt", false],
        ["b.bin", false],
        ["d.txt", false],
        ["deep", true],
      ],
      deep: at("a.txt", "b.bin", "d.txt", "deep", "deep/c.txt"),
      created: true,
      createdAgain: false,
      entry: { type: "file", size: 4, mode: 0o644, permissions: "rw-r--r--", owner: "root" },
      exists: false,
      missing: [true, true, true],
    });
  });

  it("renames", async () => {
    const path = "/home/user/renamed/new.txt";
    expect(await program.renaming!(sandbox)).toEqual({ path, type: "file", exists: false, text: "moved" });
    await sandbox.files.write("/tmp/elsewhere", "crossed");
    expect((await sandbox.files.rename("/tmp/elsewhere", "renamed/here")).size).toBe(7);
    await expect(sandbox.files.rename("old.txt", "x")).rejects.toBeInstanceOf(FileNotFoundError);
    await expect(sandbox.files.rename("renamed/new.txt", "/home/user/renamed")).rejects.toBeInstanceOf(SandboxError);
  });

  it("watches a folder, and misses nothing after watchDir", async () => {
    const events = ["create below/f", "write below/f", "remove below/f"];
    expect(await program.watching!(sandbox)).toEqual({ events, exit: true });
  });

  it("opens a terminal, resizes it, connects to it again and kills it", async () => {
    expect(await program.terminals!(sandbox)).toEqual({ size: true, killed: true, killedAgain: false });
  });

  it("runs code that keeps its state, in three languages, with callbacks and variables of one cell", async () => {
    expect(await program.code!(sandbox)).toEqual({
      text: "2",
      logs: { stdout: ["hi\n"], stderr: ["no\n"] },
      printed: ["false hi\n", "true no\n"],
      results: [["2", true]],
      error: ["ZeroDivisionError", "division by zero", true],
      errors: ["ZeroDivisionError"],
      html: ["<b>x</b>", ["html"]],
      withEnvs: `'it\\'s "here"'`,
      none: 0,
      javascript: "[ 2, 4, 6 ]",
      bash: "from bash\n",
      late: true,
      kept: "2",
    });
  });

  it("runs code in contexts of its own", async () => {
    expect(await program.contexts!(sandbox)).toEqual({
      language: "python",
      cwd: "/home/user",
      elsewhere: "/tmp",
      inside: "('context', '/tmp')",
      outside: "NameError",
      listed: true,
      restarted: "NameError",
      left: false,
    });
  });

  it("forks a sandbox with its variables", async () => {
    expect(await program.forks!()).toEqual({ states: ["'shared'", "'shared'"], alive: true });
  });

  it("has the internet unless it is taken away", async () => {
    const [refused, allowed] = ["Tunnel connection failed: 403", "Tunnel connection failed: 502"];
    expect(await program.internet!()).toEqual([allowed, refused, refused, refused]);
  });

  it("is told of failures by E2B's classes", async () => {
    expect(await program.failures!()).toEqual({ unknown: true, info: true, command: true, file: true, template: true, argument: true });
  });

  it("binds a server to a client", async () => {
    vi.stubEnv("MITOS_BASE_URL", "http://127.0.0.1:9");
    try {
      expect(await program.clients!(live.url)).toEqual({ stdout: "through the client\n", isSandbox: true, killed: true });
    } finally {
      vi.stubEnv("MITOS_BASE_URL", live.url);
    }
  });

  it("has subclasses that stay themselves", async () => {
    expect(await program.subclasses!()).toEqual({ version: "3", isWorkshop: true });
  });

  it("makes an address of a port, to which a path is appended", async () => {
    expect(await program.addresses!(sandbox)).toBe(true);
  });
});

describe("a sandbox", () => {
  it("ends by itself after five minutes unless it is told otherwise, and really ends", async () => {
    const { startedAt, endAt } = await sandbox.getInfo();
    expect(Math.round((endAt.getTime() - startedAt.getTime()) / 1000)).toBeGreaterThanOrEqual(299);
    expect(Math.round((endAt.getTime() - startedAt.getTime()) / 1000)).toBeLessThanOrEqual(301);
    const short = await Sandbox.create({ timeoutMs: 1_000 });
    await until("the sandbox has ended", async () => !(await short.isRunning()));
    await expect(short.commands.run("true")).rejects.toBeInstanceOf(SandboxNotFoundError);
  });

  it("has one home folder, by E2B's name and by ours", async () => {
    await sandbox.files.write("/home/user/by-name", "1");
    await sandbox.files.write("relative", "2");
    expect((await sandbox.commands.run("cd ~ && cat by-name relative /workspace/by-name")).stdout).toBe("121");
    expect((await sandbox.runCode("open('relative').read() + open('/home/user/by-name').read()")).text).toBe("'21'");
  });

  it("is never shortened by connect while it runs", async () => {
    const kept = await Sandbox.create({ timeoutMs: 3_600_000 });
    const { endAt } = await kept.getInfo();
    await kept.connect({ timeoutMs: 1_000 });
    expect((await kept.getInfo()).endAt).toEqual(endAt);
    await kept.connect({ timeoutMs: 7_200_000 });
    expect((await kept.getInfo()).endAt.getTime()).toBeGreaterThan(endAt.getTime() + 3_000_000);
    await kept.kill();
  });

  it("is kept for a day when it is paused, and has the usual time from when it is resumed", async () => {
    const paused = await Sandbox.create({ timeoutMs: 60_000 });
    const before = Date.now();
    await paused.pause();
    expect((await paused.getInfo()).endAt.getTime()).toBeGreaterThan(before + 86_000_000);
    await Sandbox.connect(paused.sandboxId);
    const { endAt } = await paused.getInfo();
    expect(endAt.getTime()).toBeGreaterThan(before + 299_000);
    expect(endAt.getTime()).toBeLessThan(Date.now() + 301_000);
    await paused.kill();
  });

  it("forks by number, and the children end by themselves too", async () => {
    const children = await sandbox.fork(2);
    expect(children.map((child) => child.constructor)).toEqual([Sandbox, Sandbox]);
    for (const child of children) {
      expect((await child.getInfo()).endAt.getTime()).toBeLessThanOrEqual(Date.now() + 301_000);
      expect(await child.kill()).toBe(true);
    }
  });

  it("answers from outside under getUrl, and under getHost with the token in a header", async () => {
    const server = await sandbox.commands.run("cd /workspace && echo served > page && python3 -m http.server 3000", {
      background: true,
      timeoutMs: 0,
    });
    await until("the port is open", async () => (await fetch(await sandbox.getUrl(3000))).status === 200);
    const url = await sandbox.getUrl(3000, "/page?x=1");
    expect(await (await fetch(url)).text()).toBe("served\n");
    const token = new URL(url).searchParams.get("token")!;
    const answer = await fetch(`http://${sandbox.getHost(3000)}/page`, { headers: { "Mitos-Preview-Token": token } });
    expect(await answer.text()).toBe("served\n");
    expect((await fetch(`http://${sandbox.getHost(3000)}/page`)).status).toBe(401);
    await server.kill();
  });

  it("is another handle on what the SDK makes", async () => {
    const native = await live.create();
    const connected = await Sandbox.connect(native.id);
    expect((await connected.commands.run("pwd -P")).stdout).toBe("/workspace\n");
    expect((await connected.getInfo()).endAt.getTime()).toBeGreaterThan(Date.now() + 31_536_000_000);
    const back = await NativeSandbox.connect(connected.sandboxId, { baseUrl: live.url });
    await back.terminate();
  });

  it("shows no key when it is printed, nor does its client or an error", async () => {
    const apiKey = "mitos-secret-key";
    const client = new E2B({ apiKey, apiUrl: live.url });
    const connected = await client.Sandbox.connect(sandbox.sandboxId);
    const error = await connected.files.read("none").catch((reason: unknown) => reason);
    for (const thing of [connected, client, client.Sandbox, error]) {
      expect(inspect(thing, { depth: 9, showHidden: true })).not.toContain(apiKey);
    }
  });
});

describe("a command", () => {
  it("that ends with 124 by itself has not timed out", async () => {
    await expect(sandbox.commands.run("exit 124", { timeoutMs: 60_000 })).rejects.toMatchObject({
      name: "CommandExitError",
      exitCode: 124,
    });
  });

  it("is killed when its signal fires, and when a callback throws", async () => {
    const controller = new AbortController();
    const reason = new Error("enough");
    const stop = () => controller.abort(reason);
    await expect(sandbox.commands.run("echo go; exec sleep 4711", { signal: controller.signal, onStdout: stop })).rejects.toBe(reason);
    const fail = () => Promise.reject(reason);
    await expect(sandbox.commands.run("echo go; exec sleep 4711", { onStdout: fail })).rejects.toBe(reason);
    // Killed now, gone when it has been reaped.
    await expect.poll(async () => (await sandbox.commands.list()).filter(({ args }) => args.at(-1)?.includes("4711"))).toEqual([]);
  });

  it("is heard no more after disconnect, and runs on", async () => {
    const heard: string[] = [];
    const command = await sandbox.commands.run("read a; echo $a; read b; echo $b; exit 0", {
      background: true,
      stdin: true,
      onStdout: (text) => void heard.push(text),
    });
    await command.sendStdin("one\n");
    await until("the first line", () => heard.length > 0);
    await command.disconnect();
    await expect(command.wait()).rejects.toBeInstanceOf(SandboxError);
    const again = await sandbox.commands.connect(command.pid);
    await again.sendStdin("two\n");
    expect(await again.wait()).toEqual({ exitCode: 0, stdout: "two\n", stderr: "" });
    expect(heard).toEqual(["one\n"]);
  });

  it("that was connected to is listened to for timeoutMs only, and runs on", async () => {
    const command = await sandbox.commands.run("exec sleep 4712", { background: true });
    const listening = await sandbox.commands.connect(command.pid, { timeoutMs: 10 });
    await expect(listening.wait()).rejects.toBeInstanceOf(TimeoutError);
    expect(command.exitCode).toBeUndefined();
    expect(await command.kill()).toBe(true);
    await expect(command.wait()).rejects.toBeInstanceOf(CommandExitError);
  });

  it("that is not there is not found", async () => {
    await expect(sandbox.commands.connect(99_999)).rejects.toBeInstanceOf(NotFoundError);
    await expect(sandbox.commands.sendStdin(99_999, "x")).rejects.toBeInstanceOf(NotFoundError);
    expect(await sandbox.commands.kill(99_999)).toBe(false);
  });

  it("keeps a character whole that arrives in two pieces", async () => {
    const pieces: string[] = [];
    const { stdout } = await sandbox.commands.run("printf '\\303'; sleep 0.2; printf '\\251'", {
      onStdout: (text) => void pieces.push(text),
    });
    expect([stdout, pieces.join("")]).toEqual(["é", "é"]);
  });
});

describe("files", () => {
  it("tell of links, owners and names with line breaks", async () => {
    await sandbox.commands.run(
      "mkdir odd && cd odd && touch \"$(printf 'a\\nb')\" && ln -s ../odd link && chown nobody:nogroup \"$(printf 'a\\nb')\"",
    );
    const [odd, link] = await sandbox.files.list("odd");
    expect(odd).toMatchObject({ name: "a\nb", type: "file", owner: "nobody", group: "nogroup" });
    expect(link).toMatchObject({ name: "link", type: "symlink", symlinkTarget: "../odd" });
    expect((await sandbox.files.list("odd/link")).map(({ path }) => path)).toEqual([
      "/home/user/odd/link/a\nb",
      "/home/user/odd/link/link",
    ]);
    await sandbox.files.remove("odd");
  });

  it("of other users, with metadata, and folders in the way of others are refused", async () => {
    const refused = { name: "InvalidArgumentError" };
    await expect((async () => sandbox.files.write("x", "x", { user: "nobody" }))()).rejects.toMatchObject(refused);
    await expect(sandbox.files.write("x", "x", { metadata: { a: "b" } })).rejects.toMatchObject(refused);
    await sandbox.files.write("a-file", "");
    await expect(sandbox.files.makeDir("a-file")).rejects.toMatchObject(refused);
    await expect(sandbox.files.list("a-file")).rejects.toMatchObject(refused);
    await expect(sandbox.files.watchDir("/etc", () => {})).rejects.toMatchObject(refused);
  });

  it("are watched until the time-out, which onExit is told of", async () => {
    const { promise, resolve } = Promise.withResolvers<Error | undefined>();
    await sandbox.files.watchDir("/home/user", () => {}, { timeoutMs: 10, onExit: resolve });
    expect(await promise).toBeInstanceOf(TimeoutError);
  });

  it("are watched with their entries, not below when nobody asked for it, and renames are told in two", async () => {
    await sandbox.files.makeDir("here/below");
    const events: FilesystemEvent[] = [];
    const handle = await sandbox.files.watchDir("here", (event) => void events.push(event), { includeEntry: true });
    await sandbox.files.write("here/below/unseen", "");
    await sandbox.commands.run("mkdir here/one && mv here/one here/two");
    await until("the last event", () => events.length >= 3);
    await handle.stop();
    expect(events.map(({ type, name }) => [type, name])).toEqual([
      ["create", "one"],
      ["rename", "one"],
      ["create", "two"],
    ]);
    expect(events[1]).not.toHaveProperty("entry");
    expect(events[2]?.entry).toMatchObject({ path: "/home/user/here/two", type: "dir", owner: "root" });
  });
});

describe("code", () => {
  it("waits for asynchronous callbacks, in order, and throws what they throw", async () => {
    const order: string[] = [];
    const slowly = async ({ line }: { line: string }) => {
      await new Promise((resolve) => setTimeout(resolve, 20));
      order.push(line.trim());
    };
    await sandbox.runCode("import time\nfor n in range(3): print(n, flush=True); time.sleep(0.05)", { onStdout: slowly });
    expect(order.join(" ").split(/\s+/)).toEqual(["0", "1", "2"]);
    await expect(sandbox.runCode("print(1)", { onStdout: () => Promise.reject(new Error("no")) })).rejects.toThrow("no");
  });

  it("shows charts of Vega-Lite with their data", async () => {
    const spec = {
      mark: "bar",
      title: "Sales",
      data: { values: [{ a: "x", b: 3 }] },
      encoding: { x: { field: "a", type: "nominal" }, y: { field: "b" } },
    };
    const code = `import json\nclass Chart:\n    def _repr_mimebundle_(self, **_): return {"application/vnd.vegalite.v5+json": json.loads('''${JSON.stringify(spec)}'''), "text/plain": "chart"}\nChart()`;
    const { results } = await sandbox.runCode(code);
    expect(results[0]?.chart).toEqual({
      type: "bar",
      title: "Sales",
      x_label: "a",
      y_label: "b",
      elements: [{ label: "x", value: "3", group: "" }],
    });
  });

  it("reads the charts of matplotlib", async () => {
    await using native = await live.create({ env: { MPLCONFIGDIR: "/tmp/matplotlib" } });
    const packages = await installPackages(native, "plots");
    const plotting = await Sandbox.connect(native.id, { apiUrl: live.url });
    const code = `
import sys; sys.path.insert(0, "${packages}")
import matplotlib.pyplot as plt
fig, ax = plt.subplots()
ax.bar(["Ann", "Bob"], [3, 5])
ax.set_title("Books"); ax.set_xlabel("Who"); ax.set_ylabel("Read")
plt.show()`;
    const { results, error } = await plotting.runCode(code, { timeoutMs: 120_000 });
    expect(error).toBeUndefined();
    expect(results[0]?.formats()).toContain("png");
    expect(results[0]?.chart).toEqual({
      type: "bar",
      title: "Books",
      x_label: "Who",
      y_label: "Read",
      elements: [
        { label: "Ann", value: "3", group: "" },
        { label: "Bob", value: "5", group: "" },
      ],
    });
  });

  it("in a language that there is not is refused, as is a context that is not there", async () => {
    const refused = { name: "InvalidArgumentError" };
    await expect(sandbox.runCode("1", { language: "r" })).rejects.toMatchObject(refused);
    await expect(sandbox.createCodeContext({ language: "r" })).rejects.toMatchObject(refused);
    const context = await sandbox.createCodeContext();
    await expect(sandbox.runCode("1", { context, language: "bash" } as object)).rejects.toMatchObject(refused);
    await sandbox.removeCodeContext(context);
    await expect(sandbox.runCode("1", { context })).rejects.toBeInstanceOf(NotFoundError);
    await expect(sandbox.removeCodeContext(context)).rejects.toBeInstanceOf(NotFoundError);
  });

  it("in a context, too, may have variables of one cell", async () => {
    const context = await sandbox.createCodeContext({ language: "javascript" });
    expect((await sandbox.runCode("process.env.ONE", { context, envs: { ONE: "1" } })).text).toBe("'1'");
    expect((await sandbox.runCode("process.env.ONE", { context })).text).toBeUndefined();
    await sandbox.removeCodeContext(context);
  });

  it("may set variables for a cell in each language, and they are gone after it", async () => {
    const envs = { KEPT_AWAY: `a'b"c $d \\ é` };
    const print = {
      python: "import os; print(os.environ.get('KEPT_AWAY'))",
      javascript: "console.log(process.env.KEPT_AWAY)",
      bash: 'echo "$KEPT_AWAY"',
    };
    for (const [language, code] of Object.entries(print)) {
      expect((await sandbox.runCode(code, { language, envs })).logs.stdout.join("")).toBe(`${envs.KEPT_AWAY}\n`);
      expect((await sandbox.runCode(code, { language })).logs.stdout.join("")).not.toContain("a'b");
    }
  });
});

describe("what there is not", () => {
  it("is refused with what to do instead", async () => {
    for (const call of [
      () => sandbox.createSnapshot(),
      async () => sandbox.listSnapshots(),
      () => sandbox.updateNetwork({ denyOut: [ALL_TRAFFIC] }),
      () => sandbox.getMetrics(),
      () => sandbox.uploadUrl(),
      () => sandbox.downloadUrl("x"),
      async () => sandbox.getMcpUrl(),
      () => sandbox.getMcpToken(),
      async () => sandbox.git,
      () => Sandbox.createSnapshot("x"),
      async () => Sandbox.listSnapshots(),
      () => Sandbox.deleteSnapshot("x"),
      () => Sandbox.updateNetwork("x", {}),
      () => Sandbox.getMetrics("x"),
    ]) {
      const error = await Promise.resolve()
        .then(call)
        .catch((reason: unknown) => reason);
      expect(error).toBeInstanceOf(SandboxError);
      expect(error).toMatchObject({ message: expect.stringContaining("Instead, "), cause: expect.any(AgentRunError) });
    }
  });
});
