import { AgentRunError } from "./errors.ts";

/**
 * A command line as words, by the quoting rules of POSIX shells: single quotes keep everything, in double quotes a backslash keeps `"`
 * and itself, outside it keeps any character. Variables, globs, comments and operators are plain text.
 *
 * @throws invalid_input for a quote or an escape that is not closed
 */
export function splitCommand(line: string): string[] {
  const words: string[] = [];
  let word: string | undefined;
  for (let at = 0; at < line.length; at++) {
    const character = line[at]!;
    if (/[ \t\r\n]/.test(character)) {
      if (word !== undefined) words.push(word);
      word = undefined;
    } else if (character === "'") {
      const end = line.indexOf("'", at + 1);
      if (end < 0) throw notClosed("a single quote");
      word = (word ?? "") + line.slice(at + 1, end);
      at = end;
    } else if (character === '"') {
      const quoted = /^(?:[^"\\]|\\[\s\S])*"/.exec(line.slice(at + 1))?.[0];
      if (quoted === undefined) throw notClosed("a double quote");
      word = (word ?? "") + quoted.slice(0, -1).replaceAll(/\\(["\\])/g, "$1");
      at += quoted.length;
    } else if (character === "\\") {
      if (++at === line.length) throw notClosed("a backslash at the end");
      word = (word ?? "") + line[at];
    } else {
      word = (word ?? "") + character;
    }
  }
  if (word !== undefined) words.push(word);
  return words;
}

function notClosed(what: string): AgentRunError {
  return new AgentRunError("the command line cannot be split into words", {
    code: "invalid_input",
    cause: `${what} is not closed`,
    remediation: "Close it, or pass the program and its arguments as a list.",
  });
}
