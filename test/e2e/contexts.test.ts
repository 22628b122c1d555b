/** Interpreters side by side: each with a state of its own, made, restarted and removed while the sandbox runs. */

import { limits } from "@mitos/protocol";
import { AgentRunError, type Execution, type Sandbox } from "@mitos/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { until } from "../support/until.ts";

let server: LiveServer;
let sandbox: Sandbox;
beforeAll(async () => {
  server = await startLiveServer();
  sandbox = await server.createWithMemory(1024);
});
afterAll(async () => {
  await server?.close();
});

const stdout = ({ logs }: Execution) => logs.stdout.join("");

describe("contexts", () => {
  it("keep variables of their own, beside the default ones and each other", async () => {
    const names: Record<string, [set: string, get: string]> = {
      python: ["x = 'NAME'", "print(x)"],
      javascript: ["globalThis.x = 'NAME'; 0", "console.log(x)"],
      bash: ["x=NAME", "echo $x"],
    };
    for (const [language, [set, get]] of Object.entries(names)) {
      const [one, two] = [await sandbox.createContext({ language }), await sandbox.createContext({ language })];
      expect(one).toEqual({ id: expect.stringMatching(/^context-[0-9a-f]{16}$/), language, cwd: "/workspace", isDefault: false });
      const options = [{ language }, { context: one }, { context: two.id, language }];
      for (const [index, option] of options.entries())
        await sandbox.runCode(set.replace("NAME", `${language} ${index}`.replace(" ", "-")), option);
      for (const [index, option] of options.entries()) expect(stdout(await sandbox.runCode(get, option))).toBe(`${language}-${index}\n`);
      expect(stdout(await sandbox.runCode(get, { context: language }))).toBe(`${language}-0\n`);
      await sandbox.removeContext(one);
      await sandbox.removeContext(two);
    }
  });

  it("run at the same time: one that is busy holds up no other", async () => {
    const context = await sandbox.createContext();
    const busy = sandbox.runCode("import time, os\nwhile not os.path.exists('/workspace/go-on'): time.sleep(0.01)\n'done'", { context });
    expect((await sandbox.runCode("6 * 7")).text).toBe("42");
    await sandbox.files.write("/workspace/go-on", "");
    expect((await busy).text).toBe("'done'");
    await sandbox.removeContext(context);
  });

  it("start where they are told to, also after a restart, and in /workspace otherwise", async () => {
    await sandbox.files.mkdir("/workspace/deep/er");
    const context = await sandbox.createContext({ language: "bash", cwd: "deep/er" });
    expect(context.cwd).toBe("/workspace/deep/er");
    await sandbox.runCode("cd /", { context });
    expect(await sandbox.restartContext(context)).toEqual(context);
    expect(stdout(await sandbox.runCode("pwd", { context }))).toBe("/workspace/deep/er\n");
    await sandbox.removeContext(context);
  });

  it("are listed in the order of their creation, with the default ones that run and those marked", async () => {
    await using fresh = await server.create();
    const summary = async () => (await fresh.listContexts()).map(({ id, language, isDefault }) => [id, language, isDefault]);
    expect(await summary()).toEqual([["python", "python", true]]);
    const context = await fresh.createContext({ language: "javascript" });
    await fresh.runCode("true", { language: "bash" });
    const all = [
      ["python", "python", true],
      [context.id, "javascript", false],
      ["bash", "bash", true],
    ];
    expect(await summary()).toEqual(all);
    await fresh.removeContext("bash");
    await fresh.removeContext(context);
    expect(await summary()).toEqual(all.slice(0, 1));
  });
});

describe("a restart", () => {
  it("forgets the variables, ends what the code has started, and tells code that was running", async () => {
    const context = await sandbox.createContext();
    await sandbox.runCode("import subprocess; x = 1; child = subprocess.Popen(['sleep', '1000'])", { context });
    const pid = (await sandbox.runCode("child.pid", { context })).text!;
    const seen = Promise.withResolvers<void>();
    const code = "import time; print('runs', flush=True); time.sleep(100)";
    const running = sandbox.runCode(code, { context, onStdout: () => seen.resolve() });
    await seen.promise;
    await sandbox.restartContext(context);
    expect((await running).error).toMatchObject({ name: "KernelDied", value: expect.stringContaining("was restarted while the code ran") });
    expect((await sandbox.runCode("'x' in globals()", { context })).text).toBe("False");
    await until("what it had started has ended", async () => (await sandbox.exec(["kill", "-0", pid])).exitCode !== 0);
    await sandbox.removeContext(context);
  });

  it("is also for a default context, under the name of its language", async () => {
    await sandbox.runCode("kept = 1");
    expect(await sandbox.restartContext("python")).toMatchObject({ id: "python", isDefault: true });
    expect((await sandbox.runCode("'kept' in globals()")).text).toBe("False");
  });
});

describe("a context whose interpreter died", () => {
  it("has a new one at the next run, which says that the state is gone", async () => {
    const context = await sandbox.createContext();
    const pid = (await sandbox.runCode("import os; x = 1; os.getpid()", { context })).text!;
    await sandbox.exec(["kill", "-9", pid]);
    await until("it has ended", async () => (await sandbox.exec(["kill", "-0", pid])).exitCode !== 0);
    const after = await sandbox.runCode("'x' in globals()", { context });
    expect(after.text).toBe("False");
    expect(after.logs.stderr.join("")).toContain("the state of the old one is gone");
    expect((await sandbox.runCode("import os; os._exit(3)", { context })).error?.name).toBe("KernelDied");
    expect(await sandbox.listContexts()).toContainEqual(context);
    await sandbox.removeContext(context);
  });
});

describe("what cannot be", () => {
  const refusal = async (work: Promise<unknown>) => {
    const error = await work.then(
      () => undefined,
      (error: unknown) => error,
    );
    expect(error).toBeInstanceOf(AgentRunError);
    return error as AgentRunError;
  };

  it("is told with its code and the remedy: unknown, of another language, without a folder", async () => {
    const unknown = { code: "not_found", remediation: expect.stringMatching(/contexts/) };
    expect(await refusal(sandbox.restartContext("nobody"))).toMatchObject(unknown);
    expect(await refusal(sandbox.removeContext("nobody"))).toMatchObject(unknown);
    const run = await refusal(sandbox.runCode("1", { context: "nobody" }));
    expect([run.code, run.errorCause]).toEqual(["not_found", expect.stringContaining("list those there are, or create one")]);
    const context = await sandbox.createContext({ language: "bash" });
    const mismatch = await refusal(sandbox.runCode("1", { context, language: "python" }));
    expect([mismatch.code, mismatch.errorCause]).toEqual(["invalid_input", expect.stringContaining("runs bash")]);
    expect((await refusal(sandbox.runCode("1", { context: "python", language: "bash" }))).code).toBe("invalid_input");
    await sandbox.removeContext(context);
    expect((await refusal(sandbox.runCode("1", { context }))).code).toBe("not_found");
    expect(await refusal(sandbox.createContext({ cwd: "/does/not/exist" }))).toMatchObject({ code: "not_found" });
    expect((await refusal(sandbox.createContext({ cwd: "/etc/passwd" }))).code).toBe("invalid_input");
    expect((await refusal(sandbox.createContext({ language: "cobol" }))).code).toBe("invalid_input");
  });

  it("includes more of them than a sandbox may have, and one less makes room", async () => {
    await using full = await server.create({ template: "base" });
    const contexts = [];
    for (let count = 0; count < limits.contextsPerSandboxMax; count++) contexts.push(await full.createContext({ language: "bash" }));
    const error = await refusal(full.createContext({ language: "bash" }));
    expect(error).toMatchObject({ code: "sandbox_exhausted", remediation: "Remove a context that is not used any more." });
    await full.removeContext(contexts[7]!);
    await full.createContext({ language: "bash" });
    expect(stdout(await full.runCode("echo the default one is not counted", { language: "bash" }))).not.toBe("");
  });

  it("includes all of it while the sandbox is paused", async () => {
    await using paused = await server.create();
    await paused.pause();
    const works = [paused.createContext(), paused.listContexts(), paused.restartContext("python"), paused.removeContext("python")];
    const codes = (await Promise.all(works.map(refusal))).map(({ code }) => code);
    expect(new Set(codes)).toEqual(new Set(["sandbox_not_running"]));
  });
});
