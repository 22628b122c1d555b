/** What E2B does with files and the file calls do not: owner, group and the target of a link come from `find` in the sandbox, and `mv` renames. */

import type { Sandbox } from "../sandbox.ts";
import { FileNotFoundError, SandboxError } from "./errors.ts";

/** What an entry of a folder is. */
export const FileType = { FILE: "file", DIR: "dir", SYMLINK: "symlink" } as const;
export type FileType = (typeof FileType)[keyof typeof FileType];

/** What was written. */
export interface WriteInfo {
  name: string;
  type?: FileType;
  path: string;
  /** Never set: metadata of files is refused. */
  metadata?: Record<string, string>;
}

/** An entry of a folder. */
export interface EntryInfo extends WriteInfo {
  /** Bytes. */
  size: number;
  /** Permission bits. */
  mode: number;
  /** As `ls` writes it, without the type: `rwxr-xr-x`. */
  permissions: string;
  owner: string;
  group: string;
  modifiedTime?: Date;
  symlinkTarget?: string;
}

/** One record: type, size, mode, owner, group, time, target and path, each ended by NUL, which is in none of them. */
const format = String.raw`%y\0%s\0%m\0%u\0%g\0%T@\0%l\0%p\0`;
const fieldCount = 8;
const execTimeoutSeconds = 60;

/**
 * A path and what lies below it, `depth` levels deep, sorted by path.
 *
 * @param follow - whether the path itself, when it is a link, stands for what it leads to
 * @throws FileNotFoundError
 */
export async function findEntries(
  sandbox: Pick<Sandbox, "exec">,
  path: string,
  { depth, follow }: { depth: number; follow: boolean },
  signal: AbortSignal,
): Promise<EntryInfo[]> {
  const command = ["find", follow ? "-H" : "-P", path, "-maxdepth", String(depth), "-printf", format];
  const { stdout, stderr, exitCode } = await sandbox.exec(command, { cwd: "/", signal, timeoutSeconds: execTimeoutSeconds });
  const entries = parseEntries(stdout);
  // Something that vanished meanwhile makes `find` fail as well, after it has told of the path itself.
  if (entries.length > 0) return entries.sort((one, other) => (one.path < other.path ? -1 : 1));
  if (/No such file or directory/.test(stderr)) throw new FileNotFoundError(`${path} does not exist in the sandbox`);
  throw new SandboxError(`${path} cannot be looked at: find ended with ${exitCode}: ${stderr.trim()}`);
}

/** With the folders above the new path; a file there is replaced. @throws FileNotFoundError; SandboxError when something is in the way */
export async function move(sandbox: Pick<Sandbox, "exec">, from: string, to: string, signal: AbortSignal): Promise<void> {
  const script = 'ls -d -- "$1" >/dev/null && mkdir -p -- "$(dirname -- "$2")" && exec mv -fT -- "$1" "$2"';
  const { stderr, exitCode } = await sandbox.exec(["sh", "-c", script, "sh", from, to], {
    cwd: "/",
    signal,
    timeoutSeconds: execTimeoutSeconds,
  });
  if (exitCode === 0) return;
  if (/^ls: .*No such file or directory/.test(stderr)) throw new FileNotFoundError(`${from} does not exist in the sandbox`);
  throw new SandboxError(`${from} cannot become ${to}: ${stderr.trim()}`);
}

export function parseEntries(text: string): EntryInfo[] {
  const fields = text.split("\0");
  const entries: EntryInfo[] = [];
  for (let at = 0; at + fieldCount < fields.length; at += fieldCount) {
    const [type, size, mode, owner, group, time, target, path] = fields.slice(at, at + fieldCount) as [
      string,
      string,
      string,
      string,
      string,
      string,
      string,
      string,
    ];
    const bits = Number.parseInt(mode, 8);
    entries.push({
      name: path.slice(path.lastIndexOf("/") + 1),
      type: type === "d" ? FileType.DIR : type === "l" ? FileType.SYMLINK : FileType.FILE,
      path,
      size: Number(size),
      mode: bits,
      permissions: permissionsOf(bits),
      owner,
      group,
      modifiedTime: new Date(Number(time) * 1000),
      ...(target === "" ? {} : { symlinkTarget: target }),
    });
  }
  return entries;
}

function permissionsOf(mode: number): string {
  return Array.from("rwxrwxrwx", (letter, index) => (mode & (0o400 >> index) ? letter : "-")).join("");
}
