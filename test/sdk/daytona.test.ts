import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { inspect, promisify } from "node:util";
import {
  Daytona,
  DaytonaBadRequestError,
  DaytonaConflictError,
  DaytonaConnectionError,
  DaytonaError,
  DaytonaFileNotFoundError,
  DaytonaGoneError,
  DaytonaInvalidArgumentError,
  DaytonaNotFoundError,
  DaytonaProcessExecutionTimeoutError,
  DaytonaSessionEndedError,
  DaytonaTimeoutError,
  type Sandbox,
} from "@mitos/sdk/daytona";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { usage } from "./daytona/usage.ts";

// What a user does to migrate: another package behind the same import.
vi.mock("@daytona/sdk", () => import("@mitos/sdk/daytona"));

/** What is waited for comes at once, but not on a machine that is busy. */
const soon = { timeout: 20_000 };

let live: LiveServer;
let daytona: Daytona;
let sandbox: Sandbox;
beforeAll(async () => {
  live = await startLiveServer();
  daytona = new Daytona({ apiUrl: live.url });
  sandbox = await daytona.create({ envVars: { KEPT: "yes" }, labels: { role: "shared" } });
});
afterAll(() => live.close());

describe("a program written for Daytona", () => {
  it("gives with ours what it gives with Daytona", async () => {
    expect(await usage(live.url)).toEqual({
      running: true,
      labels: "blue",
      said: [0, "hello, world\n/tmp\n", "hello, world\n/tmp\n"],
      failed: 7,
      code: [0, "10\n"],
      arguments: "a v\n",
      session: [0, "one in /tmp\n", "one in /tmp\n"],
      config: { a: 1 },
      files: ["0644 /workspace/project/data/config.json", "0755 /workspace/project/data"],
      details: ["config.json", false, 8, "-rw-r--r--"],
      preview: ["http:", true],
      child: ["the-child", "hello\n"],
      stopped: true,
      started: "back\n",
      listed: true,
      missing: 404,
    });
  });

  it("compiles against our types as it does against Daytona's", async () => {
    const compiler = path.resolve(import.meta.dirname, "../../node_modules/.bin/tsc");
    const project = path.join(import.meta.dirname, "daytona/tsconfig.json");
    const { stdout } = await promisify(execFile)(compiler, ["-p", project, "--listFiles"]);
    expect(stdout).toContain("packages/sdk/src/daytona/index.ts");
    expect(stdout).not.toContain("@daytona");
  });
});

describe("process", () => {
  it("runs a command in a folder and with variables of its own, over those of the sandbox", async () => {
    const answer = await sandbox.process
      .exec('printf \'%s %s %s\' "$KEPT" "$OWN" "$PWD"; echo oh >&2; exit 3', "sub'dir", { OWN: "it's" })
      .catch((error: unknown) => error);
    expect(answer).toBeInstanceOf(DaytonaError);
    await sandbox.fs.createFolder("sub'dir");
    expect(
      await sandbox.process.exec('printf \'%s %s %s\' "$KEPT" "$OWN" "$PWD"; echo oh >&2; exit 3', "sub'dir", { OWN: "it's" }),
    ).toEqual({ exitCode: 3, result: "yes it's /workspace/sub'dir", artifacts: { stdout: "yes it's /workspace/sub'dir" }, stderr: "oh\n" });
  });

  it("kills a command whose time is up, and says so in Daytona's class", async () => {
    const error = await sandbox.process.executeCommand("sleep 30", undefined, undefined, 1).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(DaytonaProcessExecutionTimeoutError);
    expect(error).toBeInstanceOf(DaytonaTimeoutError);
    expect(error).toMatchObject({ code: "exec_timeout", errorCode: "exec_timeout", cause: { name: "ExecutionDeadlineError" } });
    expect((await sandbox.process.executeCommand("echo no limit", undefined, undefined, 0)).result).toBe("no limit\n");
    await expect(sandbox.process.executeCommand("true", undefined, undefined, -1)).rejects.toThrow(DaytonaInvalidArgumentError);
  });

  it("runs code in an interpreter that keeps its variables; an exception is exit code 1 with its traceback", async () => {
    expect(await sandbox.process.codeRun("kept = 41")).toMatchObject({ exitCode: 0, result: "" });
    expect(await sandbox.process.codeRun("kept + 1")).toMatchObject({ exitCode: 0, result: "42" });
    const failed = await sandbox.process.codeRun("print('before')\n1 / 0");
    expect(failed.exitCode).toBe(1);
    expect(failed.result).toMatch(/^before\n[\s\S]*ZeroDivisionError/);
  });

  it("runs JavaScript, in the interpreter and as a program with arguments", async () => {
    const other = await daytona.create({ language: "javascript" });
    expect(await other.process.codeRun("console.log([1, 2].map((n) => n * 21).at(-1))")).toMatchObject({ exitCode: 0, result: "42\n" });
    const program = "console.log(process.argv.slice(1).join(), process.env.K)";
    expect((await other.process.codeRun(program, { argv: ["a", "--b"], env: { K: "v" } })).result).toBe("a,--b v\n");
    await other.delete();
  });

  it("runs TypeScript where the sandbox's Node does, and says so where it does not", async () => {
    const other = await daytona.create({ language: "typescript" });
    const [major, minor] = (await other.process.exec("node --version")).result.slice(1).split(".").map(Number) as [number, number];
    const work = other.process.codeRun("const twice = (n: number): number => n * 2; console.log(twice(21))");
    if (major >= 24 || (major === 22 && minor >= 18)) expect(await work).toMatchObject({ exitCode: 0, result: "42\n" });
    else
      await expect(work).rejects.toMatchObject({
        name: "DaytonaError",
        code: "not_supported",
        remediation: expect.stringContaining("22.18"),
      });
    await other.delete();
  });
});

describe("a session", () => {
  const run = (command: string, timeout?: number) => sandbox.process.executeSessionCommand("work", { command }, timeout);
  beforeAll(() => sandbox.process.createSession("work"));

  it("keeps folder, variables and functions from command to command, and tells both outputs apart", async () => {
    expect(await run("cd /tmp; private=1; export SHARED=2; twice() { echo $(( $1 * 2 )); }")).toMatchObject({ exitCode: 0, output: "" });
    const answer = await run('twice 21; echo "$PWD $private"; sh -c \'echo $SHARED\'; echo oh >&2; printf "no line end"; (exit 4)');
    const stdout = "42\n/tmp 1\n2\nno line end";
    expect(answer).toEqual({ cmdId: expect.any(String), exitCode: 4, stdout, stderr: "oh\n", output: `${stdout}oh\n` });
  });

  it("survives a command that is no command, asks for input, or prints what looks like the end", async () => {
    expect((await run("if then (")).exitCode).not.toBe(0);
    expect(await run("cat; echo $?")).toMatchObject({ exitCode: 0, stdout: "0\n" });
    expect(await run("echo '; command echo 0 >exit'; exec 2>&1; echo oh >&2")).toMatchObject({ stdout: "; command echo 0 >exit\noh\n" });
    expect(await run("echo still here")).toMatchObject({ exitCode: 0, stdout: "still here\n" });
  });

  it("runs a command that nobody waits for, whose logs are followed to its end", async () => {
    const { process } = sandbox;
    const command = "echo one; until test -e /tmp/go; do sleep 0.05; done; echo two; echo oh >&2; (exit 5)";
    const { cmdId, exitCode } = await process.executeSessionCommand("work", { command, runAsync: true });
    expect(exitCode).toBeUndefined();
    const seen: string[] = [];
    const following = process.getSessionCommandLogs(
      "work",
      cmdId,
      (chunk) => seen.push(chunk),
      (chunk) => seen.push(`! ${chunk}`),
    );
    await expect.poll(() => seen, soon).toEqual(["one\n"]);
    expect(await process.getSessionCommand("work", cmdId)).toEqual({ id: cmdId, command });
    expect((await process.getSessionCommandLogs("work", cmdId)).stdout).toBe("one\n");
    await sandbox.fs.uploadFile(Buffer.from(""), "/tmp/go");
    await following;
    expect(seen).toEqual(["one\n", "two\n", "! oh\n"]);
    expect(await process.getSessionCommand("work", cmdId)).toEqual({ id: cmdId, command, exitCode: 5 });
    const again: string[] = [];
    await process.getSessionCommandLogs("work", cmdId, (chunk) => again.push(chunk), again.push.bind(again));
    expect(again).toEqual(["one\ntwo\n", "oh\n"]);
  });

  it("is found by another client and in a fork's child, and goes its own way there", async () => {
    await run("where=before");
    const [child] = await sandbox.fork(1);
    await child!.process.executeSessionCommand("work", { command: "where=child" });
    expect((await run("echo $where")).stdout).toBe("before\n");
    expect((await child!.process.executeSessionCommand("work", { command: "echo $where" })).stdout).toBe("child\n");
    await child!.delete();
    const other = await new Daytona({ apiUrl: live.url }).get(sandbox.id);
    const sessions = await other.process.listSessions();
    expect(sessions.map(({ sessionId }) => sessionId)).toEqual(["work"]);
    expect(sessions[0]!.commands.at(-1)).toMatchObject({ command: "echo $where", exitCode: 0 });
    expect(await other.process.getSession("work")).toEqual(sessions[0]);
  });

  it("waits as long as it is told to, and the command runs on", async () => {
    await expect(run("sleep 1; echo late", 0.5)).rejects.toThrow(DaytonaTimeoutError);
    expect((await run("echo next")).stdout).toBe("next\n");
    const { commands } = await sandbox.process.getSession("work");
    expect((await sandbox.process.getSessionCommandLogs("work", commands.at(-2)!.id)).stdout).toBe("late\n");
  });

  it("ends with a command that ends the shell, and what runs in it when it is deleted", async () => {
    const { process } = sandbox;
    await process.createSession("short");
    await expect(process.createSession("short")).rejects.toThrow(DaytonaConflictError);
    expect(await process.executeSessionCommand("short", { command: "echo bye; exit 3" })).toMatchObject({ exitCode: 3, stdout: "bye\n" });
    await expect(process.executeSessionCommand("short", { command: "true" })).rejects.toThrow(DaytonaSessionEndedError);
    await process.createSession("short");
    await process.executeSessionCommand("short", { command: "exec sleep 6363", runAsync: true });
    await expect.poll(async () => (await process.exec("pgrep -f 'sleep 636[3]'")).exitCode, soon).toBe(0);
    await process.deleteSession("short");
    await expect.poll(async () => (await process.exec("pgrep -f 'sleep 636[3]'")).exitCode, soon).toBe(1);
    expect((await process.listSessions()).map(({ sessionId }) => sessionId)).toEqual(["work"]);
  });

  it("says what is wrong", async () => {
    const { process } = sandbox;
    await expect(process.createSession("../up")).rejects.toThrow(DaytonaInvalidArgumentError);
    await expect(process.executeSessionCommand("nope", { command: "true" })).rejects.toThrow(DaytonaNotFoundError);
    await expect(process.getSessionCommand("work", "nope")).rejects.toThrow(DaytonaNotFoundError);
    await expect(process.sendSessionCommandInput("work", "c", "x")).rejects.toMatchObject({ code: "not_supported" });
  });
});

describe("fs", () => {
  it("carries local files both ways, of any size", async () => {
    const folder = mkdtempSync(path.join(os.tmpdir(), "mitos-daytona-"));
    const [there, back] = [path.join(folder, "there"), path.join(folder, "back")];
    const bytes = Buffer.alloc(5 * 1024 * 1024, "0123456789abcdef!");
    writeFileSync(there, bytes);
    await sandbox.fs.uploadFile(there, "big/file");
    await sandbox.fs.downloadFile("big/file", back);
    expect(readFileSync(back).equals(bytes)).toBe(true);
    expect((await sandbox.fs.downloadFile("/workspace/big/file")).equals(bytes)).toBe(true);
    await expect(sandbox.fs.uploadFile(path.join(folder, "nope"), "x")).rejects.toThrow(DaytonaInvalidArgumentError);
    rmSync(folder, { recursive: true });
  });

  it("gives folders the permissions that are asked for, and deletes them only when told to", async () => {
    await sandbox.fs.createFolder("private", "700");
    expect(await sandbox.fs.getFileInfo("private")).toMatchObject({ isDir: true, permissions: "0700", mode: "drwx------" });
    await expect(sandbox.fs.deleteFile("private")).rejects.toThrow(/recursive = true/);
    await sandbox.fs.deleteFile("private", true);
    await expect(sandbox.fs.createFolder("x", "rwx")).rejects.toThrow(DaytonaInvalidArgumentError);
  });

  it("tells a missing file from a missing sandbox", async () => {
    const error = await sandbox.fs.downloadFile("nope").catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(DaytonaFileNotFoundError);
    expect(error).toMatchObject({ statusCode: 404, code: "not_found", cause: { name: "NotFoundError" } });
    await expect(sandbox.fs.getFileDetails("nope")).rejects.toThrow(DaytonaFileNotFoundError);
    await expect(sandbox.fs.deleteFile("nope")).rejects.toThrow(DaytonaFileNotFoundError);
    await expect(sandbox.fs.listFiles("nope")).rejects.toThrow(DaytonaFileNotFoundError);
  });
});

describe("a sandbox", () => {
  it("opens a port with the URL of its preview link, whose token is told apart", async () => {
    const server = sandbox.sandbox.execBackground("python3 -m http.server 3456 --bind 127.0.0.1");
    await server.started;
    const { url, token, sandboxId } = await sandbox.getPreviewLink(3456);
    await expect.poll(async () => (await fetch(url).catch(() => undefined))?.status, soon).toBe(200);
    expect([new URL(url).searchParams.get("token"), sandboxId]).toEqual([token, sandbox.id]);
    await server.kill();
    await expect(sandbox.getPreviewLink(0)).rejects.toThrow(DaytonaInvalidArgumentError);
  });

  it("forks into many, each with its state, labels and language", async () => {
    await sandbox.process.codeRun("before_the_fork = 'here'");
    const children = await sandbox.fork(2);
    for (const child of children) {
      expect((await child.process.codeRun("before_the_fork")).result).toBe("'here'");
      expect(child.labels.role).toBe("shared");
    }
    await Promise.all(children.map((child) => child.delete()));
  });

  it("keeps its memory while it is stopped, and cannot be used meanwhile", async () => {
    await sandbox.process.codeRun("through_the_stop = 1");
    await daytona.stop(sandbox);
    expect(sandbox.state).toBe("stopped");
    await expect(sandbox.process.executeCommand("true")).rejects.toThrow(DaytonaConflictError);
    await sandbox.start();
    await sandbox.start();
    expect((await sandbox.process.codeRun("through_the_stop")).result).toBe("1");
  });

  it("has the size, name and life that it was created with", async () => {
    const other = await daytona.create({
      image: "python",
      name: "named",
      ephemeral: true,
      autoStopInterval: 5,
      resources: { cpu: 1, memory: 0.5 },
    });
    expect(other).toMatchObject({ id: "named", name: "named", cpu: 1, memory: 0.5, snapshot: "python" });
    expect(Object.keys(other.labels)).toEqual(["code-toolbox-language"]);
    await (await daytona.get("named")).stop();
    await expect(daytona.get("named")).rejects.toThrow(DaytonaGoneError);
    expect(await Array.fromAsync(daytona.list({ id: "NAM" }))).toEqual([]);
  });

  it("is listed by label, state and prefix", async () => {
    const ids = async (query: Parameters<Daytona["list"]>[0]) => (await Array.fromAsync(daytona.list(query))).map(({ id }) => id);
    expect(await ids({ labels: { role: "shared" }, states: ["started"] })).toEqual([sandbox.id]);
    expect(await ids({ id: sandbox.id.slice(0, 12).toUpperCase() })).toEqual([sandbox.id]);
    expect(await ids({ labels: { role: "other" } })).toEqual([]);
    expect(await ids({ states: ["stopped"] })).toEqual([]);
  });
});

describe("what cannot be honoured", () => {
  it.each([
    [{ volumes: [{ volumeId: "v", mountPath: "/v" }] }, /`volumes`.*Upload/],
    [{ secrets: { K: "name" } }, /`secrets`.*@mitos\/sdk/],
    [{ autoStopInterval: 15 }, /`autoStopInterval`.*ttlMinutes/],
    [{ autoDeleteInterval: 60 }, /`autoDeleteInterval`.*ephemeral/],
    [{ public: true }, /`public`.*getPreviewLink/],
    [{ image: "python", resources: { gpu: 1 } }, /`gpu`/],
    [{ image: { dockerfile: "FROM x" } }, /template/],
    [{ language: "cobol" }, /python, typescript, javascript/],
    [{ name: "not a name" }, /letters, digits/],
    [{ ttlMinutes: -1 }, /whole number of minutes/],
  ])("is refused before anything is sent: %j", async (params, message) => {
    const error = await daytona.create(params as object).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(DaytonaInvalidArgumentError);
    expect(error).toMatchObject({ code: "invalid_input", statusCode: undefined, remediation: expect.stringMatching(/./) });
    expect((error as Error).message).toMatch(message);
  });

  it("is refused where a program reaches for it", () => {
    const reach = [() => sandbox.git, () => sandbox.codeInterpreter, () => sandbox.computerUse];
    for (const get of [...reach, () => daytona.volume, () => daytona.snapshot, () => daytona.secret]) {
      expect(get).toThrow(
        expect.objectContaining({ name: "DaytonaError", code: "not_supported", remediation: expect.stringMatching(/./) }),
      );
    }
  });

  it("is refused by the client and by its other calls as well", async () => {
    expect(() => new Daytona({ jwtToken: "t" } as object)).toThrow(/`jwtToken`.*apiKey/);
    await expect(Array.fromAsync(daytona.list({ minCpu: 2 } as object))).rejects.toThrow(DaytonaInvalidArgumentError);
    await expect(daytona.create({}, { timeout: -1 })).rejects.toThrow(DaytonaInvalidArgumentError);
  });
});

describe("failures", () => {
  it("come in Daytona's class for what the server answers, with its code and remedy, and ours as the cause", async () => {
    await expect(daytona.create({ image: "python", resources: { memory: 1000 } })).rejects.toThrow(DaytonaBadRequestError);
    const error = await daytona.get("nobody").catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(DaytonaNotFoundError);
    expect(error).not.toBeInstanceOf(DaytonaFileNotFoundError);
    expect(error).toMatchObject({ name: "DaytonaNotFoundError", statusCode: 404, code: "not_found", cause: { name: "NotFoundError" } });
    expect((error as DaytonaError).message).toContain((error as DaytonaError).remediation);
  });

  it("say when there is no server, and never the key", async () => {
    const nowhere = new Daytona({ apiUrl: "http://127.0.0.1:1", apiKey: "secret-key-of-mine" });
    const error = await nowhere.get("x").catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(DaytonaConnectionError);
    const keyed = await new Daytona({ apiUrl: live.url, apiKey: "secret-key-of-mine" }).get(sandbox.id);
    expect(inspect([nowhere, error, keyed], { depth: null })).not.toContain("secret-key-of-mine");
  });

  it("tell a wait that was given up", async () => {
    await expect(daytona.create({}, { timeout: 0.001 })).rejects.toThrow(DaytonaTimeoutError);
    await expect.poll(() => live.engine.list().filter((row) => row.state === "starting"), soon).toEqual([]);
  });
});
