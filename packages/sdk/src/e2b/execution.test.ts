import { expect, it } from "vitest";
import { Result as NativeResult } from "../run-code.ts";
import { Execution, ExecutionError, OutputMessage, Result } from "./execution.ts";

it("a result has each format under its name, and the rest under extra", () => {
  const data = {
    "text/plain": "t",
    "text/html": "h",
    "text/markdown": "m",
    "image/svg+xml": "s",
    "image/png": "p",
    "image/jpeg": "j",
    "application/pdf": "d",
    "text/latex": "l",
    "application/json": "{}",
    "application/javascript": "a",
    "application/x-own": "o",
  };
  const result = Result.of(new NativeResult(data, true));
  const named = { text: "t", html: "h", markdown: "m", svg: "s", png: "p", jpeg: "j", pdf: "d", latex: "l", json: "{}", javascript: "a" };
  expect(result).toMatchObject({ ...named, isMainResult: true });
  expect(result.formats()).toEqual(["html", "markdown", "svg", "png", "jpeg", "pdf", "latex", "json", "javascript", "application/x-own"]);
  expect(JSON.parse(JSON.stringify(result))).toEqual({ ...named, extra: { "application/x-own": "o" } });
  expect(result.raw).toMatchObject({ text: "t", png: "p" });
});

it("a result of text alone has no formats and no extra in its JSON", () => {
  const result = Result.of(new NativeResult({ "text/plain": "42" }, true));
  expect(result.formats()).toEqual([]);
  expect(JSON.parse(JSON.stringify(result))).toEqual({ text: "42" });
});

it.each(["{", "[]", "null", '{"mark":7}'])("a display that claims to be Vega-Lite and is %s has no chart", (text) => {
  const result = Result.of(new NativeResult({ "application/vnd.vegalite.v5+json": text }));
  expect(result.chart).toBeUndefined();
  expect(result.extra).toEqual({ "application/vnd.vegalite.v5+json": text });
});

it("an execution's text is that of the last expression, not of a display", () => {
  const shown = new NativeResult({ "text/plain": "shown" }, false);
  const main = new NativeResult({ "text/plain": "42" }, true);
  const execution = Execution.of({ text: "42", logs: { stdout: ["a"], stderr: [] }, results: [shown, main], error: null });
  expect(execution.text).toBe("42");
  expect(execution.error).toBeUndefined();
  expect(JSON.parse(JSON.stringify(execution))).toMatchObject({
    results: [{ text: "shown" }, { text: "42" }],
    logs: { stdout: ["a"], stderr: [] },
  });
  expect(new Execution().text).toBeUndefined();
});

it("an exception's traceback is one text", () => {
  expect(ExecutionError.of({ name: "E", value: "v", traceback: ["a", "b"] })).toEqual(new ExecutionError("E", "v", "a\nb"));
});

it("a message is its line when it is printed", () => {
  expect(`${new OutputMessage("line\n", 1, false)}`).toBe("line\n");
});
