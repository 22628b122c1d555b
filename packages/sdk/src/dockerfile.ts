import { AgentRunError } from "./errors.ts";
import type { DockerfileOptions, Template } from "./template.ts";

/** One instruction, its continued lines joined. */
interface Instruction {
  /** Of its first line, from 1. */
  readonly line: number;
  /** In capitals. */
  readonly name: string;
  /** What follows the name, as it was written. */
  readonly rest: string;
  /** The file's escape character. */
  readonly escapedBy: string;
}

/**
 * Adds what a Dockerfile says to an empty template: Docker's reference, without what needs more than one stage or a build context that is
 * not a folder. What would come out differently here is refused, and what has no effect here is told as a warning.
 */
export function parseDockerfile(template: Template, text: string, options: DockerfileOptions): Template {
  const reading = new Reading(template, options);
  for (const instruction of instructionsOf(text)) reading.take(instruction);
  return reading.finish();
}

/** The joined lines of a file, comments left out. */
function* instructionsOf(text: string): Generator<Instruction> {
  const lines = text.replace(/^\uFEFF/, "").split(/\r?\n/);
  const escapedBy = escapeOf(lines);
  const continued = escapedBy === "\\" ? /\\[ \t]*$/ : /`[ \t]*$/;
  for (let at = 0; at < lines.length; at++) {
    if (isBlankOrComment(lines[at]!)) continue;
    const line = at + 1;
    let joined = lines[at]!.trimStart();
    while (continued.test(joined)) {
      joined = joined.replace(continued, "");
      // As Docker has it: comments and empty lines in between are no part of it and do not end it.
      do at++;
      while (at < lines.length && isBlankOrComment(lines[at]!));
      if (at >= lines.length) break;
      joined += lines[at]!;
    }
    const [, name = "", rest = ""] = /^(\S+)\s*([\s\S]*?)\s*$/.exec(joined)!;
    yield { line, name: name.toUpperCase(), rest, escapedBy };
  }
}

function isBlankOrComment(line: string): boolean {
  return /^\s*(#|$)/.test(line);
}

/** Parser directives are the first lines of a file, before anything else. */
function escapeOf(lines: readonly string[]): string {
  for (const line of lines) {
    const [, name, value] = /^\s*#\s*([a-zA-Z]+)\s*=\s*(\S+)\s*$/.exec(line) ?? [];
    if (name === undefined) return "\\";
    if (name.toLowerCase() !== "escape") continue;
    if (value === "`" || value === "\\") return value;
    throw refused({ line: lines.indexOf(line) + 1, name: "# escape" }, `${value} is not an escape character`, "Use \\ or `.");
  }
  return "\\";
}

const withoutEffect: Readonly<Record<string, string>> = {
  EXPOSE: "every port of a sandbox can be reached from outside through previews and tunnels",
  LABEL: "templates have no labels",
  VOLUME: "all folders of a sandbox are its own",
  STOPSIGNAL: "sandboxes are ended as a whole",
  HEALTHCHECK: "a template says with a ready check when it may be saved",
  MAINTAINER: "templates have no labels",
  ONBUILD: "templates that are built from this one do not run it",
};

const heredoc = /(?:^|\s)\d*<<-?(["']?)[A-Za-z_]\w*\1(?=\s|$)/;
const archive = /\.(tar|tgz|tbz2?|txz|tzst|tar\.\w+)$/i;

class Reading {
  readonly #template: Template;
  readonly #options: DockerfileOptions;
  /** What ARG and ENV have said so far: what `$NAME` stands for. */
  readonly #args = new Map<string, string>();
  readonly #env = new Map<string, string>();
  /** Whose value the server alone can know: it depends on the image's. */
  readonly #serversOwn = new Set<string>();
  readonly #askedArgs = new Set<string>();
  /** Of ARGs in front of FROM: for FROM, and for an ARG without a default after it. */
  #globalArgs: ReadonlyMap<string, string> = new Map();
  #hasImage = false;
  #shell: readonly string[] | undefined;
  #entrypoint: readonly string[] = [];
  #entrypointIsLine = false;
  #command: readonly string[] = [];

  constructor(template: Template, options: DockerfileOptions) {
    this.#template = template;
    this.#options = options;
  }

  take(instruction: Instruction): void {
    const { name, rest } = instruction;
    if (!this.#hasImage && name !== "FROM" && name !== "ARG") {
      throw refused(instruction, "it stands in front of FROM", "Begin with FROM and the image to build from; only ARG may come before it.");
    }
    if (Object.hasOwn(withoutEffect, name)) this.#warn(instruction, withoutEffect[name]!);
    else if (!Object.hasOwn(this.#instructions, name))
      throw refused(instruction, "there is no such instruction", "Check how it is written.");
    else if (rest === "") throw refused(instruction, "nothing follows it", "Give it what it needs, or remove the line.");
    else this.#instructions[name]!(instruction);
  }

  readonly #instructions: Readonly<Record<string, (instruction: Instruction) => void>> = {
    FROM: (instruction) => this.#from(instruction),
    ARG: (instruction) => this.#arg(instruction),
    ENV: (instruction) => this.#setEnv(instruction),
    RUN: (instruction) => this.#run(instruction),
    WORKDIR: (instruction) => this.#template.workdir(this.#expand(instruction, unquoted(instruction.rest))),
    USER: (instruction) => this.#template.user(this.#expand(instruction, unquoted(instruction.rest))),
    COPY: (instruction) => this.#copy(instruction),
    ADD: (instruction) => this.#copy(instruction),
    SHELL: (instruction) => this.#setShell(instruction),
    CMD: ({ rest }) => {
      this.#command = this.#startWords(rest);
    },
    ENTRYPOINT: ({ rest }) => {
      this.#entrypoint = this.#startWords(rest);
      this.#entrypointIsLine = !jsonWords(rest);
    },
  };

  finish(): Template {
    if (!this.#hasImage) throw refused({ line: 1, name: "FROM" }, "the file has no FROM", "Begin with FROM and the image to build from.");
    for (const name of Object.keys(this.#options.buildArgs ?? {})) {
      if (!this.#askedArgs.has(name) && !predefinedArgs.has(name)) this.#options.onWarning?.(`build argument ${name}: no ARG asks for it`);
    }
    // As Docker has it: an entrypoint that is a line for the shell takes no arguments.
    const start = [...this.#entrypoint, ...(this.#entrypointIsLine ? [] : this.#command)];
    return start.length > 0 ? this.#template.setStart(start) : this.#template;
  }

  #warn({ line, name }: Instruction, why: string): void {
    this.#options.onWarning?.(`line ${line}: ${name} has no effect: ${why}`);
  }

  #from(instruction: Instruction): void {
    if (this.#hasImage) {
      const remedy =
        "Build with one stage: install and remove in the same RUN, or build the earlier stage outside and COPY its result from the context.";
      throw refused(instruction, "it begins a second stage, and builds here have one", remedy);
    }
    const words = instruction.rest.split(/\s+/);
    while (words[0]?.startsWith("--")) {
      const flag = words.shift()!;
      if (!flag.startsWith("--platform=")) throw refused(instruction, `${flag} is not a flag of it`, "Remove the flag.");
      this.#warn(instruction, `${flag}: images are taken for the server's own processor`);
    }
    const [image = "", as, stage, ...more] = words;
    if (more.length > 0 || (as !== undefined && (as.toUpperCase() !== "AS" || stage === undefined))) {
      throw refused(instruction, "it is not `FROM image` or `FROM image AS name`", "Write it so.");
    }
    const reference = this.#expand(instruction, image);
    if (reference === "") throw refused(instruction, `${image} is empty`, "Give the ARG a default, or a value with --build-arg.");
    if (reference === "scratch")
      throw refused(instruction, "scratch has no files, and a sandbox needs a shell", "Begin with busybox:musl.");
    this.#template.fromImage(reference);
    this.#hasImage = true;
    this.#globalArgs = new Map(this.#args);
    this.#args.clear();
  }

  #arg(instruction: Instruction): void {
    for (const { text } of wordsOf(instruction)) {
      const [, name, fallback] = /^([A-Za-z_]\w*)(?:=([\s\S]*))?$/.exec(text) ?? [];
      if (name === undefined) throw refused(instruction, `${text} is not NAME or NAME=default`, "Write it so.");
      this.#askedArgs.add(name);
      const given = this.#options.buildArgs?.[name];
      const value = given ?? (fallback === undefined ? this.#globalArgs.get(name) : this.#expand(instruction, unquoted(fallback)));
      if (value !== undefined) this.#args.set(name, value);
    }
  }

  /** `K=V` pairs, or `K V` with the rest of the line as the value. */
  #setEnv(instruction: Instruction): void {
    const old = /^([^\s=]+)\s+([\s\S]+)$/.exec(instruction.rest);
    const pairs = old
      ? [[old[1]!, old[2]!] as const]
      : wordsOf(instruction).map(({ text }) => {
          const at = text.indexOf("=");
          if (at > 0) return [text.slice(0, at), text.slice(at + 1)] as const;
          throw refused(instruction, `${text} is not NAME=value`, "Write ENV NAME=value, or quote the value.");
        });
    // All values see the variables as they were before the instruction.
    const values = pairs.map(([name, written]) => ({ name, ...this.#expandForServer(instruction, unquoted(written)) }));
    for (const { name, value, isServers } of values) {
      this.#template.env(name, value, { expand: isServers });
      this.#env.set(name, value);
      if (isServers) this.#serversOwn.add(name);
      else this.#serversOwn.delete(name);
    }
  }

  #setShell(instruction: Instruction): void {
    this.#shell = jsonWords(instruction.rest);
    if (!this.#shell?.length) throw refused(instruction, "it is not a JSON list of words", 'Write it as SHELL ["/bin/bash", "-c"].');
  }

  #run(instruction: Instruction): void {
    refuseHeredoc(instruction);
    const { flags, rest } = flagsOf(instruction);
    for (const flag of flags) this.#runFlag(instruction, flag);
    const exec = jsonWords(rest);
    const command = exec ? quoteAll(exec) : this.#shell ? quoteAll([...this.#shell, rest]) : rest;
    // As Docker has it: ARGs are variables of the steps, and an ENV of that name wins.
    const args = [...this.#args].filter(([name]) => !this.#env.has(name)).map(([name, value]) => `${name}=${quote(value)}`);
    this.#template.run(args.length > 0 ? `export ${args.join(" ")}; ${command}` : command);
  }

  #runFlag(instruction: Instruction, flag: string): void {
    if (flag === "--network=default" || flag === "--security=sandbox") return;
    if (/^--mount=(?=.*\btype=(cache|tmpfs)\b)/.test(flag)) {
      this.#warn(instruction, `${flag}: what is written there becomes a part of the template`);
      return;
    }
    const remedy = flag.startsWith("--mount=")
      ? "COPY the files that it needs from the context; secrets are given to sandboxes, not to builds."
      : "Remove the flag; what builds may reach is said by the template's network rules.";
    throw refused(instruction, `${flag} is not supported`, remedy);
  }

  #copy(instruction: Instruction): void {
    refuseHeredoc(instruction);
    const { flags, rest } = flagsOf(instruction);
    for (const flag of flags) copyFlag(instruction, flag);
    const words = (jsonWords(rest) ?? wordsOf({ ...instruction, rest }).map(({ text }) => unquoted(text))).map((word) =>
      this.#expand(instruction, word),
    );
    const dest = words.pop();
    if (dest === undefined || words.length === 0) {
      throw refused(instruction, "it names no source and target", `Write ${instruction.name} source target.`);
    }
    if (words.length > 1 && !dest.endsWith("/")) {
      throw refused(instruction, `${dest} gets several sources and does not end in /`, `Write ${dest}/ for a folder.`);
    }
    for (const source of words) {
      if (/^(https?|git|ssh):\/\/|^git@/.test(source)) {
        throw refused(instruction, `${source} is not a file of the context`, "Download it in a RUN, with the network rules that it needs.");
      }
      if (instruction.name === "ADD" && archive.test(source)) {
        const remedy = "COPY it and unpack it in a RUN (`tar -xf`), or write COPY if it is to stay packed.";
        throw refused(instruction, `${source} would be unpacked by Docker, which is not supported`, remedy);
      }
      this.#template.copy(source, dest);
    }
  }

  /** A list is taken as it is. A line of plain words is those words; anything that only a shell understands is given to one. */
  #startWords(rest: string): readonly string[] {
    const exec = jsonWords(rest);
    if (exec) return exec;
    const isPlain = /^[\w@%+=:,./ \t-]+$/.test(rest) && !/^\s*\w+=/.test(rest);
    return isPlain ? rest.split(/\s+/) : [...(this.#shell ?? ["/bin/sh", "-c"]), rest];
  }

  /** @throws where only the server could know the value */
  #expand(instruction: Instruction, text: string): string {
    const { value, isServers } = this.#expandForServer(instruction, text);
    if (!isServers) return value;
    const remedy =
      "Write it out. Variables of ARG and ENV instructions of this file can be used, and those of the image only in ENV and RUN.";
    throw refused(instruction, `${text} needs a variable that the file does not set`, remedy);
  }

  /** `$NAME`, `${NAME}`, `${NAME:-default}` and `${NAME:+other}`, by what ENV and ARG say; what they do not say may be the image's. */
  #expandForServer(instruction: Instruction, text: string): { value: string; isServers: boolean } {
    let isServers = false;
    const lookUp = (name: string): string | undefined => {
      if (this.#serversOwn.has(name)) return undefined;
      return this.#env.get(name) ?? this.#args.get(name) ?? predefined(this.#options, name);
    };
    const pattern = /\\([\s\S])|\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:(:?[-+])([^}]*))?\}|(\{[^}]*\}?))/g;
    const value = text.replaceAll(pattern, (whole, escaped, bare, braced, operator, alternative, strange) => {
      if (escaped !== undefined) return escaped === "$" ? "$" : whole;
      if (strange !== undefined) {
        throw refused(
          instruction,
          `${whole} is a substitution that is not supported`,
          // biome-ignore lint/suspicious/noTemplateCurlyInString: as Dockerfiles write it
          "Use $NAME, ${NAME}, ${NAME:-default} or ${NAME:+other}.",
        );
      }
      const name: string = bare ?? braced;
      const known = lookUp(name);
      const isSet = operator?.startsWith(":") ? Boolean(known) : known !== undefined;
      if (operator?.endsWith("-")) return isSet ? known! : alternative;
      if (operator?.endsWith("+")) return isSet ? alternative : "";
      if (known !== undefined) return known;
      isServers = this.#hasImage;
      return this.#hasImage ? `\${${name}}` : "";
    });
    return { value, isServers };
  }
}

/** Docker knows these without an ARG. */
const predefinedArgs = new Set(
  ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"].flatMap((name) => [name, name.toLowerCase()]),
);

function predefined({ buildArgs }: DockerfileOptions, name: string): string | undefined {
  return predefinedArgs.has(name) ? buildArgs?.[name] : undefined;
}

function copyFlag(instruction: Instruction, flag: string): void {
  // Says only how the layer is stored.
  if (/^--link(=true|=false)?$/.test(flag)) return;
  const [name] = flag.split("=");
  const remedies: Readonly<Record<string, string>> = {
    "--from": "Builds have one stage: COPY from the context.",
    "--chown": "Files belong to root: add RUN chown after it.",
    "--chmod": "Files keep their execute bit: add RUN chmod after it.",
    "--exclude": "List what is left out in .dockerignore.",
    "--parents": "Copy the folder, or name the target with its folders.",
    "--checksum": "Compare it in a RUN (`sha256sum -c`).",
  };
  throw refused(instruction, `${flag} is not supported`, remedies[name!] ?? "Remove the flag.");
}

function refuseHeredoc(instruction: Instruction): void {
  if (!heredoc.test(instruction.rest)) return;
  const remedy = "Put the lines into a file of the context and COPY it, or join them with && and a \\ at the end of each line.";
  throw refused(instruction, "here-documents (<<) are not supported", remedy);
}

/** The flags at the beginning, and what comes after them. */
function flagsOf({ rest }: Instruction): { flags: string[]; rest: string } {
  const flags: string[] = [];
  let left = rest;
  for (let match = /^--\S+\s*/.exec(left); match; match = /^--\S+\s*/.exec(left)) {
    flags.push(match[0].trim());
    left = left.slice(match[0].length);
  }
  return { flags, rest: left };
}

/** `["a", "b"]`, or undefined: then it is a line for the shell, as it is to Docker. */
function jsonWords(text: string): string[] | undefined {
  if (!text.startsWith("[")) return undefined;
  try {
    const words: unknown = JSON.parse(text);
    return Array.isArray(words) && words.every((word) => typeof word === "string") ? words : undefined;
  } catch {
    return undefined;
  }
}

/** The words of a line, divided by white space outside quotes; the quotes are still there. */
function wordsOf(instruction: Instruction): { text: string }[] {
  const by = instruction.escapedBy === "\\" ? "\\\\" : "`";
  // No character fits two of these: one that is never closed must not be tried in every way.
  const words = new RegExp(`(?:${by}[\\s\\S]|"(?:${by}[\\s\\S]|[^"${by}])*"|'[^']*'|[^\\s"'${by}])+`, "g");
  const found = [...instruction.rest.matchAll(words)].map(([text]) => ({ text }));
  const left = instruction.rest.replaceAll(words, "").trim();
  if (left !== "") throw refused(instruction, "a quote is not closed", "Close it.");
  return found;
}

/** Without its quotes. What single quotes kept from being a variable still is none: its `$` is escaped. */
function unquoted(text: string): string {
  return text.replaceAll(/'([^']*)'|"((?:\\[\s\S]|[^"\\])*)"|\\([^$])/g, (_, single, double, escaped) => {
    if (single !== undefined) return single.replaceAll("$", "\\$");
    if (double !== undefined) return double.replaceAll(/\\(["\\])/g, "$1");
    return escaped;
  });
}

function quoteAll(words: readonly string[]): string {
  return words.map(quote).join(" ");
}

/** One word for the shell. */
function quote(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

function refused({ line, name }: Pick<Instruction, "line" | "name">, why: string, remedy: string): AgentRunError {
  return new AgentRunError("the Dockerfile cannot be built", {
    code: "build_failed",
    cause: `line ${line}: ${name}: ${why}`,
    remediation: remedy,
    context: { line, instruction: name },
  });
}
