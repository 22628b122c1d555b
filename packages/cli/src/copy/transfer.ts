import { constants } from "node:fs";
import type { FileInfo, Sandbox } from "@mitos/sdk";
import { CommandError, exitCodes } from "../exit.ts";

/** One copy between this machine and a sandbox. */
export class Transfer {
  readonly sandbox: Sandbox;
  readonly signal: AbortSignal;
  /** Copied so far. */
  bytes = 0;

  constructor(sandbox: Sandbox, signal: AbortSignal) {
    this.sandbox = sandbox;
    this.signal = signal;
  }

  /** Counts what passes, and stops when the user interrupts. */
  async *counted(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, void, undefined> {
    for await (const chunk of chunks) {
      this.signal.throwIfAborted();
      this.bytes += chunk.length;
      yield chunk;
    }
  }

  /** Of what the path leads to, links followed; undefined when there is nothing. */
  async remoteKind(path: string): Promise<"file" | "folder" | undefined> {
    const info = await this.remoteStat(path);
    if (!info) return undefined;
    if (typeOf(info.mode) !== "link") return info.isDir ? "folder" : "file";
    return (await this.remoteStat(`${path}/.`)) ? "folder" : "file";
  }

  async remoteStat(path: string): Promise<FileInfo | undefined> {
    try {
      return await this.sandbox.files.stat(path);
    } catch (error) {
      if (isMissing(error)) return undefined;
      throw error;
    }
  }

  /**
   * Runs a small script of the shell in the sandbox over many arguments, some at a time.
   *
   * @returns what it printed
   */
  async script(text: string, args: readonly string[]): Promise<string> {
    let printed = "";
    for (let at = 0; at < args.length; at += scriptArgsMax) {
      const result = await this.sandbox.exec(["/bin/sh", "-c", text, "sh", ...args.slice(at, at + scriptArgsMax)], {
        cwd: "/",
        signal: this.signal,
      });
      if (result.exitCode !== 0) throw copyError("the links and modes of a folder could not be copied", result.stderr.trim());
      printed += result.stdout;
    }
    return printed;
  }
}

/** Even: scripts take pairs. */
const scriptArgsMax = 200;

export function copyError(
  message: string,
  detail: string,
  remedy = "Check the paths and what may be read and written.",
  exitCode?: number,
): CommandError {
  return new CommandError(message, detail, remedy, exitCode);
}

export function missingSource(place: string): CommandError {
  return copyError(`${place} does not exist`, "there is nothing to copy", "Check the path.", exitCodes.notFound);
}

/** Whatever Node says about a file of this machine, in our form. */
export function localError(place: string, error: unknown): unknown {
  if (!(error instanceof Error) || !("syscall" in error)) return error;
  return copyError(`${place} cannot be used`, error.message);
}

function isMissing(error: unknown): boolean {
  // A file in the place of a folder on the way is another word for it.
  return (
    error instanceof Error &&
    "code" in error &&
    (error.code === "not_found" || /not a directory/i.test(String((error as { errorCause?: string }).errorCause)))
  );
}

export type FileType = "file" | "folder" | "link" | "other";

/** Of `st_mode`. */
export function typeOf(mode: number): FileType {
  const type = mode & constants.S_IFMT;
  if (type === constants.S_IFREG) return "file";
  if (type === constants.S_IFDIR) return "folder";
  return type === constants.S_IFLNK ? "link" : "other";
}

/** Read, write and execute; no set-user-id. */
export function permissions(mode: number): number {
  return mode & 0o777;
}

/** What is neither a file nor a folder nor a link has no copy. */
export function warnSkipped(place: string): void {
  process.stderr.write(`mitos: ${place} is left out: it is neither a file nor a folder nor a link\n`);
}

const filesAtOnce = 4;

/** Files of a folder are small as a rule: several at once. The first failure ends it. */
export async function forEachFile<T>(items: readonly T[], copy: (item: T) => Promise<void>): Promise<void> {
  const rest = oneByOne(items);
  const workers = Array.from({ length: filesAtOnce }, async () => {
    for (const item of rest) await copy(item);
  });
  await Promise.all(workers);
}

/** For several loops at once: one that is left by an error ends the others, which an array's own iterator does not do. */
function* oneByOne<T>(items: readonly T[]): Generator<T, void, undefined> {
  yield* items;
}
