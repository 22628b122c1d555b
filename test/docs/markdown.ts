import { globSync, readFileSync } from "node:fs";
import path from "node:path";

export const root = path.resolve(import.meta.dirname, "../..");

/** A fenced block of a page. */
export interface Block {
  /** The first word after the fence; empty when there is none. */
  readonly language: string;
  readonly code: string;
  /** Of the first line of code in the page, from 1. */
  readonly line: number;
  /** What the comments directly above the block say, in their order. */
  readonly comments: readonly string[];
}

export interface Page {
  /** Relative to the checkout. */
  readonly file: string;
  /** Why no block of it is run: `<!-- blocks: not run, because … -->` anywhere in the page. */
  readonly notRunBecause: string | undefined;
  readonly blocks: readonly Block[];
}

/** Every page that a reader may follow: nobody has to add theirs to a list. */
export function findPages(): Page[] {
  const patterns = ["*.md", "llms.txt", "docs/**/*.md", "packages/*/README.md", "examples/**/*.md"];
  const files = globSync(patterns, { cwd: root, exclude: ["**/node_modules"] }).sort();
  return files.map((file) => parsePage(file, readFileSync(path.join(root, file), "utf8")));
}

export function parsePage(file: string, text: string): Page {
  return { file, notRunBecause: /^<!-- blocks: not run, because (.+) -->$/m.exec(text)?.[1], blocks: parseBlocks(file, text) };
}

const fence = /^( *)(`{3,}|~{3,})\s*(\S*)/;
const comment = /^ *<!-- *(.*?) *-->$/;

function parseBlocks(file: string, text: string): Block[] {
  const lines = text.split("\n");
  const blocks: Block[] = [];
  let comments: string[] = [];
  for (let at = 0; at < lines.length; at++) {
    const opening = fence.exec(lines[at]!);
    if (!opening) {
      const said = comment.exec(lines[at]!)?.[1];
      if (said !== undefined) comments.push(said);
      else if (lines[at]!.trim() !== "") comments = [];
      continue;
    }
    const [, indent, marker, language] = opening;
    const first = at + 1;
    while (++at < lines.length && lines[at]!.trim() !== marker);
    if (at === lines.length) throw new Error(`${file}:${first}: this block is never closed`);
    const code = lines.slice(first, at).map((line) => (line.startsWith(indent!) ? line.slice(indent!.length) : line.trimStart()));
    blocks.push({ language: language!, code: `${code.join("\n")}\n`, line: first + 1, comments });
    comments = [];
  }
  return blocks;
}
