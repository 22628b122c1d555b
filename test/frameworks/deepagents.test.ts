import { AIMessage, ToolMessage } from "@langchain/core/messages";
import { fakeModel } from "@langchain/core/testing";
import type { Sandbox } from "@mitos/sdk";
import { asDeepagentsBackend, type MitosBackend } from "@mitos/sdk/integrations/deepagents";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { BaseSandbox, createDeepAgent, isSandboxBackend } from "../../packages/sdk/test/deepagents.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { png } from "./pictures.ts";
import { runningOf } from "./running.ts";

// The real framework builds its file system on the backend; its model is scripted.
let live: LiveServer;
let sandbox: Sandbox;
let backend: MitosBackend;
beforeAll(async () => {
  live = await startLiveServer();
  sandbox = await live.create();
  backend = await asDeepagentsBackend(sandbox);
});
afterAll(async () => {
  await backend.close();
  await live.close();
});

const bytes = (text: string) => new TextEncoder().encode(text);

describe("the backend", () => {
  it("is the framework's kind of sandbox, and has the sandbox's id", () => {
    expect(backend).toBeInstanceOf(BaseSandbox);
    expect(isSandboxBackend(backend)).toBe(true);
    expect(backend.id).toBe(sandbox.id);
  });

  it("executes commands: stdout, then stderr, and the exit code", async () => {
    expect(await backend.execute("echo err >&2; echo ran:echo hi; exit 3")).toEqual({
      output: "ran:echo hi\nerr\n",
      exitCode: 3,
      truncated: false,
    });
    expect(await backend.execute("no-such-program")).toMatchObject({ exitCode: 127, output: expect.stringContaining("not found") });
  });

  it("answers a time-out with what was printed until then, code 124, and says so", async () => {
    const { output, exitCode } = await backend.execute("echo begun; sleep 60", { timeout: 1 });
    expect(output).toBe("begun\n[exec_timeout] the command was killed after 1 s; split the work.\n");
    expect(exitCode).toBe(124);
  });

  it("keeps the first 8 MiB of a stream, in whole characters, and says that it dropped the rest", async () => {
    const { output, truncated, exitCode } = await backend.execute("yes €€ | head -c 9000000; exit 5");
    expect({ truncated, exitCode }).toEqual({ truncated: true, exitCode: 5 });
    const limit = 8 * 1024 * 1024;
    expect(bytes(output).length).toBe(limit - (limit % 7) + 3 * Math.floor((limit % 7) / 3));
    expect(output.replaceAll("€€\n", "")).toBe("€");
  });

  it("uploads and downloads bytes of any kind, and says for each file what went wrong", async () => {
    const all = Uint8Array.from({ length: 256 }, (_, value) => value);
    expect(
      await backend.uploadFiles([
        ["/workspace/deep/a.bin", all],
        ["relative", bytes("x")],
        ["/workspace", bytes("x")],
        ["/workspace/empty", new Uint8Array()],
        ["/proc/version", bytes("x")],
      ]),
    ).toEqual([
      { path: "/workspace/deep/a.bin", error: null },
      { path: "relative", error: "invalid_path" },
      { path: "/workspace", error: "is_directory" },
      { path: "/workspace/empty", error: null },
      { path: "/proc/version", error: expect.any(String) },
    ]);
    expect(await sandbox.files.readBytes("/workspace/deep/a.bin")).toEqual(all);
    expect(await backend.downloadFiles(["/workspace/deep/a.bin", "nope", "/workspace/nope", "/workspace", "/workspace/empty"])).toEqual([
      { path: "/workspace/deep/a.bin", content: all, error: null },
      { path: "nope", content: null, error: "invalid_path" },
      { path: "/workspace/nope", content: null, error: "file_not_found" },
      { path: "/workspace", content: null, error: "is_directory" },
      { path: "/workspace/empty", content: new Uint8Array(), error: null },
    ]);
  });

  it("forks into backends over children, and ends its sandbox when it is closed", async () => {
    await backend.write("/workspace/f.txt", "parent");
    const [child] = await backend.fork();
    await child!.write("/workspace/f.txt", "child");
    expect(await sandbox.files.read("/workspace/f.txt")).toBe("parent");
    expect(await runningOf(live, [child!.id])).toEqual([child!.id]);
    await child!.close();
    expect(await runningOf(live, [child!.id])).toEqual([]);
  });

  it("throws our error when the sandbox itself is gone, and answers it for each file", async () => {
    const gone = await live.create();
    const over = await asDeepagentsBackend({ sandbox: gone });
    await gone.terminate();
    await expect(over.execute("true")).rejects.toMatchObject({ code: "idle_timeout" });
    expect(await over.uploadFiles([["/workspace/a", bytes("x")]])).toEqual([
      { path: "/workspace/a", error: expect.stringMatching(/^\[idle_timeout\] .* \| remediation: /) },
    ]);
  });
});

describe("what the framework builds on it", () => {
  it("writes, lists and reads files, by lines and from an offset", async () => {
    expect(await backend.write("/workspace/p/notes.md", "one\ntwo\nthree\n")).toMatchObject({ path: "/workspace/p/notes.md" });
    expect(await backend.write("/workspace/p/sub dir/it's.txt", "quoted")).not.toHaveProperty("error");
    const { files } = await backend.ls("/workspace/p");
    expect(files?.map(({ path, is_dir }) => [path, is_dir]).sort()).toEqual([
      ["/workspace/p/notes.md", false],
      ["/workspace/p/sub dir/", true],
    ]);
    const { content, totalLines } = await backend.read("/workspace/p/notes.md", 1, 1);
    expect(content).toMatch(/^\s*2\ttwo\n$/);
    expect(totalLines).toBe(3);
    expect((await backend.read("/workspace/p/sub dir/it's.txt")).content).toContain("quoted");
    expect(await backend.read("/workspace/p/nope.md")).toMatchObject({ error: expect.stringContaining("not found") });
    expect(await backend.readRaw("/workspace/p/notes.md")).toMatchObject({ data: { content: expect.stringContaining("three") } });
  });

  it("reads and writes pictures as bytes", async () => {
    expect(await backend.write("/workspace/p/dot.png", png)).not.toHaveProperty("error");
    const { content, mimeType } = await backend.read("/workspace/p/dot.png");
    expect(mimeType).toBe("image/png");
    expect(Buffer.from(content as Uint8Array).toString("base64")).toBe(png);
  });

  it("edits one occurrence, all of them, and refuses to guess", async () => {
    await backend.write("/workspace/e.txt", "a b a");
    expect(await backend.edit("/workspace/e.txt", "b", "c")).toMatchObject({ occurrences: 1 });
    expect(await backend.edit("/workspace/e.txt", "a", "d")).toMatchObject({ error: expect.stringContaining("Multiple occurrences") });
    expect(await backend.edit("/workspace/e.txt", "a", "d", true)).toMatchObject({ occurrences: 2 });
    expect(await sandbox.files.read("/workspace/e.txt")).toBe("d c d");
    expect(await backend.edit("/workspace/nope", "a", "b")).toMatchObject({ error: expect.stringContaining("not found") });
  });

  it("finds text and names", async () => {
    await backend.write("/workspace/g/one.py", "import os\nneedle = '$(x) \"quoted\"'\n");
    await backend.write("/workspace/g/deep/two.py", "needle\n");
    await backend.write("/workspace/g/deep/three.txt", "needle\n");
    expect(await backend.grep("needle = '$(x) \"", "/workspace/g")).toMatchObject({
      matches: [{ path: "/workspace/g/one.py", line: 2, text: "needle = '$(x) \"quoted\"'" }],
    });
    const { matches } = await backend.grep("needle", "/workspace/g", "*.py");
    expect(matches?.map(({ path }) => path).sort()).toEqual(["/workspace/g/deep/two.py", "/workspace/g/one.py"]);
    const { files } = await backend.glob("**/*.py", "/workspace/g");
    expect(files?.map(({ path }) => path).sort()).toEqual(["deep/two.py", "one.py"]);
    expect((await backend.glob("*.py", "/workspace/g")).files?.map(({ path }) => path)).toEqual(["one.py"]);
  });

  it("deletes files and folders", async () => {
    await backend.write("/workspace/x/y/z.txt", "");
    expect(await backend.delete("/workspace/x")).toMatchObject({ path: "/workspace/x" });
    expect(await sandbox.files.exists("/workspace/x")).toBe(false);
    expect(await backend.delete("/workspace/x")).toMatchObject({ error: expect.stringContaining("not found") });
  });
});

describe("a deep agent", () => {
  it("works in the sandbox with the framework's own tools", async () => {
    const model = fakeModel()
      .respondWithTools([{ name: "write_file", args: { file_path: "/workspace/job.py", content: "print(6 * 7)\n" } }])
      .respondWithTools([{ name: "edit_file", args: { file_path: "/workspace/job.py", old_string: "7", new_string: "8" } }])
      .respondWithTools([{ name: "execute", args: { command: "python3 job.py; exit 2" } }])
      .respondWithTools([{ name: "read_file", args: { file_path: "/workspace/none" } }])
      .respondWithTools([{ name: "grep", args: { pattern: "print", path: "/workspace" } }])
      .respond(new AIMessage("done"));
    const agent = createDeepAgent({ model, backend });
    const { messages } = await agent.invoke({ messages: [{ role: "user", content: "go" }] });
    expect(messages.at(-1)?.content).toBe("done");
    const answers = messages.flatMap((message) => (message instanceof ToolMessage ? [JSON.stringify(message.content)] : []));
    expect(answers[2]).toContain("48");
    expect(answers[2]).toContain("exit code 2");
    expect(answers[3]).toContain("not found");
    expect(answers[4]).toContain("job.py");
    expect(await sandbox.files.read("/workspace/job.py")).toBe("print(6 * 8)\n");
  });
});
