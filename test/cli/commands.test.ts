import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import {
  appendFileSync,
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import os from "node:os";
import path from "node:path";
import type { Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Ended, start } from "../../packages/cli/src/testing.ts";
import { defaultRuntimeDir } from "../../packages/engine/src/drivers/host/layout.ts";
import { isolationUnderTest } from "../support/engine-under-test.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { until } from "../support/until.ts";

// The command as users start it, against a live server with the real engine.
const dir = mkdtempSync(path.join(os.tmpdir(), "mitos-commands-"));
let server: LiveServer;
let sandbox: Sandbox;

const begin = (args: readonly string[], input?: Uint8Array | string) =>
  start(args, { HOME: dir, MITOS_BASE_URL: server.url, LC_ALL: "C.UTF-8" }, input);
const mitos = (...args: string[]): Promise<Ended> => begin(args).ended;
const withInput = (input: Uint8Array | string, ...args: string[]): Promise<Ended> => begin(args, input).ended;
const ids = () => server.engine.list().map(({ id }) => String(id));

beforeAll(async () => {
  server = await startLiveServer();
  sandbox = await server.create();
});
afterAll(async () => {
  await server.close();
  rmSync(dir, { recursive: true });
});

describe("run", () => {
  it("passes input, output, errors and the exit code through, and leaves no sandbox", async () => {
    const { code, out, err } = await withInput("from outside\n", "run", "cat; echo failing >&2; exit 7");
    expect({ code, out, err }).toEqual({ code: 7, out: "from outside\n", err: "failing\n" });
    expect(ids()).toEqual([sandbox.id]);
  });

  it("takes its own flags in front of the command and behind it, and leaves the command's to it", async () => {
    const line = ["printf", "%s|", "-n", "--color", "a b", "--env", "A=1", "--pool", "python"];
    expect(await mitos("run", ...line)).toMatchObject({ code: 0, out: "-n|--color|a b|", err: "" });
    expect(await mitos("run", "--env", "A=1", "--env=B=x y", "--cwd", "/tmp", 'echo "$A,$B,$PWD"')).toMatchObject({
      code: 0,
      out: "1,x y,/tmp\n",
    });
    expect(await mitos("run", "--", "printf", "%s|", "--pool", "python")).toMatchObject({ code: 0, out: "--pool|python|" });
  });

  it("keeps the sandbox with --keep and tells its id", async () => {
    const { code, out, err } = await mitos("run", "--keep", "echo kept");
    expect({ code, out }).toEqual({ code: 0, out: "kept\n" });
    expect(ids()).toContain(err.trim());
    expect((await mitos("sandbox", "terminate", err.trim())).code).toBe(0);
  });

  it.each([["/dev/null"], ["a pipe"]])("is interrupted: the sandbox is gone and the exit code 130, with input from %s", async (input) => {
    const running = begin(["run", "echo ready; exec sleep 1000"], input === "a pipe" ? "" : undefined);
    await until("the command runs", () => running.seen.out === "ready\n", 60_000);
    running.child.kill("SIGINT");
    expect(await running.ended).toMatchObject({ code: 130, err: expect.stringMatching(/^error: .*\n(cause: .*\n)?next step: .*\n$/) });
    expect(ids()).toEqual([sandbox.id]);
  });

  it("ends quietly, and ends its sandbox, when the reader of its output goes away", async () => {
    const running = begin(["run", "yes"]);
    await once(running.child.stdout, "data");
    running.child.stdout.destroy();
    expect(await running.ended).toMatchObject({ code: 0, err: "" });
    expect(ids()).toEqual([sandbox.id]);
  });
});

describe("sandbox exec", () => {
  it("passes any bytes through in both directions, also faster than they are read", async () => {
    const bytes = randomBytes(3 * 1024 * 1024);
    const sum = createHash("sha256").update(bytes).digest("hex");
    expect(await withInput(bytes, "sandbox", "exec", sandbox.id, "sha256sum")).toMatchObject({ code: 0, out: `${sum}  -\n`, err: "" });
    // Much more than the sandbox keeps of output that nobody reads, at once after the start.
    const printed = begin(["sandbox", "exec", sandbox.id, "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2"], "");
    expect((await printed.ended).code).toBe(0);
    expect([printed.seen.out.length, printed.seen.err.length]).toEqual([3_000_000, 3_000_000]);
  });

  it("does not wait for input that the command does not read", async () => {
    expect(await withInput(randomBytes(1024 * 1024), "sandbox", "exec", sandbox.id, "true")).toMatchObject({ code: 0, out: "", err: "" });
  });

  it("ends with 124 when its time is up, and with 255 when a signal ended the command", async () => {
    expect((await mitos("sandbox", "exec", sandbox.id, "--timeout", "1", "sleep", "30")).code).toBe(124);
    expect((await withInput("x", "sandbox", "exec", sandbox.id, "sleep 30", "--timeout", "1")).code).toBe(124);
    expect((await mitos("sandbox", "exec", sandbox.id, "kill -9 $$")).code).toBe(255);
  });

  it("says why a program cannot be run", async () => {
    expect(await mitos("sandbox", "exec", sandbox.id, "--", "/no/such/program", "x")).toMatchObject({
      code: 1,
      out: "",
      err: expect.stringMatching(/^error: the program could not be run\ncause: .*\/no\/such\/program.*\nnext step: /),
    });
  });
});

describe("cp", () => {
  const local = (...names: string[]) => path.join(dir, "cp", ...names);
  beforeAll(() => mkdirSync(local(), { recursive: true }));

  it("copies a file in and out, whatever its size, with its permissions", async () => {
    const bytes = randomBytes(5 * 1024 * 1024);
    writeFileSync(local("big.bin"), bytes);
    chmodSync(local("big.bin"), 0o750);
    expect(await mitos("cp", local("big.bin"), `${sandbox.id}:deep/er/`)).toEqual({ code: 0, out: "", err: "" });
    expect(await sandbox.exec("stat -c '%a %s' deep/er/big.bin")).toMatchObject({ stdout: `750 ${bytes.length}\n` });
    expect((await mitos("cp", `${sandbox.id}:/workspace/deep/er/big.bin`, local("back", "copy"))).code).toBe(0);
    expect(readFileSync(local("back", "copy")).equals(bytes)).toBe(true);
    expect(statSync(local("back", "copy")).mode & 0o777).toBe(0o750);
  });

  it("copies a folder whole: empty files and folders, permissions, links, odd names", async () => {
    mkdirSync(local("tree", "inner", "empty"), { recursive: true });
    writeFileSync(local("tree", "empty file"), "");
    writeFileSync(local("tree", "inner", "-ö\n"), "odd", { mode: 0o600 });
    writeFileSync(local("tree", "inner", "run.sh"), "#!/bin/sh\n");
    chmodSync(local("tree", "inner", "run.sh"), 0o755);
    symlinkSync("inner/run.sh", local("tree", "link"));
    symlinkSync("/nowhere at all", local("tree", "dangling"));
    chmodSync(local("tree", "inner", "empty"), 0o700);
    expect(await mitos("cp", local("tree"), `${sandbox.id}:`)).toEqual({ code: 0, out: "", err: "" });
    const { stdout } = await sandbox.exec(
      "cd tree && find . -printf '%y %m %p %l\\n' | grep -v '^l.*777 x' | sort | head -4; test -x link && echo runs",
    );
    expect(stdout).toContain("d 700 ./inner/empty");
    expect(stdout).toContain("runs");
    expect((await mitos("cp", `${sandbox.id}:tree`, local("tree-back"))).code).toBe(0);
    expect(describeTree(local("tree-back"))).toEqual(describeTree(local("tree")));
    // A target that is there gets it under its name.
    expect((await mitos("cp", `${sandbox.id}:tree/`, local("tree-back"))).code).toBe(0);
    expect(describeTree(local("tree-back", "tree"))).toEqual(describeTree(local("tree")));
  });

  it("writes nothing through links that an earlier copy has left", async () => {
    mkdirSync(local("outside"));
    mkdirSync(local("trap", "tree"), { recursive: true });
    symlinkSync(local("outside"), local("trap", "tree", "inner"));
    symlinkSync(local("outside", "file"), local("trap", "tree", "empty file"));
    expect((await mitos("cp", `${sandbox.id}:tree`, local("trap"))).code).toBe(0);
    expect(readdirSync(local("outside"))).toEqual([]);
    expect(describeTree(local("trap", "tree"))).toEqual(describeTree(local("tree")));
  });

  it("copies from standard input and to standard output", async () => {
    expect(await withInput("through a pipe", "cp", "-", `${sandbox.id}:piped`)).toEqual({ code: 0, out: "", err: "" });
    expect(await mitos("cp", `${sandbox.id}:piped`, "-")).toEqual({ code: 0, out: "through a pipe", err: "" });
  });

  it("keeps the permissions of a file that exists, and writes through a link to it", async () => {
    await sandbox.exec("echo old > existing && chmod 604 existing && ln -s existing via");
    writeFileSync(local("new"), "new");
    expect((await mitos("cp", local("new"), `${sandbox.id}:via`)).code).toBe(0);
    expect((await sandbox.exec("cat existing; stat -c ' %a %s' existing via")).stdout).toBe("new 604 3\n 777 8\n");
  });

  it.each<[string, () => string[], number, RegExp]>([
    ["a local source that is missing", () => [local("none"), `${sandbox.id}:x`], 3, /none does not exist/],
    ["a source in the sandbox that is missing", () => [`${sandbox.id}:none`, local("x")], 3, /\/workspace\/none does not exist/],
    ["a folder to standard output", () => [`${sandbox.id}:/etc`, "-"], 1, /\/etc is a folder/],
    ["standard input to a folder", () => ["-", `${sandbox.id}:/tmp`], 1, /\/tmp is a folder/],
    ["a folder onto a file", () => [local("tree"), `${sandbox.id}:/etc/hostname`], 1, /\/etc\/hostname is a file/],
    ["a local target below a file", () => [`${sandbox.id}:/etc/hostname`, local("new", "x")], 1, /cannot be used/],
    ["a target in the sandbox below a file", () => [local("new"), `${sandbox.id}:/etc/hostname/x`], 1, /./],
  ])("refuses %s, and leaves nothing", async (_title, args, code, message) => {
    const ended = await mitos("cp", ...args());
    expect(ended).toMatchObject({ code, out: "", err: expect.stringMatching(/^error: .*\n(cause: .*\n)?next step: .*\n$/) });
    expect(ended.err).toMatch(message);
    expect(existsSync(local("x"))).toBe(false);
  });

  it("that is interrupted leaves no half of a file, and exits with 130", async () => {
    await sandbox.exec("truncate -s 40G huge");
    const copying = begin(["cp", `${sandbox.id}:huge`, local("half")]);
    await until("some of it is there", () => existsSync(local("half")) && statSync(local("half")).size > 0, 60_000);
    copying.child.kill("SIGINT");
    expect(await copying.ended).toMatchObject({ code: 130, err: expect.stringMatching(/^error: interrupted by SIGINT\n/) });
    expect(existsSync(local("half"))).toBe(false);
    await sandbox.exec("rm huge");
  });
});

/** Every path below a folder with its kind, permissions and content. */
function describeTree(root: string): Record<string, string> {
  const names = (readdirSync(root, { recursive: true }) as string[]).sort();
  return Object.fromEntries(
    names.map((name) => {
      const place = path.join(root, name);
      const info = lstatSync(place);
      if (info.isSymbolicLink()) return [name, `link ${readlinkSync(place)}`];
      const content = info.isFile() ? readFileSync(place, "latin1") : "folder";
      return [name, `${(info.mode & 0o777).toString(8)} ${content}`];
    }),
  );
}

describe("logs", () => {
  let own: Sandbox;
  let pid: number;

  beforeAll(async () => {
    own = await server.create({ template: "with-a-program", workload: { command: ["sh", "-c", "echo serving; exec sleep 100000"] } });
    const script = "echo one; echo two; echo oops >&2; while ! test -e go; do sleep 0.1; done; echo three";
    pid = await own.execBackground(script).started;
    await until("it has printed", async () =>
      (await own.processes()).some((each) => each.pid === pid && each.stdoutBytes === 8 && each.stderrBytes === 5),
    );
  });
  afterAll(() => own.terminate());

  it("shows what every process has printed, the template's start command first, each under a heading", async () => {
    const { code, out, err } = await mitos("logs", own.id);
    expect({ code, err }).toEqual({ code: 0, err: "oops\n" });
    expect(out).toMatch(/^==> \d+ sh -c echo serving.* <==\nserving\n\n==> \d+ echo one; .* <==\none\ntwo\n$/);
  });

  it("shows one process, its two streams apart, and only its last lines if so wanted", async () => {
    expect(await mitos("logs", own.id, String(pid))).toEqual({ code: 0, out: "one\ntwo\n", err: "oops\n" });
    const tail = await mitos("logs", own.id, String(pid), "--tail", "1");
    expect(tail.out + tail.err).toMatch(/^(two|oops)\n$/);
  });

  it("lists the processes", async () => {
    const { processes } = JSON.parse((await mitos("logs", own.id, "-o", "json")).out) as { processes: unknown[] };
    expect(processes).toContainEqual(expect.objectContaining({ pid, state: "running", stdoutBytes: 8, stderrBytes: 5, exitCode: null }));
    expect((await mitos("logs", own.id, "-o", "table")).out).toMatch(/^PID +STATE +EXIT +AGE +STDOUT +STDERR +COMMAND\n/);
  });

  it("follows a process to its end", async () => {
    const following = begin(["logs", own.id, String(pid), "--follow"]);
    await until("what was there is shown", () => following.seen.out === "one\ntwo\n" && following.seen.err === "oops\n", 60_000);
    await own.files.write("go", "");
    expect(await following.ended).toEqual({ code: 0, out: "one\ntwo\nthree\n", err: "oops\n" });
  });

  it("shows what the machine itself has said, when asked for that instead", async () => {
    const machines = path.join(await defaultRuntimeDir(server.dataDir), "ids");
    const said = readdirSync(machines).map((name) => {
      const line = `of ${name}, on the console\n`;
      appendFileSync(path.join(machines, name, "machine.log"), line);
      return line;
    });
    const { code, out, err } = await mitos("logs", own.id, "--console");
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(said.filter((line) => out.endsWith(line))).toHaveLength(1);
    expect(Buffer.from(await own.console()).toString()).toBe(out);
  });

  it("exits with 3 for a process that does not exist", async () => {
    expect(await mitos("logs", own.id, "99999")).toMatchObject({
      code: 3,
      err: expect.stringMatching(/^error: there is no process 99999 in/),
    });
  });
});

describe("a sandbox", () => {
  it("is described, paused, resumed and forked", async () => {
    const info = JSON.parse((await mitos("sandbox", "info", sandbox.id, "--json")).out) as object;
    expect(info).toMatchObject({
      name: sandbox.id,
      pool: "python",
      phase: "Ready",
      isolation: isolationUnderTest,
      parent: null,
      children: [],
      deadline: null,
    });
    expect((await mitos("sandbox", "info", sandbox.id)).out).toMatch(
      new RegExp(`^FIELD +VALUE\nname +${sandbox.id}\n(.*\n)*age +\\d+[smh]\n`),
    );
    expect(await mitos("sandbox", "pause", sandbox.id)).toMatchObject({ code: 0, out: `paused ${sandbox.id}\n` });
    expect((await mitos("sandbox", "ls")).out).toMatch(/ Paused /);
    expect(await mitos("sandbox", "exec", sandbox.id, "true")).toMatchObject({
      code: 1,
      err: expect.stringMatching(/^error: the sandbox is not running\n/),
    });
    expect(await mitos("sandbox", "resume", sandbox.id, "--timeout", "60")).toMatchObject({ code: 0, out: `resumed ${sandbox.id}\n` });
    const child = (await mitos("fork", sandbox.id, "--wait")).out.trim();
    expect(JSON.parse((await mitos("sandbox", "info", child, "-o", "json")).out)).toMatchObject({ name: child, parent: sandbox.id });
    expect(await mitos("sandbox", "terminate", child)).toMatchObject({ code: 0, out: `terminated ${child}\n` });
  });

  it("comes from a template, which is listed and deleted", async () => {
    const { templates } = JSON.parse((await mitos("template", "ls", "--json")).out) as { templates: unknown[] };
    expect(templates).toContainEqual(expect.objectContaining({ id: "python", ready: true }));
    expect((await mitos("template", "ls")).out).toMatch(
      /^NAME +READY +SOURCE +IMAGE +SIZE +AGE\n(.*\n)*python +yes +host +- +[\d.]+ MiB +\d+[smh]\n(.*\n)*\nNAME +MEANS\npython +this template\n/,
    );
    expect(await mitos("template", "rm", "with-a-program")).toMatchObject({ code: 0, out: "deleted with-a-program\n" });
    expect(await mitos("template", "rm", "with-a-program")).toMatchObject({ code: 3, out: "" });
  });
});
