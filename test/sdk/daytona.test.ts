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
  DaytonaTimeoutError,
  type Sandbox,
} from "@mitos/sdk/daytona";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { usage } from "./daytona/usage.ts";

// What a user does to migrate: another package behind the same import.
vi.mock("@daytona/sdk", () => import("@mitos/sdk/daytona"));

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

  it("says what to use in place of sessions", async () => {
    await expect(sandbox.process.createSession("s")).rejects.toMatchObject({ name: "DaytonaError", code: "not_supported" });
    await expect(sandbox.process.executeSessionCommand("s", { command: "ls" })).rejects.toThrow(/createPty/);
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
    for (const call of [sandbox.fs.getFileDetails("nope"), sandbox.fs.deleteFile("nope"), sandbox.fs.listFiles("nope")]) {
      await expect(call).rejects.toThrow(DaytonaFileNotFoundError);
    }
  });
});

describe("a sandbox", () => {
  it("opens a port with the URL of its preview link, whose token is told apart", async () => {
    const server = sandbox.sandbox.execBackground("python3 -m http.server 3456 --bind 127.0.0.1");
    await server.started;
    const { url, token, sandboxId } = await sandbox.getPreviewLink(3456);
    await expect.poll(async () => (await fetch(url).catch(() => undefined))?.status).toBe(200);
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
    await expect.poll(() => live.engine.list().filter((row) => row.state === "starting")).toEqual([]);
  });
});
