import type { ExpectedOutput } from "./programs.ts";

/** Whether a program printed these lines, one below the other, somewhere in its output. */
export function isPrinted({ text, figuresVary }: ExpectedOutput, printed: string): boolean {
  const lines = withoutTrailingSpace(text)
    .split("\n")
    .map((line) => (line.trim() === "…" ? "(?:.*\\n)*?" : `${linePattern(line, figuresVary)}\\n`));
  return new RegExp(`\\n${lines.join("")}`).test(`\n${withoutTrailingSpace(printed)}\n`);
}

function linePattern(line: string, figuresVary: boolean): string {
  const anything = line.split("…");
  return anything.map((part) => (figuresVary ? withOtherFigures(part) : RegExp.escape(part))).join(".*");
}

/** Times, numbers, hexadecimal ids, and the spaces that a column of them needs. Below 10 ms a time is shown with a decimal. */
const figure = /(\b[0-9]+(?:\.[0-9])? ms\b|\b[0-9a-f]*[0-9][0-9a-f]*\b| +)/;

function otherFigure(part: string): string {
  if (part.startsWith(" ")) return " +";
  return part.endsWith(" ms") ? "[0-9]+(?:\\.[0-9])? ms" : "[0-9a-f]+";
}

function withOtherFigures(text: string): string {
  return text
    .split(figure)
    .map((part, index) => (index % 2 === 0 ? RegExp.escape(part) : otherFigure(part)))
    .join("");
}

function withoutTrailingSpace(text: string): string {
  return text.replace(/[ \t\r]+$/gm, "").trimEnd();
}
