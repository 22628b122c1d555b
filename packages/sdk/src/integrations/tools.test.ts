import { describe, expect, it } from "vitest";
import { NotFoundError } from "../errors.ts";
import type { OpsTarget } from "./mapping.ts";
import { modelTextCharsMax, type ToolDefinition, toolDefinitions, toolErrorText } from "./tools.ts";

const [runCommand, readFile, writeFile, runCode] = toolDefinitions as [ToolDefinition, ToolDefinition, ToolDefinition, ToolDefinition];

/** Keeps what it was asked. */
function fakeTarget(file = "") {
  const asked: unknown[] = [];
  const target: OpsTarget = {
    id: "sb-1",
    exec: async (command, options) => {
      asked.push([command, options]);
      return { exitCode: 0, stdout: "out", stderr: "", execTimeMs: 1 };
    },
    runCode: async (code, options) => {
      asked.push([code, options]);
      return { text: null, logs: { stdout: [], stderr: [] }, results: [], error: null };
    },
    files: {
      read: async (path) => {
        asked.push(path);
        return file;
      },
      write: async (path, content) => {
        asked.push([path, content]);
      },
      list: async () => [],
    },
  };
  return { asked, target };
}

describe("the table", () => {
  it("has four tools in this order, each refusing what it does not know", () => {
    expect(toolDefinitions.map(({ name, inputSchema }) => [name, inputSchema])).toMatchObject([
      [
        "run_command",
        {
          type: "object",
          properties: { command: { type: "string" }, timeout: { type: "integer", default: 30 } },
          required: ["command"],
          additionalProperties: false,
        },
      ],
      ["read_file", { type: "object", properties: { path: { type: "string" } }, required: ["path"], additionalProperties: false }],
      [
        "write_file",
        {
          type: "object",
          properties: { path: { type: "string" }, content: { type: "string" } },
          required: ["path", "content"],
          additionalProperties: false,
        },
      ],
      [
        "run_code",
        {
          type: "object",
          properties: { code: { type: "string" }, language: { type: "string", default: "python" } },
          required: ["code"],
          additionalProperties: false,
        },
      ],
    ]);
  });

  it("fills in defaults and passes the signal on", async () => {
    const { asked, target } = fakeTarget();
    const { signal } = new AbortController();
    await runCommand.call(target, { command: "ls" }, { signal });
    await runCode.call(target, { code: "1", language: "bash" });
    expect(asked).toEqual([
      ["ls", { timeoutSeconds: 30, signal }],
      ["1", { language: "bash", timeoutSeconds: 60, signal: undefined }],
    ]);
  });

  it.each<[string, ToolDefinition, unknown, string]>([
    ["nothing", readFile, undefined, "read_file takes one object with its arguments"],
    ["a list", readFile, ["/x"], "read_file takes one object with its arguments"],
    ["two missing arguments", writeFile, {}, "write_file needs the argument `path`, `content`"],
    ["null", readFile, { path: null }, "`path` of read_file is not a string"],
    ["a fraction", runCommand, { command: "ls", timeout: 0.5 }, "`timeout` of run_command is not a whole number"],
    ["too little", runCommand, { command: "ls", timeout: -1 }, "`timeout` of run_command is less than 1"],
    ["an inherited name", readFile, { path: "/x", toString: "y" }, "read_file knows no argument `toString`; it takes path"],
  ])("refuses %s before anything is sent", async (_title, tool, input, cause) => {
    const { asked, target } = fakeTarget();
    await expect(tool.call(target, input)).rejects.toMatchObject({ code: "invalid_input", status: 400, errorCause: cause });
    expect(asked).toEqual([]);
  });
});

describe("what a model gets of a result", () => {
  it("is the text of a file, JSON of everything else", async () => {
    const { target } = fakeTarget("content");
    expect(readFile.show(await readFile.call(target, { path: "/x" }))).toEqual({ text: "content", images: [] });
    expect(writeFile.show(await writeFile.call(target, { path: "/x", content: "y" })).text).toBe("wrote /x");
    expect(runCommand.show(await runCommand.call(target, { command: "x" })).text).toBe(
      '{"stdout":"out","stderr":"","exit_code":0,"exec_time_ms":1}',
    );
  });

  it("has a largest length, with both ends kept and a note of what is missing", () => {
    const { text } = readFile.show(`start${"x".repeat(3 * modelTextCharsMax)}end`);
    expect(text.length).toBe(modelTextCharsMax);
    expect(text).toMatch(/^startx+\n\[… \d+ characters left out: .*\]\nx+end$/);
    const [, left] = /(\d+) characters/.exec(text)!;
    const kept = text.replace(/\n\[.*\]\n/, "").length;
    expect(kept + Number(left)).toBe(3 * modelTextCharsMax + 8);
  });

  it("has images beside the text, up to eight, and no other binary content", () => {
    const results = [
      { data: { "text/plain": "a plot", "image/png": "AAAA" }, is_main_result: true },
      { data: { "application/pdf": "BBBB", "image/svg+xml": "<svg/>", "image/jpeg": "C".repeat(5_000_001) }, is_main_result: false },
      ...Array.from({ length: 9 }, () => ({ data: { "image/jpeg": "DDDD" }, is_main_result: false })),
    ];
    const { text, images } = runCode.show({ text: null, logs: { stdout: [], stderr: [] }, results, error: null });
    expect(images).toEqual([
      { mediaType: "image/png", base64: "AAAA" },
      ...Array.from({ length: 7 }, () => ({ mediaType: "image/jpeg", base64: "DDDD" })),
    ]);
    const shown = JSON.parse(text) as { results: { data: Record<string, string> }[] };
    expect(shown.results[0]!.data).toEqual({ "text/plain": "a plot", "image/png": "(image 1, attached)" });
    expect(shown.results[1]!.data).toEqual({
      "application/pdf": "(left out: write it to a file)",
      "image/svg+xml": "<svg/>",
      "image/jpeg": "(left out: write it to a file)",
    });
    expect(shown.results.at(-1)!.data).toEqual({ "image/jpeg": "(left out: write it to a file)" });
  });
});

describe("toolErrorText", () => {
  it("is code, cause and remedy of an error of ours, and the message of another, never its stack", () => {
    const ours = new NotFoundError("no such thing", { code: "not_found", cause: "/x", remediation: "Look again." });
    expect(toolErrorText(ours)).toBe("[not_found] no such thing | cause: /x | remediation: Look again.");
    expect(toolErrorText(new TypeError("boom"))).toBe("boom");
    expect(toolErrorText("text")).toBe("text");
  });
});
