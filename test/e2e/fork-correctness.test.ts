import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import path from "node:path";
import type { RunCodeOptions, Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { drawing, patience } from "../support/engine-under-test.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { installPackages } from "../support/python-packages.ts";
import { until } from "../support/until.ts";

const witness = readFileSync(path.join(import.meta.dirname, "../fixtures/witness.py"), "utf8");

let server: LiveServer;
beforeAll(async () => {
  server = await startLiveServer();
});
afterAll(async () => {
  await server.close();
});

interface Seen {
  pid: number;
  history: string[];
  deleted_file: string;
  half_read_next: string;
  wall_clock: number;
  host_name: string;
  [name: string]: unknown;
}

async function startWitness(sandbox: Sandbox): Promise<number> {
  await sandbox.files.write("/workspace/witness.py", witness);
  const pid = await sandbox.execBackground(["python3", "/workspace/witness.py", "8123"]).started;
  await until("the witness listens", () => listens(sandbox));
  return pid;
}

async function listens(sandbox: Sandbox): Promise<boolean> {
  const { exitCode } = await sandbox.exec(["python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 8123), 1)"]);
  return exitCode === 0;
}

async function ask(sandbox: Sandbox, token: string): Promise<Seen> {
  const program = `import urllib.request; print(urllib.request.urlopen("http://127.0.0.1:8123/check?token=${token}", timeout=20).read().decode())`;
  const { stdout, stderr, exitCode } = await sandbox.exec(["python3", "-c", program]);
  expect(exitCode, stderr).toBe(0);
  return JSON.parse(stdout);
}

async function output(sandbox: Sandbox, command: string): Promise<string> {
  const { stdout, stderr, exitCode } = await sandbox.exec(command);
  expect(exitCode, stderr).toBe(0);
  return stdout.trim();
}

describe("a program that holds one of everything", () => {
  it("goes on with all of it in every child, and each child's use of it stays its own", async () => {
    await using parent = await server.create();
    const pid = await startWitness(parent);
    const before = await ask(parent, "before");
    expect(before).toMatchObject({ pid, history: [], half_read_next: "second" });

    const children = await parent.fork(3);
    const answers = await Promise.all(children.map((child, index) => ask(child, `child${index}`)));
    const parentAnswer = await ask(parent, "parent");

    for (const [index, seen] of [...answers, parentAnswer].entries()) {
      const token = index < 3 ? `child${index}` : "parent";
      const reversed = [...token].reverse().join("");
      expect(seen).toMatchObject({
        pid,
        cwd: "/workspace/deep/er",
        env: "kept",
        history: ["before"],
        deleted_file: `written before the fork;before${token}`,
        half_read_next: "\nthird",
        pipe: token,
        tcp: reversed,
        socketpair: token,
        map_before: "before",
        thread: reversed,
        timer_runs: true,
        signal_handler: true,
      });
      expect(Math.abs(seen.wall_clock - Date.now() / 1000), "wall clock").toBeLessThan(20);
    }
    expect(answers.map((seen) => seen.host_name)).toEqual(children.map((child) => child.id));
    expect(parentAnswer.host_name).toBe(parent.id);
    await Promise.all(children.map((child) => child.terminate()));
  });
});

describe("files", () => {
  it("are in the child as at the fork, also large and unsynced ones, and later writes stay apart", async () => {
    await using parent = await server.create();
    await parent.exec(
      "head -c 20000000 /dev/urandom > /workspace/big && ln -s big /workspace/link && mkdir -p /workspace/a/b && echo 1 > /workspace/a/b/c",
    );
    const sum = await output(parent, "sha256sum < /workspace/big");
    const [child] = await parent.fork(1);
    await parent.exec("echo parent > /workspace/a/b/c; rm /workspace/big");
    expect(await output(child!, "sha256sum < /workspace/link")).toBe(sum);
    expect(await output(child!, "cat /workspace/a/b/c")).toBe("1");
    await child!.exec("echo child > /workspace/new");
    expect(await parent.files.exists("/workspace/new")).toBe(false);
    await child!.terminate();
  });
});

describe("the template base", () => {
  it("lists folders of its root without a complaint", async () => {
    await using sandbox = await server.create({ template: "base" });
    const { stderr, exitCode } = await sandbox.exec("ls -la / /usr/bin /usr/lib > /dev/null && cp -a /usr/bin/awk /workspace/awk");
    expect([exitCode, stderr]).toEqual([0, ""]);
  });
});

describe("identity", () => {
  it("is new in every child: host name, machine id, generation, kernel randomness; and the clock is right", async () => {
    await using parent = await server.create();
    const children = await parent.fork(3);
    const probe =
      "hostname; cat /etc/hostname /etc/machine-id /run/sandbox/fork-generation; echo; head -c 32 /dev/urandom | sha256sum; date +%s.%N";
    const rows = await Promise.all(
      [parent, ...children].map(async (sandbox) => {
        const lines = (await output(sandbox, probe)).split("\n").filter(Boolean);
        expect(Math.abs(Number(lines[5]) - Date.now() / 1000), "wall clock").toBeLessThan(5);
        return lines;
      }),
    );
    for (const [index, sandbox] of [parent, ...children].entries()) {
      expect(rows[index]!.slice(0, 2)).toEqual([sandbox.id, sandbox.id]);
      expect(rows[index]![2]).toMatch(/^[0-9a-f]{32}$/);
    }
    for (const column of [0, 2, 4]) expect(new Set(rows.map((row) => row[column])).size).toBe(4);
    expect(Number(rows[1]![3])).toBeGreaterThan(Number(rows[0]![3]));
    await Promise.all(children.map((child) => child.terminate()));
  });
});

describe("code kernels", () => {
  it("keep their variables in every child, and what a child sets stays its own", async () => {
    await using parent = await server.create();
    await parent.runCode("x = 41; data = list(range(100000))");
    await parent.runCode("let n = 7; globalThis.m = { k: 1 }", { language: "javascript" });
    await parent.runCode("v=shell; f() { echo from-$v; }", { language: "bash" });
    const children = await parent.fork(3);
    await Promise.all(children.map((child, index) => child.runCode(`x += ${index + 1}`)));
    for (const [index, child] of children.entries()) {
      expect((await child.runCode("x, sum(data)")).text).toBe(`(${42 + index}, 4999950000)`);
      expect((await child.runCode("n + m.k", { language: "javascript" })).text).toBe("8");
      expect((await child.runCode("f", { language: "bash" })).logs.stdout.join("")).toBe("from-shell\n");
    }
    expect((await parent.runCode("x")).text).toBe("41");
    await Promise.all(children.map((child) => child.terminate()));
  });

  it("include those of contexts, which go their own ways in every child, and stay over a pause", async () => {
    await using parent = await server.create();
    const python = await parent.createContext({ cwd: "/tmp" });
    const javascript = await parent.createContext({ language: "javascript" });
    const bash = await parent.createContext({ language: "bash" });
    await parent.runCode("x = 'default'");
    await parent.runCode("import os; x = 41", { context: python });
    await parent.runCode("let n = 7", { context: javascript });
    await parent.runCode("v=context; f() { echo from-$v; }", { context: bash });
    const children = await parent.fork(3);
    await Promise.all(children.map((child, index) => child.runCode(`x += ${index + 1}`, { context: python })));
    for (const [index, child] of children.entries()) {
      expect(await child.listContexts()).toEqual(await parent.listContexts());
      expect((await child.runCode("x, os.getcwd()", { context: python })).text).toBe(`(${42 + index}, '/tmp')`);
      expect((await child.runCode("x")).text).toBe("'default'");
      expect((await child.runCode("n + 1", { context: javascript })).text).toBe("8");
      expect((await child.runCode("f", { context: bash })).logs.stdout.join("")).toBe("from-context\n");
    }
    await children[0]!.removeContext(javascript);
    await expect(children[0]!.runCode("n", { context: javascript })).rejects.toMatchObject({ code: "not_found" });
    expect((await children[1]!.runCode("n", { context: javascript })).text).toBe("7");
    await Promise.all(children.map((child) => child.terminate()));

    await parent.pause();
    await parent.resume();
    expect((await parent.runCode("x, os.getcwd()", { context: python })).text).toBe("(41, '/tmp')");
    expect((await parent.listContexts()).map(({ id }) => id)).toEqual(["python", python.id, javascript.id, bash.id]);
  });

  const draws = (numpy: string): Record<string, { language: string; prepare: string; draw: string }> => ({
    numpy: {
      language: "python",
      prepare: `import sys; sys.path.insert(0, "${numpy}"); import json, numpy as np; np.random.seed(7); np.random.random()`,
      draw: "print(json.dumps([repr(np.random.random()), str(np.random.randint(2 ** 62)), repr(np.random.normal()), repr(np.random.default_rng().random())]))",
    },
    "Python: random, uuid4, secrets, OpenSSL, temporary names": {
      language: "python",
      prepare:
        "import random, uuid, secrets, ssl, tempfile, os, json; [random.random() for _ in range(3)]; ssl.RAND_bytes(8); next(tempfile._get_candidate_names())",
      draw: "print(json.dumps([repr(random.random()), str(random.getrandbits(64)), str(uuid.uuid4()), secrets.token_hex(16), ssl.RAND_bytes(16).hex(), os.urandom(16).hex(), next(tempfile._get_candidate_names())]))",
    },
    "JavaScript: Math.random, crypto, WebCrypto": {
      language: "javascript",
      prepare: "const crypto = require('node:crypto'); Math.random(); crypto.randomUUID(); crypto.randomBytes(4); 0",
      draw: "console.log(JSON.stringify([String(Math.random()), crypto.randomBytes(16).toString('hex'), crypto.randomUUID(), String(crypto.randomInt(2 ** 47)), globalThis.crypto.randomUUID(), Buffer.from(globalThis.crypto.getRandomValues(new Uint8Array(16))).toString('hex')]))",
    },
    "bash: $RANDOM, $SRANDOM": {
      language: "bash",
      prepare: "RANDOM=7; : $RANDOM $SRANDOM",
      // Fifteen bits each: of four together two hundred children have none in common.
      draw: 'echo "[\\"$RANDOM $RANDOM $RANDOM $RANDOM\\", \\"$SRANDOM$SRANDOM\\"]"',
    },
  });

  it(`draw no random value twice in ${drawing.children} children`, async () => {
    await using parent = await server.createWithMemory(1024);
    const all = draws(await installPackages(parent, "numpy"));
    const sources: { title: string; draw: string; options: RunCodeOptions }[] = [];
    for (const [title, { language, prepare, draw }] of Object.entries(all)) {
      // By default, and in a context: both continue from one state in all children, and from different ones to begin with.
      for (const options of [{ language }, { context: await parent.createContext({ language }) }]) {
        expect((await parent.runCode(prepare, options)).error, title).toBeNull();
        sources.push({ title, draw, options });
      }
    }
    const seen = new Map(Object.keys(all).map((title) => [title, [] as string[][]]));
    // The parent draws nothing in between, so all of them continue from the same random state.
    for (let forked = 0; forked < drawing.children; forked += drawing.forkCount) {
      const children = await parent.fork(drawing.forkCount);
      const drawn = children.flatMap((child) =>
        sources.map(async ({ title, draw, options }) => {
          // All children draw at once, which takes an emulated processor on a slow host longer than a cell is given unless asked.
          const { logs, error } = await child.runCode(draw, { ...options, timeoutSeconds: 60 * patience });
          expect(error, title).toBeNull();
          seen.get(title)?.push(JSON.parse(logs.stdout.join("")));
        }),
      );
      await Promise.all(drawn);
      await Promise.all(children.map((child) => child.terminate()));
    }
    for (const [title, rows] of seen) {
      for (let column = 0; column < rows[0]!.length; column++) {
        expect(new Set(rows.map((row) => row[column])).size, `${title}, column ${column}: ${rows[0]![column]}`).toBe(2 * drawing.children);
      }
    }
  }, 480_000);
});

describe("what is in flight on the parent", () => {
  it("goes on without losing or repeating a byte: an exec, a terminal, an upload, run_code", async () => {
    await using parent = await server.create();
    const exec = parent.exec("for i in $(seq 1 20000); do echo line $i; done", { timeoutSeconds: 120 });
    const code = parent.runCode("import time\nfor i in range(100):\n    print(i, flush=True); time.sleep(0.01)\n'end'");
    const terminal: Uint8Array[] = [];
    const pty = await parent.createPty((data) => terminal.push(data));
    await pty.sendInput(new TextEncoder().encode("stty -echo; for i in $(seq 1 300); do echo tty $i; sleep 0.01; done; exit 7\n"));
    const upload = uploadSlowly(parent, "/workspace/upload");

    const children = await parent.fork(2);

    const { stdout } = await exec;
    expect(stdout).toBe(Array.from({ length: 20_000 }, (_, index) => `line ${index + 1}\n`).join(""));
    const { logs, text } = await code;
    expect(logs.stdout.join("")).toBe(Array.from({ length: 100 }, (_, index) => `${index}\n`).join(""));
    expect(text).toBe("'end'");
    expect(await pty.wait()).toBe(7);
    const lines = Buffer.concat(terminal)
      .toString()
      .match(/tty \d+(?=\r\n)/g);
    expect(lines).toEqual(Array.from({ length: 300 }, (_, index) => `tty ${index + 1}`));
    expect(await output(parent, "sha256sum < /workspace/upload")).toContain(await upload);
    await Promise.all(children.map((child) => child.terminate()));
  });

  it("lives on in the child: its processes can be followed there from any offset", async () => {
    await using parent = await server.create();
    const pid = await parent.execBackground("for i in $(seq 1 40); do echo $i; sleep 0.05; done; exit 3").started;
    const [child] = await parent.fork(1);
    const inherited = child!.connectProcess(pid);
    const result = await inherited.wait();
    expect(result.exitCode).toBe(3);
    expect(result.stdout).toBe(Array.from({ length: 40 }, (_, index) => `${index + 1}\n`).join(""));
    await child!.terminate();
  });

  it("includes a terminal: the child's shell has the variables and can be typed into", async () => {
    await using parent = await server.create();
    const pty = await parent.createPty(() => undefined);
    await pty.sendInput(new TextEncoder().encode("secret_of_shell=forty-two\n"));
    await until("the shell has read it", async () => (await parent.processes()).some((row) => row.stdoutBytes > 20));
    const [child] = await parent.fork(1);
    const seen: Uint8Array[] = [];
    const there = child!.connectPty(pty.pid, (data) => seen.push(data));
    await there.sendInput(new TextEncoder().encode("echo got:$secret_of_shell; exit\n"));
    expect(await there.wait()).toBe(0);
    expect(Buffer.concat(seen).toString()).toContain("got:forty-two");
    await pty.kill();
    await child!.terminate();
  });
});

async function uploadSlowly(sandbox: Sandbox, to: string): Promise<string> {
  const hash = createHash("sha256");
  async function* chunks() {
    for (let index = 0; index < 200; index++) {
      const chunk = Buffer.alloc(16_384, `${index} `);
      hash.update(chunk);
      yield chunk;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
  await sandbox.files.write(to, chunks());
  return hash.digest("hex");
}

describe("many and deep", () => {
  it("a fork of a fork of a fork has what each generation added", async () => {
    await using root = await server.create();
    const line = [root];
    for (let depth = 0; depth < 3; depth++) {
      const current = line[line.length - 1]!;
      await current.runCode(`steps = globals().get("steps", []) + [${depth}]`);
      const [child] = await current.fork(1);
      line.push(child!);
    }
    expect((await line[3]!.runCode("steps")).text).toBe("[0, 1, 2]");
    expect((await root.runCode("steps")).text).toBe("[0]");
    const tree = await root.tree();
    expect(tree.children[0]?.children[0]?.children[0]?.id).toBe(line[3]!.id);
    await root.terminate({ subtree: true });
    await expect(line[3]!.info()).rejects.toMatchObject({ code: "idle_timeout" });
  });

  it("sixteen at once are all complete and all different", async () => {
    await using parent = await server.create();
    await parent.runCode("mine = None");
    const children = await parent.fork(16);
    await Promise.all(children.map((child, index) => child.runCode(`mine = ${index}`)));
    const values = await Promise.all(children.map(async (child) => (await child.runCode("mine")).text));
    expect(values).toEqual(children.map((_, index) => String(index)));
    await Promise.all(children.map((child) => child.terminate()));
  });

  it("a fork under load leaves the load running in parent and child", async () => {
    await using parent = await server.create();
    const pid = await parent.execBackground(
      "i=0; while true; do i=$((i+1)); echo $i > /workspace/count.tmp; mv /workspace/count.tmp /workspace/count; done",
    ).started;
    await until("it counts", () => parent.files.exists("/workspace/count"));
    const [child] = await parent.fork(1);
    for (const sandbox of [parent, child!]) {
      const first = Number(await output(sandbox, "cat /workspace/count"));
      await until("it counts on", async () => Number(await output(sandbox, "cat /workspace/count")) > first);
      await sandbox.connectProcess(pid).kill();
    }
    await child!.terminate();
  });
});

describe("a paused sandbox", () => {
  it("is forked from its saved state, and stays paused", async () => {
    await using parent = await server.create();
    await parent.runCode("x = 'paused'");
    await parent.pause();
    const children = await parent.fork(2);
    for (const child of children) expect((await child.runCode("x")).text).toBe("'paused'");
    expect((await parent.info()).state).toBe("paused");
    await parent.resume();
    expect((await parent.runCode("x")).text).toBe("'paused'");
    await Promise.all(children.map((child) => child.terminate()));
  });

  it("comes back complete five times in a row, with writes between, and holds no memory meanwhile", async () => {
    await using sandbox = await server.create();
    await startWitness(sandbox);
    for (let round = 0; round < 5; round++) {
      await sandbox.exec(`echo round ${round} >> /workspace/rounds`);
      await sandbox.runCode(`rounds = globals().get("rounds", 0) + 1`);
      await sandbox.pause();
      await expect(sandbox.exec("true")).rejects.toMatchObject({ code: expect.stringMatching(/sandbox_not_running|failed_precondition/) });
      await sandbox.resume();
      expect(await output(sandbox, "cat /workspace/rounds")).toBe(
        Array.from({ length: round + 1 }, (_, index) => `round ${index}`).join("\n"),
      );
      expect((await sandbox.runCode("rounds")).text).toBe(String(round + 1));
      expect((await ask(sandbox, `round${round}`)).history).toHaveLength(round);
    }
  });
});

describe("secrets", () => {
  it("refuse a fork unless it is asked for, and are in the child when it is", async () => {
    await using parent = await server.create({ secrets: { TOKEN: "hidden-value" } });
    expect(await output(parent, "echo $TOKEN")).toBe("hidden-value");
    await expect(parent.fork(1)).rejects.toMatchObject({ code: "secret_inheritance_denied" });
    const [child] = await parent.fork({ count: 1, inheritSecrets: true });
    expect(await output(child!, "echo $TOKEN")).toBe("hidden-value");
    await child!.terminate();
  });
});
