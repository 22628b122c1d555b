import { AIMessage, ToolMessage } from "@langchain/core/messages";
import { fakeModel } from "@langchain/core/testing";
import { StructuredTool } from "@langchain/core/tools";
import { MitosSandbox } from "@mitos/sdk/integrations/langchain";
import { createAgent, createMiddleware } from "langchain";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { until } from "../support/until.ts";
import { png, showPng } from "./pictures.ts";
import { runningOf } from "./running.ts";

// The real framework calls the tools; its model is scripted.
let live: LiveServer;
let sandbox: MitosSandbox;
let tools: Record<string, StructuredTool>;
beforeAll(async () => {
  live = await startLiveServer();
  sandbox = await MitosSandbox.create({ baseUrl: live.url });
  tools = await byName(sandbox);
});
afterAll(async () => {
  await sandbox.close();
  await live.close();
});

async function byName(of: MitosSandbox): Promise<Record<string, StructuredTool>> {
  return Object.fromEntries((await of.asLangchainTools()).map((tool) => [tool.name, tool]));
}

const toolCall = (name: string, args: Record<string, unknown>) => ({ type: "tool_call" as const, id: "call-1", name, args });
const invalid = (cause: string) =>
  `[invalid_input] the tool's input is not valid | cause: ${cause} | remediation: Correct the value that the cause names.`;

describe("MitosSandbox", () => {
  it("executes commands, as plain data and as the SDK's result", async () => {
    expect(await sandbox.execute("echo hi; exit 4")).toMatchObject({ stdout: "hi\n", stderr: "", exit_code: 4 });
    expect(await sandbox.run("echo alias")).toMatchObject({ stdout: "alias\n" });
    expect(await sandbox.execResult("echo typed")).toMatchObject({ stdout: "typed\n", exitCode: 0 });
    await expect(sandbox.execute("sleep 60", { timeoutSeconds: 1 })).rejects.toMatchObject({ code: "exec_timeout" });
  });

  it("writes, reads and lists files", async () => {
    await sandbox.writeFile("/workspace/m/a.txt", "hello");
    expect(await sandbox.readFile("/workspace/m/a.txt")).toBe("hello");
    expect(await sandbox.listFiles("/workspace/m")).toMatchObject([{ name: "a.txt", isDir: false, size: 5 }]);
  });

  it("runs code, as the SDK's result and as plain data", async () => {
    expect((await sandbox.runCode("import math; math.sqrt(144)")).text).toBe("12.0");
    expect(await sandbox.runCodeDict("const x = 2; x", { language: "javascript" })).toMatchObject({ text: "2", error: null });
  });

  it("ends with its block, and so does each child, which goes on from its parent's state", async () => {
    const ids: string[] = [];
    {
      await using parent = await MitosSandbox.create({ baseUrl: live.url });
      await parent.runCode("state = 1");
      const [first, second] = await parent.fork(2);
      ids.push(parent.id, first!.id, second!.id);
      expect((await first!.runCode("state")).text).toBe("1");
      await first!.close();
      await second!.close();
      expect(await runningOf(live, ids)).toEqual([parent.id]);
    }
    expect(await runningOf(live, ids)).toEqual([]);
  });
});

describe("the tools", () => {
  it("are the framework's, four in their order", () => {
    expect(Object.keys(tools)).toEqual(["run_command", "read_file", "write_file", "run_code"]);
    for (const tool of Object.values(tools)) expect(tool).toBeInstanceOf(StructuredTool);
  });

  it("give a program their text", async () => {
    expect(await tools.write_file!.invoke({ path: "/workspace/a.txt", content: "hello" })).toBe("wrote /workspace/a.txt");
    expect(await tools.read_file!.invoke({ path: "/workspace/a.txt" })).toBe("hello");
    expect(JSON.parse(await tools.run_command!.invoke({ command: "cat a.txt" }))).toMatchObject({ stdout: "hello", exit_code: 0 });
  });

  it("answer a tool call with a tool message", async () => {
    const message = await tools.run_code!.invoke(toolCall("run_code", { code: "6 * 7" }));
    expect(message).toBeInstanceOf(ToolMessage);
    expect(message).toMatchObject({ status: "success", tool_call_id: "call-1", name: "run_code" });
    expect(JSON.parse(message.content)).toMatchObject({ text: "42" });
  });

  it("hand over images as content blocks", async () => {
    const message = await tools.run_code!.invoke(toolCall("run_code", { code: showPng }));
    expect(message.contentBlocks).toEqual([
      { type: "text", text: expect.stringContaining("(image 1, attached)") },
      { type: "image", mimeType: "image/png", data: png },
    ]);
  });

  it.each<[string, string, Record<string, unknown>, string]>([
    ["a missing argument", "run_code", {}, "run_code needs the argument `code`"],
    ["a wrong type", "run_command", { command: "ls", timeout: 1.5 }, "`timeout` of run_command is not a whole number"],
    ["an unknown argument", "read_file", { path: "/x", lines: 3 }, "read_file knows no argument `lines`; it takes path"],
  ])("refuse %s: thrown to a program, an error message for a model", async (_title, name, input, cause) => {
    await expect(tools[name]!.invoke(input)).rejects.toMatchObject({ code: "invalid_input", errorCause: cause });
    expect(await tools[name]!.invoke(toolCall(name, input))).toMatchObject({ status: "error", content: invalid(cause) });
  });

  it("kill the running command when their signal fires", async () => {
    const controller = new AbortController();
    const call = toolCall("run_command", { command: "touch /tmp/begun; exec sleep 5454" });
    const work = tools.run_command!.invoke(call, { signal: controller.signal });
    await until("the command runs", () => sandbox.sandbox.files.exists("/tmp/begun"));
    controller.abort();
    await expect(work).rejects.toMatchObject({ code: "canceled" });
    await expect.poll(async () => (await sandbox.execute("pgrep -f 'sleep 545[4]' || true")).stdout).toBe("");
  });
});

describe("an agent of createAgent", () => {
  /** Middleware around tool calls turns an exception of a tool into the end of the run. */
  const watching = createMiddleware({ name: "watching", wrapToolCall: (request, handler) => handler(request) });

  it.each([
    ["without middleware", []],
    ["with middleware around its tool calls", [watching]],
  ])("calls the tools and goes on after a failed call, %s", async (_title, middleware) => {
    const model = fakeModel()
      .respondWithTools([{ name: "write_file", args: { path: "/workspace/b.txt", content: "from the agent" } }])
      .respondWithTools([{ name: "read_file", args: { path: "/workspace/nope" } }])
      .respondWithTools([{ name: "run_command", args: { cmd: "ls" } }])
      .respondWithTools([{ name: "run_command", args: { command: "cat b.txt" } }])
      .respond(new AIMessage("done"));
    const agent = createAgent({ model, tools: Object.values(tools), middleware });
    const { messages } = await agent.invoke({ messages: [{ role: "user", content: "go" }] });
    expect(messages.at(-1)?.content).toBe("done");
    const [wrote, missing, refused, ran] = messages.filter((message) => message instanceof ToolMessage);
    expect(wrote).toMatchObject({ status: "success", content: "wrote /workspace/b.txt" });
    expect(missing).toMatchObject({ status: "error", content: expect.stringMatching(/^\[not_found\] .* \| remediation: /) });
    expect(refused).toMatchObject({
      status: "error",
      content: invalid("run_command knows no argument `cmd`; it takes command, timeout"),
    });
    expect(JSON.parse(ran!.content as string)).toMatchObject({ stdout: "from the agent", exit_code: 0 });
  });

  it("forks when its tools were made for it", async () => {
    await using forking = await MitosSandbox.create({ baseUrl: live.url, forkTool: true });
    const { fork, run_command } = await byName(forking);
    const { children } = JSON.parse(await fork!.invoke({ count: 1 })) as { children: string[] };
    expect(await run_command!.invoke({ command: "hostname", sandbox: children[0]! })).toContain(children[0]);
  });
});
