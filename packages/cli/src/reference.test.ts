import { readFileSync } from "node:fs";
import path from "node:path";
import type { Command } from "commander";
import { expect, it } from "vitest";
import { globalFlags } from "./context.ts";
import { exitCodes } from "./exit.ts";
import { buildProgram } from "./program.ts";

const page = readFileSync(path.resolve(import.meta.dirname, "../../../docs/cli.md"), "utf8");
const longFlags = (text: string) => [...text.matchAll(/--[a-z][a-z-]*/g)].map(([flag]) => flag);
const globals = globalFlags.flatMap(({ flags }) => longFlags(flags));

function leaves(command: Command, words: readonly string[] = ["mitos"]): { line: string; command: Command }[] {
  if (command.commands.length === 0) return [{ line: words.join(" "), command }];
  return command.commands.flatMap((child) => leaves(child, [...words, child.name()]));
}

/** The rows of the page's table of commands: the words of the command, and the long flags. */
function documented(): Record<string, string[]> {
  const rows = page.slice(page.indexOf("## Commands"), page.indexOf("| global flag |")).match(/^\| `mitos .*$/gm)!;
  const cells = rows.map((row) => row.split(/(?<!\\)\|/).map((cell) => cell.trim()));
  return Object.fromEntries(cells.map(([, line, flags]) => [line!.slice(1, -1).split(/ [<[]/)[0]!, longFlags(flags!).sort()]));
}

it("docs/cli.md lists exactly the commands that there are, with exactly their flags", async () => {
  const own = ({ options }: Command) => options.map(({ long }) => long!).filter((flag) => !globals.includes(flag));
  const wanted = leaves(await buildProgram("all")).map(({ line, command }) => [line, own(command).sort()]);
  expect(documented()).toEqual(Object.fromEntries(wanted));
});

it("docs/cli.md lists the global flags and the exit codes", () => {
  const rows = page.slice(page.indexOf("| global flag |"), page.indexOf("## Which words")).match(/^\| `.*?` /gm)!;
  expect(rows.flatMap(longFlags)).toEqual(globals);
  const codes = [...page.slice(page.indexOf("## Exit codes")).matchAll(/^\| (\d+) \|/gm)].map(([, code]) => Number(code));
  expect(codes).toEqual(Object.values(exitCodes));
});
