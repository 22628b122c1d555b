import { Command, type Option, type ParseOptionsResult } from "commander";

/**
 * A command that takes a program and its arguments: of the flags on its line, those in front of the program's first word and those at the
 * very end are its own, and all between belong to the program. After `--` everything does.
 */
export class ProgramCommand extends Command {
  readonly #operandsBefore: number;

  /** @param operandsBefore - how many words stand in front of the program */
  constructor(name: string, operandsBefore: number) {
    super(name);
    this.#operandsBefore = operandsBefore;
  }

  override parseOptions(args: string[]): ParseOptionsResult {
    const { own, program } = separate(args, this.options, this.#operandsBefore);
    const parsed = super.parseOptions(own);
    return { operands: [...parsed.operands, ...program], unknown: parsed.unknown };
  }
}

interface Separated {
  readonly own: string[];
  readonly program: readonly string[];
}

/** @param operands - how many words that are no flags come before the program */
export function separate(args: readonly string[], options: readonly Option[], operands: number): Separated {
  let at = 0;
  for (; at < args.length; at++) {
    const word = args[at]!;
    if (word === "--") return { own: args.slice(0, at), program: args.slice(at + 1) };
    if (isFlag(word)) at += lengthOf(word, options) - 1;
    else if (operands-- === 0) break;
  }
  const own = args.slice(0, at);
  const program = args.slice(at);
  if (program.includes("--")) return { own, program };
  const end = program.findIndex((_, index) => index > 0 && areOwn(program.slice(index), options));
  return end < 0 ? { own, program } : { own: [...own, ...program.slice(end)], program: program.slice(0, end) };
}

/** Whether all of the words are long flags of ours with their values. Short ones are common among programs. */
function areOwn(words: readonly string[], options: readonly Option[]): boolean {
  for (let at = 0; at < words.length; at += lengthOf(words[at]!, options)) {
    const word = words[at]!;
    const option = optionOf(word, options);
    if (!word.startsWith("--") || !option) return false;
    if (option.required && !word.includes("=") && at + 1 === words.length) return false;
  }
  return true;
}

function isFlag(word: string): boolean {
  return word.length > 1 && word.startsWith("-");
}

/** How many words it takes on the line. */
function lengthOf(word: string, options: readonly Option[]): number {
  return optionOf(word, options)?.required && !word.includes("=") ? 2 : 1;
}

function optionOf(word: string, options: readonly Option[]): Option | undefined {
  const name = word.split("=", 1)[0];
  return options.find((option) => option.long === name || option.short === name);
}
