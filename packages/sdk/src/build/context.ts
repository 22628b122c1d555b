import { constants, type Stats } from "node:fs";
import { lstat, open, readdir, readFile, readlink, realpath } from "node:fs/promises";
import path from "node:path";
import { AgentRunError } from "../errors.ts";
import type { BuildStep } from "../template.ts";
import { type IgnoreRules, ignoreRules, isPattern, patternsOf, toRegExp } from "./ignore.ts";
import type { TarEntry } from "./tar.ts";

/** What one copy step sends. */
export interface CopyFiles {
  /**
   * A folder when it ends in `/`: then names are relative to it. Otherwise one file is sent, under its own name, and the server looks: into
   * a folder that is there it goes, else it becomes that file.
   */
  readonly dest: string;
  /** In the order of their bytes, each folder before what is in it. */
  readonly entries: readonly TarEntry[];
}

/** Where the files of copy steps are, and which of them nobody asked for. */
export interface ContextOptions {
  /** Default: `.dockerignore` in the folder, where there is one. */
  readonly ignoreFile?: string | undefined;
  /** Patterns after those of the file. */
  readonly ignore?: readonly string[] | undefined;
  readonly onWarning?: ((text: string) => void) | undefined;
}

const nothingFits = ["nothing in the context fits it", "Check the path, and what .dockerignore leaves out."] as const;

type CopyStep = Extract<BuildStep, { type: "copy" }>;

/** A folder of this machine, and nothing outside it: a link is copied as a link, and a source that leads out is refused. */
export class Context {
  readonly #root: string;
  readonly #rules: IgnoreRules;
  readonly #onWarning: (text: string) => void;

  private constructor(root: string, rules: IgnoreRules, onWarning: (text: string) => void) {
    this.#root = root;
    this.#rules = rules;
    this.#onWarning = onWarning;
  }

  /** @throws invalid_input when it is no folder */
  static async open(folder: string, { ignoreFile, ignore = [], onWarning = () => {} }: ContextOptions): Promise<Context> {
    const root = await realpath(folder).catch((error: Error) => {
      throw wrongContext(`${folder}: ${error.message}`);
    });
    if (!(await lstat(root)).isDirectory()) throw wrongContext(`${folder} is not a folder`);
    const patterns = patternsOf(await ignoreText(root, ignoreFile));
    return new Context(root, ignoreRules([...patterns, ...ignore]), onWarning);
  }

  /**
   * What a copy step copies.
   *
   * @throws build_failed when nothing of the context fits, or it leads out of it
   */
  async files({ source, dest }: CopyStep, index: number): Promise<CopyFiles> {
    const fail = (why: string, remedy: string) => copyFailed(index, source, why, remedy);
    const inside = path.posix.normalize(`/${source}`).slice(1).replace(/\/$/, "");
    if (source.split("/").includes("..") && path.posix.normalize(source).startsWith("..")) {
      throw fail("it leads out of the context", "Copy from the context's own folder, or name an outer folder as the context.");
    }
    const found = isPattern(inside) ? await this.#matching(inside) : [inside];
    const entries = new Map<string, TarEntry>();
    let isFolder = endsAsFolder(dest) || found.length > 1;
    for (const each of found) {
      const { relative, info } = await this.#resolved(each, fail);
      if (!info.isDirectory()) await this.#add(entries, relative, path.posix.basename(each), info);
      else {
        await this.#addFolder(entries, relative, "");
        isFolder = true;
      }
    }
    if (found.length === 0 || (entries.size === 0 && found.every((each) => this.#isIgnored(each)))) throw fail(...nothingFits);
    return { dest: isFolder && !dest.endsWith("/") ? `${dest}/` : dest, entries: [...entries.values()].sort(byBytes) };
  }

  async #matching(pattern: string): Promise<string[]> {
    const all = new Map<string, TarEntry>();
    await this.#addFolder(all, "", "");
    const matches = toRegExp(pattern);
    return [...all.keys()].filter((name) => matches.test(name)).sort();
  }

  /** A source that is a link is what it leads to, as to Docker; folders on the way may be links too. */
  async #resolved(source: string, fail: (why: string, remedy: string) => AgentRunError): Promise<{ relative: string; info: Stats }> {
    const place = await realpath(path.join(this.#root, source)).catch(() => undefined);
    if (place === undefined) throw fail("it does not exist in the context", "Check the path; it is relative to the context.");
    const relative = path.relative(this.#root, place);
    if (relative === ".." || relative.startsWith(`..${path.sep}`) || path.isAbsolute(relative)) {
      throw fail("a link leads out of the context", "Put a copy in the place of the link.");
    }
    const name = relative.replaceAll(path.sep, "/");
    const info = await lstat(place);
    if (this.#isIgnored(name) && !(info.isDirectory() && this.#rules.hasExceptions)) throw fail(...nothingFits);
    return { relative: name, info };
  }

  #isIgnored(relative: string): boolean {
    return relative !== "" && this.#rules.isIgnored(relative);
  }

  /** What is in a folder, below `as`. Folders come along when they are wanted themselves, or for the sake of what is in them. */
  async #addFolder(entries: Map<string, TarEntry>, folder: string, as: string): Promise<void> {
    for (const name of await readdir(path.join(this.#root, folder))) {
      if (name.includes("\uFFFD")) this.#onWarning(`${path.posix.join(folder, name)} may have a name that is not UTF-8`);
      const relative = path.posix.join(folder, name);
      const target = path.posix.join(as, name);
      const info = await lstat(path.join(this.#root, relative));
      const isIgnored = this.#rules.isIgnored(relative);
      if (!info.isDirectory()) {
        if (!isIgnored) await this.#add(entries, relative, target, info);
      } else if (!isIgnored || this.#rules.hasExceptions) {
        const before = entries.size;
        await this.#addFolder(entries, relative, target);
        if (!isIgnored || entries.size > before) entries.set(target, { kind: "folder", path: target });
      }
    }
  }

  async #add(entries: Map<string, TarEntry>, relative: string, as: string, info: Stats): Promise<void> {
    const place = path.join(this.#root, relative);
    if (info.isSymbolicLink()) entries.set(as, { kind: "link", path: as, target: await readlink(place) });
    else if (info.isFile()) {
      const isExecutable = (info.mode & constants.S_IXUSR) !== 0;
      entries.set(as, { kind: "file", path: as, isExecutable, size: info.size, content: () => contentOf(place, relative, info.size) });
    } else this.#onWarning(`${relative} is left out: it is neither a file nor a folder nor a link`);
  }
}

/** Exactly as long as it was when it was found, or an error: the digest and what is sent must be of one content. */
async function* contentOf(place: string, relative: string, size: number): AsyncGenerator<Uint8Array, void, undefined> {
  // Not followed if it has become a link meanwhile.
  const file = await open(place, constants.O_RDONLY | constants.O_NOFOLLOW).catch((error: Error) => {
    throw unreadable(relative, error.message);
  });
  let left = size;
  try {
    // One byte more than there should be tells whether it has grown.
    while (left >= 0) {
      const chunk = Buffer.allocUnsafe(Math.min(left + 1, chunkBytesMax));
      const { bytesRead } = await file.read(chunk, 0, chunk.length);
      if (bytesRead === 0) break;
      left -= bytesRead;
      if (left >= 0) yield chunk.subarray(0, bytesRead);
    }
  } finally {
    await file.close();
  }
  if (left !== 0) throw unreadable(relative, "it changed while it was read");
}

const chunkBytesMax = 256 * 1024;

async function ignoreText(root: string, ignoreFile: string | undefined): Promise<string> {
  try {
    return await readFile(ignoreFile ?? path.join(root, ".dockerignore"), "utf8");
  } catch (error) {
    if (ignoreFile === undefined && (error as NodeJS.ErrnoException).code === "ENOENT") return "";
    throw wrongContext((error as Error).message);
  }
}

/** `.` and what ends in it is a folder whatever there is. */
function endsAsFolder(dest: string): boolean {
  return dest.endsWith("/") || /(^|\/)\.\.?$/.test(dest);
}

function byBytes(a: TarEntry, b: TarEntry): number {
  return Buffer.compare(Buffer.from(a.path), Buffer.from(b.path));
}

function copyFailed(index: number, source: string, why: string, remedy: string): AgentRunError {
  return new AgentRunError("a template could not be built", {
    code: "build_failed",
    cause: `step ${index} (copy ${source}): ${why}`,
    remediation: remedy,
    context: { step: index, step_kind: "copy" },
  });
}

function unreadable(relative: string, why: string): AgentRunError {
  return new AgentRunError("a file of the build's context cannot be read", {
    code: "invalid_input",
    cause: `${relative}: ${why}`,
    remediation: "Check who may read it, or leave it out in .dockerignore; then build again.",
  });
}

function wrongContext(cause: string): AgentRunError {
  return new AgentRunError("the build's context cannot be used", {
    code: "invalid_input",
    cause,
    remediation: "Name the folder that the copy steps are relative to.",
  });
}
