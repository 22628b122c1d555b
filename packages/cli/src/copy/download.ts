import { createWriteStream } from "node:fs";
import { chmod, lstat, mkdir, rm, stat, symlink } from "node:fs/promises";
import path from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { FileInfo } from "@mitos/sdk";
import { write } from "../output.ts";
import { isFolderPath, type Place } from "./place.ts";
import { copyError, forEachFile, localError, missingSource, permissions, type Transfer, typeOf, warnSkipped } from "./transfer.ts";

export async function download(transfer: Transfer, source: string, target: Place): Promise<void> {
  const from = source === "/" ? source : source.replace(/\/$/, "");
  const info = await requireSource(transfer, from);
  const isFolder = (await transfer.remoteKind(from)) === "folder";
  if (target.kind === "stream") return isFolder ? refuseFolder(from) : downloadStream(transfer, from);
  if (target.kind !== "local") throw new Error("a download is to this machine");
  const to = await localTarget(target.path, path.posix.basename(from));
  if (isFolder) await downloadFolder(transfer, from, to, info);
  else await downloadFile(transfer, from, to, info);
}

async function requireSource(transfer: Transfer, from: string): Promise<FileInfo> {
  const info = await transfer.remoteStat(from);
  if (info) return info;
  throw missingSource(`${transfer.sandbox.id}:${from}`);
}

function refuseFolder(from: string): never {
  throw copyError(`${from} is a folder`, "standard output takes one file", "Pack it: mitos sandbox exec <id> -- tar -c -C <folder> .");
}

async function downloadStream(transfer: Transfer, from: string): Promise<void> {
  const content = await transfer.sandbox.files.readStream(from, { signal: transfer.signal });
  for await (const chunk of transfer.counted(content)) await write(process.stdout, chunk);
}

async function localTarget(to: string, name: string): Promise<string> {
  const isInto = isFolderPath(to) || (await isLocalFolder(to));
  return isInto ? path.join(to, name) : to;
}

async function isLocalFolder(place: string): Promise<boolean> {
  return stat(place).then(
    (info) => info.isDirectory(),
    () => false,
  );
}

/** A file that exists keeps its mode, as with `cp`; one that could not be copied whole and was not there before is not there afterwards. */
async function downloadFile(transfer: Transfer, from: string, to: string, info: FileInfo): Promise<void> {
  const content = await transfer.sandbox.files.readStream(from, { signal: transfer.signal });
  try {
    await mkdir(path.dirname(to), { recursive: true });
    const isNew = !(await stat(to).catch(() => undefined));
    try {
      await pipeline(Readable.from(transfer.counted(content)), createWriteStream(to), { signal: transfer.signal });
      // A link's own mode says nothing of the file it leads to.
      if (isNew && typeOf(info.mode) === "file") await chmod(to, permissions(info.mode));
    } catch (error) {
      if (isNew) await rm(to, { force: true });
      throw error;
    }
  } catch (error) {
    if (transfer.signal.aborted) throw transfer.signal.reason;
    throw localError(to, error);
  }
}

async function downloadFolder(transfer: Transfer, from: string, to: string, info: FileInfo): Promise<void> {
  const found = await walk(transfer, from, info);
  try {
    for (const { relative } of found.folders) {
      if (relative !== "") await removeLink(path.join(to, relative));
      await mkdir(path.join(to, relative), { recursive: true });
    }
    for (const { relative } of found.files) await removeLink(path.join(to, relative));
  } catch (error) {
    throw localError(to, error);
  }
  await forEachFile(found.files, (file) =>
    downloadFile(transfer, path.posix.join(from, file.relative), path.join(to, file.relative), file.info),
  );
  try {
    for (const { relative, target } of await linkTargets(transfer, from, found.links)) {
      const place = path.join(to, relative);
      await rm(place, { force: true });
      await symlink(target, place);
    }
    // Last and inner first: one that may not be written could not be filled.
    for (const folder of found.folders.toReversed()) {
      if (typeOf(folder.info.mode) === "folder") await chmod(path.join(to, folder.relative), permissions(folder.info.mode));
    }
  } catch (error) {
    throw localError(to, error);
  }
}

/** An earlier copy may have left a link where the sandbox has a folder or a file now: nothing is written to where it leads. */
async function removeLink(place: string): Promise<void> {
  const info = await lstat(place).catch(() => undefined);
  if (info?.isSymbolicLink()) await rm(place);
}

interface Found {
  /** Outer before inner; the first is the folder itself. */
  readonly folders: { readonly relative: string; readonly info: FileInfo }[];
  readonly files: { readonly relative: string; readonly info: FileInfo }[];
  /** Relative paths. */
  readonly links: string[];
}

async function walk(transfer: Transfer, from: string, info: FileInfo): Promise<Found> {
  const found: Found = { folders: [{ relative: "", info }], files: [], links: [] };
  for (const folder of found.folders) {
    transfer.signal.throwIfAborted();
    for (const entry of await transfer.sandbox.files.list(path.posix.join(from, folder.relative))) {
      requireName(entry.name);
      const relative = path.posix.join(folder.relative, entry.name);
      const type = typeOf(entry.mode);
      if (type === "folder") found.folders.push({ relative, info: entry });
      else if (type === "file") found.files.push({ relative, info: entry });
      else if (type === "link") found.links.push(relative);
      else warnSkipped(path.posix.join(from, relative));
    }
  }
  return found;
}

/** A sandbox that lies about a name must not choose where on this machine something is written. */
function requireName(name: string): void {
  if (name !== "" && name !== "." && name !== ".." && !name.includes("/") && !name.includes("\0")) return;
  throw copyError("the sandbox's answer is refused", `it lists a file with the name ${JSON.stringify(name)}`);
}

async function linkTargets(transfer: Transfer, from: string, links: readonly string[]): Promise<{ relative: string; target: string }[]> {
  const paths = links.map((relative) => path.posix.join(from, relative));
  const printed = await transfer.script('for link do readlink -n -- "$link" && printf "\\0" || exit; done', paths);
  const targets = printed.split("\0");
  return links.map((relative, index) => ({ relative, target: targets[index]! }));
}
