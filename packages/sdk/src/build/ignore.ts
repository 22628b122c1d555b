/** Which paths of a context nobody asked for: the rules of `.dockerignore`. */
export interface IgnoreRules {
  /** @param path - relative to the context, with `/` */
  isIgnored(path: string): boolean;
  /** Whether something below an ignored folder may be wanted all the same. */
  readonly hasExceptions: boolean;
}

/** The lines of a `.dockerignore` that are patterns. */
export function patternsOf(file: string): string[] {
  return file
    .replace(/^\uFEFF/, "")
    .split(/\r?\n/)
    .filter((line) => !line.startsWith("#"))
    .map((line) => line.trim())
    .filter((line) => line !== "");
}

/**
 * A pattern fits a path when it fits it or a folder above it; of the patterns that fit, the last one counts, and with a `!` in front
 * it brings the path back. `**` stands for any number of folders, `*` and `?` for no `/`.
 */
export function ignoreRules(patterns: readonly string[]): IgnoreRules {
  const rules = patterns.map(toRule).filter((rule) => rule !== undefined);
  return {
    hasExceptions: rules.some(({ isException }) => isException),
    isIgnored(path) {
      const places = selfAndFolders(path);
      const last = rules.findLast(({ matches }) => places.some((place) => matches.test(place)));
      return last !== undefined && !last.isException;
    },
  };
}

interface Rule {
  readonly matches: RegExp;
  readonly isException: boolean;
}

function toRule(pattern: string): Rule | undefined {
  const isException = pattern.startsWith("!");
  const path = normalized(isException ? pattern.slice(1).trim() : pattern);
  return path === "" ? undefined : { matches: toRegExp(path), isException };
}

/** Without `.`, `..`, doubled and outer `/`, as Go's `filepath.Clean` leaves it. */
function normalized(pattern: string): string {
  const parts: string[] = [];
  for (const part of pattern.split("/")) {
    if (part === "..") parts.pop();
    else if (part !== "" && part !== ".") parts.push(part);
  }
  return parts.join("/");
}

function selfAndFolders(path: string): string[] {
  const parts = path.split("/");
  return parts.map((_, index) => parts.slice(0, index + 1).join("/"));
}

/** Whether a text names several things. */
export function isPattern(text: string): boolean {
  return /[*?[]/.test(text);
}

/** Of one pattern, for whole paths. A `[` that is never closed stands for itself. */
export function toRegExp(pattern: string): RegExp {
  let source = "";
  for (let at = 0; at < pattern.length; at++) {
    const rest = pattern.slice(at);
    const folders = /^\*\*\/+/.exec(rest)?.[0];
    const range = /^\[(\^?)((?:\\.|[^\]\\])+)\]/.exec(rest);
    if (folders) {
      source += "(?:.*/)?";
      at += folders.length - 1;
    } else if (rest.startsWith("**")) {
      source += ".*";
      at++;
    } else if (rest[0] === "*") source += "[^/]*";
    else if (rest[0] === "?") source += "[^/]";
    else if (range) {
      source += `(?!/)[${range[1]}${range[2]!.replaceAll(/[[\]&]/g, "\\$&")}]`;
      at += range[0].length - 1;
    } else if (rest[0] === "\\" && rest.length > 1) {
      source += escaped(rest[1]!);
      at++;
    } else source += escaped(rest[0]!);
  }
  return new RegExp(`^${source}$`, "su");
}

function escaped(character: string): string {
  return /[\\^$.*+?()[\]{}|/]/.test(character) ? `\\${character}` : character;
}
