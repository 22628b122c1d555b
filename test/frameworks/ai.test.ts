import type { Sandbox } from "@mitos/sdk";
import { mitosTools } from "@mitos/sdk/integrations/ai";
import { generateText, isStepCount, type ModelMessage, streamText, type ToolSet } from "ai";
import { convertArrayToReadableStream, MockLanguageModelV4 } from "ai/test";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { until } from "../support/until.ts";
import { png, showPng } from "./pictures.ts";
import { runningOf } from "./running.ts";

// The real framework calls the tools; its model is scripted.
let live: LiveServer;
let sandbox: Sandbox;
let tools: ToolSet;
beforeAll(async () => {
  live = await startLiveServer();
  sandbox = await live.create();
  tools = await mitosTools(sandbox);
});
afterAll(() => live.close());

type Call = [name: string, input: string | Record<string, unknown>];

const usage = {
  inputTokens: { total: 1, noCache: 1, cacheRead: 0, cacheWrite: 0 },
  outputTokens: { total: 1, text: 1, reasoning: 0 },
};
const finish = (unified: "stop" | "tool-calls") => ({ finishReason: { unified, raw: undefined }, usage });
const toolCall = ([toolName, input]: Call, index: number) => ({
  type: "tool-call" as const,
  toolCallId: `call-${index}`,
  toolName,
  input: typeof input === "string" ? input : JSON.stringify(input),
});

/** Makes these calls, one a step, then says that it is done. */
function scripted(calls: Call[]): MockLanguageModelV4 {
  return new MockLanguageModelV4({
    doGenerate: [
      ...calls.map((call, index) => ({ content: [toolCall(call, index)], ...finish("tool-calls"), warnings: [] })),
      { content: [{ type: "text" as const, text: "done" }], ...finish("stop"), warnings: [] },
    ],
    doStream: [
      ...calls.map((call, index) => ({
        stream: convertArrayToReadableStream([toolCall(call, index), { type: "finish" as const, ...finish("tool-calls") }]),
      })),
      {
        stream: convertArrayToReadableStream([
          { type: "text-start" as const, id: "t" },
          { type: "text-delta" as const, id: "t", delta: "done" },
          { type: "text-end" as const, id: "t" },
          { type: "finish" as const, ...finish("stop") },
        ]),
      },
    ],
  });
}

/** What the model read in answer to each call, and the results that the program got. */
async function generate(calls: Call[], of = tools) {
  const model = scripted(calls);
  const result = await generateText({ model, tools: of, prompt: "go", stopWhen: isStepCount(calls.length + 1) });
  expect(result.text).toBe("done");
  return {
    read: outputsOf(model.doGenerateCalls.at(-1)!.prompt as ModelMessage[]),
    results: result.steps.flatMap((step) => step.content.filter(({ type }) => type === "tool-result" || type === "tool-error")),
  };
}

function outputsOf(prompt: ModelMessage[]) {
  return prompt.flatMap((message) =>
    message.role === "tool" ? message.content.flatMap((part) => (part.type === "tool-result" ? [part.output] : [])) : [],
  );
}

describe("generateText", () => {
  it("runs commands, writes and reads files, and runs code that keeps its state", async () => {
    const { read, results } = await generate([
      ["write_file", { path: "/workspace/a.txt", content: "hello" }],
      ["run_command", { command: "cat a.txt; exit 3" }],
      ["read_file", { path: "/workspace/a.txt" }],
      ["run_code", { code: "x = 41" }],
      ["run_code", { code: "x + 1" }],
    ]);
    expect(read[0]).toEqual({ type: "text", value: "wrote /workspace/a.txt" });
    expect(read[2]).toEqual({ type: "text", value: "hello" });
    expect(results[1]).toMatchObject({ type: "tool-result", output: { stdout: "hello", exit_code: 3 } });
    expect(results[4]).toMatchObject({ type: "tool-result", output: { text: "42", error: null } });
  });

  it("shows the model images as files, and gives the program the plain result", async () => {
    const { read, results } = await generate([["run_code", { code: showPng }]]);
    expect(read).toEqual([
      {
        type: "content",
        value: [
          { type: "text", text: expect.stringContaining("(image 1, attached)") },
          { type: "file", mediaType: "image/png", data: { type: "data", data: png } },
        ],
      },
    ]);
    expect(results[0]).toMatchObject({ output: { results: [{ data: { "image/png": png } }] } });
  });

  it("answers a failure as a tool error with code and remedy, and goes on", async () => {
    const { read, results } = await generate([
      ["read_file", { path: "/workspace/nope" }],
      ["run_command", { command: "echo on" }],
    ]);
    expect(results[0]).toMatchObject({ type: "tool-error", error: { code: "not_found" } });
    expect(read[0]).toMatchObject({ type: "error-text", value: expect.stringMatching(/^\[not_found\] .* \| remediation: /) });
    expect(results[1]).toMatchObject({ type: "tool-result", output: { stdout: "on\n" } });
  });

  it.each<[string, string, string | Record<string, unknown>, string]>([
    ["a missing argument", "write_file", { path: "/x" }, "write_file needs the argument `content`"],
    ["a wrong type", "run_command", { command: ["ls"] }, "`command` of run_command is not a string"],
    ["an unknown argument", "run_code", { code: "1", kernel: "r" }, "run_code knows no argument `kernel`; it takes code, language"],
    ["something that is no object", "read_file", '"/x"', "read_file takes one object with its arguments"],
  ])("refuses %s with invalid_input, as a tool error", async (_title, name, input, cause) => {
    const { read } = await generate([[name, input]]);
    expect(read).toEqual([
      {
        type: "error-text",
        value: `[invalid_input] the tool's input is not valid | cause: ${cause} | remediation: Correct the value that the cause names.`,
      },
    ]);
  });

  it("is aborted together with the running command, which is killed", async () => {
    const controller = new AbortController();
    const model = scripted([["run_command", { command: "touch /tmp/begun; exec sleep 5353" }]]);
    const work = generateText({ model, tools, prompt: "go", stopWhen: isStepCount(2), abortSignal: controller.signal });
    await until("the command runs", () => sandbox.files.exists("/tmp/begun"));
    controller.abort();
    await expect(work).rejects.toThrow();
    await expect.poll(async () => (await sandbox.exec("pgrep -f 'sleep 535[3]' || true")).stdout).toBe("");
  });
});

describe("streamText", () => {
  it("runs the tools in the middle of its stream", async () => {
    const model = scripted([["run_command", { command: "echo streamed" }]]);
    const result = streamText({ model, tools, prompt: "go", stopWhen: isStepCount(2) });
    const parts = [];
    for await (const part of result.fullStream) parts.push(part);
    expect(parts).toContainEqual(
      expect.objectContaining({ type: "tool-result", output: expect.objectContaining({ stdout: "streamed\n" }) }),
    );
    expect(await result.text).toBe("done");
  });
});

describe("mitosTools", () => {
  it("offers the four tools, over a child of a fork as well", async () => {
    expect(Object.keys(tools)).toEqual(["run_command", "read_file", "write_file", "run_code"]);
    await sandbox.files.write("/workspace/f", "inherited");
    const [child] = await sandbox.fork();
    expect((await generate([["read_file", { path: "/workspace/f" }]], await mitosTools(child!))).read).toEqual([
      { type: "text", value: "inherited" },
    ]);
    await child!.terminate();
  });

  it("offers fork when it is asked for; the children end with the subtree", async () => {
    const parent = await live.create();
    const forking = await mitosTools(parent, { forkTool: true });
    const { results } = await generate([["fork", { count: 2 }]], forking);
    const { children } = (results[0] as unknown as { output: { children: string[] } }).output;
    const { read } = await generate([["run_command", { command: "hostname", sandbox: children[1]! }]], forking);
    expect(read[0]).toMatchObject({ value: expect.stringContaining(children[1]!) });
    expect(await runningOf(live, children)).toEqual(children);
    await parent.terminate({ subtree: true });
    expect(await runningOf(live, children)).toEqual([]);
  });
});
