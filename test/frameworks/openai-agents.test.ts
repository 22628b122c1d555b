import { MitosSandboxTools } from "@mitos/sdk/integrations/openai-agents";
import { Agent, type AgentInputItem, run, setTracingDisabled } from "@openai/agents";
import { assistantMessage, functionCall, ScriptedModel } from "@openai/agents/testing";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { until } from "../support/until.ts";
import { png, showPng } from "./pictures.ts";
import { runningOf } from "./running.ts";

// The real framework calls the tools; its model is scripted. Nothing leaves the machine.
let live: LiveServer;
let tools: MitosSandboxTools;
beforeAll(async () => {
  setTracingDisabled(true);
  live = await startLiveServer();
  tools = await MitosSandboxTools.create({ baseUrl: live.url });
});
afterAll(async () => {
  await tools.close();
  await live.close();
});

/** Lets an agent make these calls, one a turn, and gives what its model read in answer to each. */
async function answersOf(calls: [name: string, input: string | Record<string, unknown>][], of = tools, signal?: AbortSignal) {
  const turns = calls.map(([name, input], index) => [functionCall(name, input, { callId: `call-${index}` })]);
  const model = new ScriptedModel([...turns, [assistantMessage("done")]]);
  const agent = new Agent({ name: "coder", model, tools: await of.asFunctionTools() });
  const result = await run(agent, "go", signal ? { signal } : {});
  expect(result.finalOutput).toBe("done");
  model.assertComplete();
  const read = model.lastCall?.request.input as AgentInputItem[];
  return read.flatMap((item) => (item.type === "function_call_result" ? [item.output] : []));
}

const text = (output: unknown) => (output as { text: string }).text;

describe("tools in an agent's run", () => {
  it("run commands, write and read files, and run code that keeps its state", async () => {
    const [wrote, ran, read, , value] = await answersOf([
      ["write_file", { path: "/workspace/a/notes.txt", content: "hello" }],
      ["run_command", { command: "cat a/notes.txt; echo err >&2; exit 3", timeout: 20 }],
      ["read_file", { path: "/workspace/a/notes.txt" }],
      ["run_code", { code: "x = 41" }],
      ["run_code", { code: "x + 1", language: "python" }],
    ]);
    expect(text(wrote)).toBe("wrote /workspace/a/notes.txt");
    expect(JSON.parse(text(ran))).toEqual({ stdout: "hello", stderr: "err\n", exit_code: 3, exec_time_ms: expect.any(Number) });
    expect(text(read)).toBe("hello");
    expect(JSON.parse(text(value))).toMatchObject({ text: "42", error: null });
  });

  it("run side by side when a model calls several at once", async () => {
    const calls = Array.from({ length: 6 }, (_, index) =>
      functionCall("run_command", { command: `echo ${index}` }, { callId: `call-${index}` }),
    );
    const model = new ScriptedModel([calls, [assistantMessage("done")]]);
    await run(new Agent({ name: "coder", model, tools: await tools.asFunctionTools() }), "go");
    const read = model.lastCall?.request.input as AgentInputItem[];
    const printed = read.flatMap((item) => (item.type === "function_call_result" ? [JSON.parse(text(item.output)).stdout] : []));
    expect(printed).toEqual(calls.map((_, index) => `${index}\n`));
  });

  it("hand over images as images, and keep them out of the text", async () => {
    const [shown] = await answersOf([["run_code", { code: showPng }]]);
    expect(shown).toEqual([
      { type: "input_text", text: expect.stringContaining("(image 1, attached)") },
      { type: "input_image", image: `data:image/png;base64,${png}` },
    ]);
    expect((shown as { text: string }[])[0]!.text).not.toContain(png);
  });

  it("answer a failure with its code and remedy, and the run goes on", async () => {
    const [missing, late, after] = await answersOf([
      ["read_file", { path: "/workspace/nope" }],
      ["run_command", { command: "sleep 60", timeout: 1 }],
      ["run_command", { command: "echo still here" }],
    ]);
    expect(text(missing)).toMatch(/^\[not_found\] .*\/workspace\/nope.* \| remediation: /);
    expect(text(late)).toMatch(/^\[exec_timeout\] .* \| remediation: Raise timeoutSeconds, split the work/);
    expect(text(after)).toContain("still here");
  });

  it.each<[string, string, string | Record<string, unknown>, string]>([
    ["a missing argument", "run_command", {}, "run_command needs the argument `command`"],
    ["a wrong type", "run_command", { command: "ls", timeout: "5" }, "`timeout` of run_command is not a whole number"],
    ["a time-out of nothing", "run_command", { command: "ls", timeout: 0 }, "`timeout` of run_command is less than 1"],
    ["an unknown argument", "read_file", { path: "/x", encoding: "latin1" }, "read_file knows no argument `encoding`; it takes path"],
    ["a list of arguments", "read_file", "[1]", "read_file takes one object with its arguments"],
  ])("refuse %s with invalid_input", async (_title, name, input, cause) => {
    const [refused] = await answersOf([[name, input]]);
    expect(text(refused)).toBe(
      `[invalid_input] the tool's input is not valid | cause: ${cause} | remediation: Correct the value that the cause names.`,
    );
  });

  it("leave arguments that are no JSON to the framework, which asks for them again", async () => {
    const [refused, after] = await answersOf([
      ["write_file", "{nope"],
      ["run_command", { command: "echo on" }],
    ]);
    expect(text(refused)).toContain("try again with valid JSON");
    expect(text(after)).toContain("on");
  });

  it("are stopped with the run: its signal kills the running command", async () => {
    const controller = new AbortController();
    const work = answersOf([["run_command", { command: "touch /tmp/begun; exec sleep 5151" }]], tools, controller.signal);
    await until("the command runs", () => tools.sandbox.files.exists("/tmp/begun"));
    controller.abort();
    await expect(work).rejects.toThrow();
    await expect.poll(async () => (await tools.runCommand("pgrep -f 'sleep 515[1]' || true")).stdout).toBe("");
  });
});

describe("the adapter itself", () => {
  it("has every operation as a method", async () => {
    expect(await tools.runCommand("echo hi")).toMatchObject({ stdout: "hi\n", exit_code: 0 });
    expect(await tools.writeFile("/workspace/m/a.txt", "x")).toEqual({ path: "/workspace/m/a.txt", written: true });
    expect(await tools.readFile("/workspace/m/a.txt")).toBe("x");
    expect(await tools.listFiles("/workspace/m")).toMatchObject([{ name: "a.txt", is_dir: false, size: 1 }]);
    expect(await tools.runCode("6 * 7")).toMatchObject({ text: "42" });
    await expect(tools.runCode("while True: pass", { timeoutSeconds: 1 })).resolves.toMatchObject({ error: { name: "TimeoutError" } });
  });

  it("defines its tools without the framework, with functions that return plain data", async () => {
    const definitions = tools.functionTools();
    expect(definitions.map(({ name }) => name)).toEqual(["run_command", "read_file", "write_file", "run_code"]);
    expect(await definitions[2]!.func({ path: "/workspace/d", content: "y" })).toEqual({ path: "/workspace/d", written: true });
    expect(await definitions[1]!.func({ path: "/workspace/d" })).toBe("y");
  });

  it("forks into adapters over children that go their own ways", async () => {
    await tools.runCode("state = 'parent'");
    const children = await tools.fork(2);
    await children[0]!.runCode("state = 'first'");
    expect(await Promise.all([...children, tools].map(async (each) => (await each.runCode("state")).text))).toEqual([
      "'first'",
      "'parent'",
      "'parent'",
    ]);
    await Promise.all(children.map((child) => child.close()));
  });
});

describe("the fork tool", () => {
  it("lets a model fork, choose between the sandboxes it made, and no other; closing ends them all", async () => {
    const forking = await MitosSandboxTools.create({ baseUrl: live.url, forkTool: true });
    const [forked] = await answersOf([["fork", { count: 2 }]], forking);
    const { children } = JSON.parse(text(forked)) as { children: string[] };
    expect(children).toHaveLength(2);
    const [wrote, inChild, inParent, stranger] = await answersOf(
      [
        ["write_file", { path: "/workspace/f", content: "child", sandbox: children[0]! }],
        ["read_file", { path: "/workspace/f", sandbox: children[0]! }],
        ["read_file", { path: "/workspace/f" }],
        ["run_command", { command: "ls", sandbox: tools.id }],
      ],
      forking,
    );
    expect([text(wrote), text(inChild)]).toEqual(["wrote /workspace/f", "child"]);
    expect(text(inParent)).toMatch(/^\[not_found\]/);
    expect(text(stranger)).toBe(
      `[not_found] no such sandbox | cause: known here are ${[forking.id, ...children].join(", ")} | ` +
        "remediation: Pass an id that fork has returned, or leave `sandbox` out for the first one.",
    );
    const all = [forking.id, ...children];
    expect(await runningOf(live, all)).toEqual(all);
    await forking.close();
    expect(await runningOf(live, all)).toEqual([]);
  });

  it("leaves no child behind when its adapter is closed in the middle of a fork", async () => {
    const forking = await MitosSandboxTools.create({ baseUrl: live.url, forkTool: true });
    const work = forking.functionTools().at(-1)!.func({ count: 2 });
    await forking.close();
    const { children } = (await work) as { children: string[] };
    expect(children).toHaveLength(2);
    expect(await runningOf(live, [forking.id, ...children])).toEqual([]);
  });
});
