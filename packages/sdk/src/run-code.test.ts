import { expect, it } from "vitest";
import { parseRunCodeStream, Result } from "./run-code.ts";

it.each([
  ["text", "text/plain"],
  ["png", "image/png"],
  ["jpeg", "image/jpeg"],
  ["svg", "image/svg+xml"],
  ["pdf", "application/pdf"],
  ["html", "text/html"],
  ["markdown", "text/markdown"],
  ["latex", "text/latex"],
  ["json", "application/json"],
  ["chart", "application/vnd.vegalite.v5+json"],
  ["chart", "application/vnd.vega.v5+json"],
] as const)("a result's %s is its %s", (accessor, type) => {
  expect(new Result({ [type]: "value" })[accessor]).toBe("value");
  expect(new Result({ "application/x-other": "value" })[accessor]).toBeUndefined();
});

it("folds the lines of the older route, with a character that is cut between two of them", async () => {
  const lines = [
    { kind: "stdout", stdout: btoa("h\xc3") },
    { kind: "stdout", stdout: btoa("\xa4\n") },
    { kind: "stderr", stderr: btoa("warn\n") },
    { kind: "result", result: { data: { "text/html": "<b>" } } },
    { kind: "result", result: { text: "42", data: { "text/plain": "42", "image/png": "aGVsbG8=" } } },
    { kind: "exit", exit_code: 0 },
  ];
  const execution = await parseRunCodeStream(bodyOf(lines));
  expect(execution).toMatchObject({ text: "42", logs: { stdout: ["h", "ä\n"], stderr: ["warn\n"] }, error: null });
  expect(execution.results.map(({ isMainResult, html, png }) => [isMainResult, html ?? png])).toEqual([
    [false, "<b>"],
    [true, "aGVsbG8="],
  ]);
  await expect(parseRunCodeStream(bodyOf(lines.slice(0, -1)))).rejects.toMatchObject({ code: "run_code_stream_truncated" });
});

function bodyOf(lines: readonly object[]): ReadableStream<Uint8Array> {
  return new Blob(lines.map((line) => `${JSON.stringify(line)}\n`)).stream();
}
