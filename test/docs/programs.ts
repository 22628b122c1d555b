import type { Block, Page } from "./markdown.ts";

export type Language = "ts" | "python" | "sh";

/** One or more blocks of a page that are run as one, in one language. */
export interface Program {
  readonly language: Language;
  readonly line: number;
  /** Each line stands where it stands in the page, so that messages name the page's lines. */
  code: string;
  /** Runs on until the page's end, and is the server of what follows. */
  readonly isServer: boolean;
  /** What it must print, from each `output` block. */
  readonly outputs: ExpectedOutput[];
}

export interface ExpectedOutput {
  readonly line: number;
  readonly text: string;
  /** Numbers and hexadecimal ids may be others, and columns wider. */
  readonly figuresVary: boolean;
}

export interface Plan {
  readonly programs: readonly Program[];
  /** TypeScript that is checked and not run. */
  readonly checkedOnly: readonly Program[];
  readonly notRun: readonly { readonly line: number; readonly reason: string }[];
  /** What is wrong with the page's marks. */
  readonly mistakes: readonly string[];
}

const languages: Readonly<Record<string, Language>> = { ts: "ts", typescript: "ts", python: "python", py: "python", sh: "sh", bash: "sh" };

/**
 * What a page's blocks mean.
 *
 * | comment above a block | means |
 * | --- | --- |
 * | `run: no, because …` | it is not run; TypeScript is checked all the same |
 * | `run: server` | it runs on until the page's end, or the next such block, and is the server of what follows |
 * | `continues` | it belongs to the program of the last block of its language |
 * | `output`, `output, figures vary` | it is what the program before it prints: `…` stands for any text, alone on a line for any lines |
 * | `output of: <command>`, `…, figures vary` | it is what this command prints |
 *
 * `blocks: not run, because …` anywhere in a page is for all of it.
 */
export function planOf(page: Page): Plan {
  if (page.notRunBecause) return { programs: [], checkedOnly: [], notRun: [{ line: 1, reason: page.notRunBecause }], mistakes: [] };
  const programs: Program[] = [];
  const checkedOnly: Program[] = [];
  const notRun: Plan["notRun"][number][] = [];
  const mistakes: string[] = [];
  for (const block of page.blocks) {
    const mark = markOf(block);
    const language = languages[block.language];
    switch (mark.kind) {
      case "mistake":
        mistakes.push(`${page.file}:${block.line}: ${mark.text}`);
        break;
      case "no":
        notRun.push({ line: block.line, reason: mark.reason });
        if (language === "ts") checkedOnly.push(program("ts", block));
        break;
      case "output": {
        const expected = { line: block.line, text: block.code, figuresVary: mark.figuresVary };
        if (mark.command !== undefined) programs.push({ ...program("sh", { ...block, code: `${mark.command}\n` }), outputs: [expected] });
        else if (programs.length > 0) programs.at(-1)!.outputs.push(expected);
        else mistakes.push(`${page.file}:${block.line}: there is no program above this output`);
        break;
      }
      case "continues": {
        const before = programs.findLast((candidate) => candidate.language === language && !candidate.isServer);
        if (before) before.code += below(before.code, block);
        else mistakes.push(`${page.file}:${block.line}: there is no ${block.language} block above to be continued`);
        break;
      }
      case "run":
        programs.push({ ...program(language!, block), isServer: mark.isServer });
    }
  }
  return { programs, checkedOnly, notRun, mistakes };
}

type Mark =
  | { readonly kind: "run"; readonly isServer: boolean }
  | { readonly kind: "continues" }
  | { readonly kind: "no"; readonly reason: string }
  | { readonly kind: "output"; readonly command: string | undefined; readonly figuresVary: boolean }
  | { readonly kind: "mistake"; readonly text: string };

function markOf({ comments, language }: Block): Mark {
  if (comments.length > 1) return { kind: "mistake", text: `more than one mark: ${comments.join(" | ")}` };
  const [said] = comments;
  if (said !== undefined) {
    const reason = /^run: no, because (.{8,})$/.exec(said)?.[1];
    if (reason) return { kind: "no", reason };
    const output = /^output(?: of: (.+?))?(, figures vary)?$/.exec(said);
    if (output) return { kind: "output", command: output[1], figuresVary: output[2] !== undefined };
    if (said === "continues" && languages[language]) return { kind: "continues" };
    if (said === "run: server" && languages[language] === "sh") return { kind: "run", isServer: true };
    return { kind: "mistake", text: `this mark means nothing here: ${said}` };
  }
  if (languages[language]) return { kind: "run", isServer: false };
  const remedy = "mark it `<!-- output -->` or `<!-- run: no, because … -->`";
  return { kind: "mistake", text: `a block of ${language ? `\`${language}\`` : "no language"} is not run; ${remedy}` };
}

function program(language: Language, block: Block): Program {
  return { language, line: block.line, code: below("", block), isServer: false, outputs: [] };
}

/** The block's code, moved down to the line at which it stands in its page. */
function below(before: string, { code, line }: Block): string {
  return "\n".repeat(Math.max(0, line - before.split("\n").length)) + code;
}
