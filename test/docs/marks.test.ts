import { expect, it } from "vitest";
import { parsePage } from "./markdown.ts";
import { isPrinted } from "./output.ts";
import { planOf } from "./programs.ts";

const plan = (...lines: string[]) => planOf(parsePage("page.md", lines.join("\n")));
const output = (text: string, figuresVary = false) => ({ line: 1, text, figuresVary });

it("each line of a program stands where it stands in its page", () => {
  const { programs } = plan("# Page", "", "```ts", "one();", "```", "", "1. Item", "", "   ```sh", "   echo two", "   ```");
  expect(programs.map(({ language, code }) => [language, code])).toEqual([
    ["ts", "\n\n\none();\n"],
    ["sh", `${"\n".repeat(9)}echo two\n`],
  ]);
});

it("a block that continues belongs to the program before it, in its language", () => {
  const { programs } = plan("```ts", "one();", "```", "```sh", "true", "```", "<!-- continues -->", "```ts", "two();", "```");
  expect(programs.map(({ code }) => code)).toEqual(["\none();\n\n\n\n\n\n\ntwo();\n", "\n\n\n\ntrue\n"]);
});

it("a block is left out for a reason only, and its TypeScript is checked all the same", () => {
  expect(plan("<!-- run: no, because it installs things -->", "```ts", "one();", "```")).toMatchObject({
    programs: [],
    checkedOnly: [{ code: "\n\none();\n" }],
    notRun: [{ line: 3, reason: "it installs things" }],
    mistakes: [],
  });
  expect(plan("<!-- run: no -->", "```ts", "one();", "```").mistakes).toEqual(["page.md:3: this mark means nothing here: run: no"]);
});

it("a page of declarations says so once", () => {
  expect(plan("<!-- blocks: not run, because they are declarations -->", "```ts", "function one(): void;", "```", "```", "```")).toEqual({
    programs: [],
    checkedOnly: [],
    notRun: [{ line: 1, reason: "they are declarations" }],
    mistakes: [],
  });
});

it.each([
  ["a language that is not run", ["```yaml", "a: b", "```"], /a block of `yaml` is not run/],
  ["no language", ["```", "text", "```"], /a block of no language is not run/],
  ["a mark that is misspelt", ["<!-- runs: server -->", "```sh", "true", "```"], /means nothing here: runs: server/],
  ["an output of nothing", ["<!-- output -->", "```text", "x", "```"], /no program above/],
  ["a continuation of nothing", ["<!-- continues -->", "```ts", "x", "```"], /no ts block above/],
])("%s is a mistake", (_, lines, mistake) => {
  expect(plan(...lines).mistakes).toEqual([expect.stringMatching(mistake)]);
});

it("an output belongs to the program above it, or to a command of its own", () => {
  const { programs } = plan(
    ...["```sh", "echo a", "```", "<!-- output -->", "```text", "a", "```"],
    ...["<!-- output of: mitos version, figures vary -->", "```text", "1.2", "```"],
  );
  expect(programs).toMatchObject([
    { code: "\necho a\n", outputs: [{ text: "a\n", figuresVary: false }] },
    { language: "sh", code: expect.stringMatching(/^\n+mitos version\n$/), outputs: [{ text: "1.2\n", figuresVary: true }] },
  ]);
});

it.each<[string, string, string, boolean, boolean]>([
  ["the same lines", "a\nb", "before\na\nb\nafter\n", false, true],
  ["lines in between", "a\nb", "a\nx\nb\n", false, false],
  ["a part of a line", "a", "ab\n", false, false],
  ["any text for …", "a … z", "a much more z\n", false, true],
  ["any lines for … alone", "a\n…\nz", "a\nb\nc\nz\n", false, true],
  ["other figures", "took 12 ms, id 0f", "took 9 ms, id a3\n", false, false],
  ["other figures where they vary", "took 12 ms, id 0f", "took    9 ms, id a3\n", true, true],
  ["a time of less than 10 ms where figures vary", "took 12 ms, id 0f", "took 9.6 ms, id a3\n", true, true],
  ["another number with a decimal where figures vary", "took 12 of", "took 9.6 of\n", true, false],
  ["other words where figures vary", "took 12 ms", "gave 12 ms\n", true, false],
])("an output is compared: %s", (_, shown, printed, figuresVary, equal) => {
  expect(isPrinted(output(shown, figuresVary), printed)).toBe(equal);
});
