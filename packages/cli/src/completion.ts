import type { Command } from "commander";

export const shells = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof shells)[number];

/** One script for each shell, all from the same list: which words may follow which. */
export function completionScript(shell: Shell, program: Command): string {
  const contexts = collect(program, []);
  if (shell === "bash") return bash(contexts);
  return shell === "zsh" ? zsh(contexts) : fish(contexts);
}

interface Word {
  readonly text: string;
  readonly description: string;
}

/** A place on the line, after `path`. */
interface Context {
  readonly path: readonly string[];
  readonly commands: readonly Word[];
  readonly flags: readonly Word[];
  /** Flags that take a value, with what it may be; an empty list: anything, such as a file. */
  readonly values: ReadonlyMap<string, readonly string[]>;
}

function collect(command: Command, path: readonly string[]): Context[] {
  const help = { text: "--help", description: "show what it does" };
  const flags = command.options.filter((option) => !option.hidden);
  const own: Context = {
    path,
    commands: [
      ...command.commands.map((child) => ({ text: child.name(), description: child.description() })),
      ...command.registeredArguments.flatMap(({ argChoices }) => (argChoices ?? []).map((text) => ({ text, description: "" }))),
    ],
    flags: [...flags.map(({ long, description }) => ({ text: long!, description })), help],
    values: new Map(
      flags
        .filter(({ required }) => required)
        .flatMap(({ long, short, argChoices = [] }) => [long, short].flatMap((name) => (name ? [[name, argChoices] as const] : []))),
    ),
  };
  return [own, ...command.commands.flatMap((child) => collect(child, [...path, child.name()]))];
}

/** The same for bash and zsh: from the words before the cursor to what may stand at it. Prints one candidate a line. */
function candidates(contexts: readonly Context[]): string {
  const takesValue = contexts.map(({ path, values }) => `    ${quoteKey(path, [...values.keys()])}) return 0 ;;`);
  const choices = contexts.flatMap(({ path, values }) =>
    [...values].flatMap(([flag, words]) =>
      words.length > 0 ? [`    '${path.join(" ")}|${flag}') printf '%s\\n' ${words.join(" ")} ;;`] : [],
    ),
  );
  const children = contexts.filter(({ commands }) => commands.length > 0);
  return `# Whether a flag takes a value there.
__mitos_takes_value() {
  case "$1|$2" in
${takesValue.join("\n")}
  esac
  return 1
}

# What the value of a flag may be.
__mitos_values() {
  case "$1|$2" in
${choices.join("\n")}
  esac
}

__mitos_commands() {
  case "$1" in
${children.map(({ path, commands }) => `    '${path.join(" ")}') printf '%s\\n' ${commands.map(({ text }) => text).join(" ")} ;;`).join("\n")}
  esac
}

__mitos_flags() {
  case "$1" in
${contexts.map(({ path, flags }) => `    '${path.join(" ")}') printf '%s\\n' ${flags.map(({ text }) => text).join(" ")} ;;`).join("\n")}
  esac
}

# The words before the cursor are the arguments, the last one the word at it.
__mitos_candidates() {
  local place='' previous='' word
  while [ $# -gt 1 ]; do
    word=$1
    shift
    if [ -n "$previous" ] && __mitos_takes_value "$place" "$previous"; then
      previous=''
      continue
    fi
    previous=''
    case "$word" in
      -*) previous=$word ;;
      *) if __mitos_commands "$place" | grep -qxF -e "$word"; then place="\${place:+$place }$word"; fi ;;
    esac
  done
  if [ -n "$previous" ] && __mitos_takes_value "$place" "$previous"; then
    __mitos_values "$place" "$previous"
    return
  fi
  case "$1" in
    -*) __mitos_flags "$place" ;;
    *) __mitos_commands "$place" ;;
  esac
}
`;
}

function quoteKey(path: readonly string[], flags: readonly string[]): string {
  return flags.map((flag) => `'${path.join(" ")}|${flag}'`).join(" | ");
}

function bash(contexts: readonly Context[]): string {
  return `# bash completion of mitos: eval "$(mitos completion bash)"
${candidates(contexts)}
_mitos() {
  local IFS=$'\\n'
  COMPREPLY=($(compgen -W "$(__mitos_candidates "\${COMP_WORDS[@]:1:COMP_CWORD}")" -- "\${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _mitos mitos
`;
}

function zsh(contexts: readonly Context[]): string {
  return `#compdef mitos
# zsh completion of mitos: put it into a folder of $fpath as _mitos
${candidates(contexts)}
_mitos() {
  local -a found
  found=("\${(@f)$(__mitos_candidates "\${(@)words[2,CURRENT]}")}")
  if [[ -n "\${found[*]}" ]]; then compadd -- "\${found[@]}"; else _files; fi
}
if [[ "\${funcstack[1]}" == _mitos ]]; then _mitos "$@"; else compdef _mitos mitos; fi
`;
}

function fish(contexts: readonly Context[]): string {
  const lines = ["# fish completion of mitos: save it as ~/.config/fish/completions/mitos.fish", "complete -c mitos -f"];
  for (const { path, commands, flags, values } of contexts) {
    const here = fishCondition(path, contexts);
    for (const { text, description } of commands) lines.push(`complete -c mitos ${here} -a ${text} -d ${fishQuote(description)}`);
    for (const { text, description } of flags) {
      const words = values.get(text);
      const value = words === undefined ? "" : words.length > 0 ? ` -x -a ${fishQuote(words.join(" "))}` : " -r";
      lines.push(`complete -c mitos ${here} -l ${text.slice(2)}${value} -d ${fishQuote(description)}`);
    }
  }
  return `${lines.join("\n")}\n`;
}

/** All words of the path have been seen, and none of what could follow it. */
function fishCondition(path: readonly string[], contexts: readonly Context[]): string {
  const deeper = contexts.find((context) => context.path.join(" ") === path.join(" "))!.commands.map(({ text }) => text);
  const seen = path.map((word) => `__fish_seen_subcommand_from ${word}`);
  const notSeen = deeper.length > 0 ? [`not __fish_seen_subcommand_from ${deeper.join(" ")}`] : [];
  return `-n ${fishQuote([...seen, ...notSeen].join("; and "))}`;
}

function fishQuote(text: string): string {
  return `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
}
