import { createReadStream, type Stats } from "node:fs";
import { lstat, readdir, readlink, stat } from "node:fs/promises";
import path from "node:path";
import { isFolderPath, type Place } from "./place.ts";
import { copyError, forEachFile, localError, missingSource, permissions, type Transfer, typeOf, warnSkipped } from "./transfer.ts";

export async function upload(transfer: Transfer, source: Place, target: Place & { kind: "sandbox" }): Promise<void> {
  if (source.kind === "stream") return uploadStream(transfer, target);
  if (source.kind !== "local") throw new Error("an upload is from this machine");
  const info = await stat(source.path).catch((error: NodeJS.ErrnoException) => {
    throw error.code === "ENOENT" ? missingSource(source.path) : localError(source.path, error);
  });
  const to = await remoteTarget(transfer, target.path, path.basename(path.resolve(source.path)));
  if (info.isDirectory()) await uploadFolder(transfer, source.path, to);
  else await uploadFile(transfer, source.path, to, info);
}

async function uploadStream(transfer: Transfer, { path: to }: { path: string }): Promise<void> {
  if (isFolderPath(to) || (await transfer.remoteKind(to)) === "folder") {
    throw copyError(`${to} is a folder`, "standard input has no name that it could get there", "Name the file: <id>:<path>/<name>.");
  }
  try {
    await transfer.sandbox.files.write(to, transfer.counted(process.stdin), { signal: transfer.signal });
  } finally {
    // An input that goes on would keep this process, whether anybody takes it or not.
    process.stdin.destroy();
  }
}

/** Under the source's name where a folder is, or is meant to be. */
async function remoteTarget(transfer: Transfer, to: string, name: string): Promise<string> {
  const isInto = to === "/" || isFolderPath(to) || (await transfer.remoteKind(to)) === "folder";
  return isInto ? path.posix.join(to, name) : to;
}

async function uploadFile(transfer: Transfer, from: string, to: string, info: Stats): Promise<void> {
  const content = transfer.counted(createReadStream(from, { signal: transfer.signal }));
  try {
    await transfer.sandbox.files.write(to, content, { mode: permissions(info.mode), signal: transfer.signal });
  } catch (error) {
    throw localError(from, causeOf(error));
  }
}

/** A body that could not be read fails the request that carries it; the reason is inside. */
function causeOf(error: unknown): unknown {
  for (let at = error; at instanceof Error; at = at.cause) if ("syscall" in at && "path" in at) return at;
  return error;
}

async function uploadFolder(transfer: Transfer, from: string, to: string): Promise<void> {
  if ((await transfer.remoteKind(to)) === "file") throw copyError(`${to} is a file`, `${from} is a folder`);
  const found = await walk(from);
  // Modes of folders come last: one that may not be written could not be filled.
  for (const { relative } of found.folders) await transfer.sandbox.files.mkdir(path.posix.join(to, relative));
  await forEachFile(found.files, ({ relative, info }) =>
    uploadFile(transfer, path.join(from, relative), path.posix.join(to, relative), info),
  );
  await transfer.script(
    'while [ $# -gt 1 ]; do ln -sfn -- "$1" "$2" || exit; shift 2; done',
    found.links.flatMap(({ relative, target }) => [target, path.posix.join(to, relative)]),
  );
  await transfer.script(
    'while [ $# -gt 1 ]; do chmod "$1" "$2" || exit; shift 2; done',
    found.folders.toReversed().flatMap(({ relative, info }) => [permissions(info.mode).toString(8), path.posix.join(to, relative)]),
  );
}

interface Found {
  /** Outer before inner; the first is the folder itself. */
  readonly folders: { readonly relative: string; readonly info: Stats }[];
  readonly files: { readonly relative: string; readonly info: Stats }[];
  readonly links: { readonly relative: string; readonly target: string }[];
}

async function walk(root: string): Promise<Found> {
  const found: Found = { folders: [{ relative: "", info: await stat(root) }], files: [], links: [] };
  for (const { relative } of found.folders) {
    const folder = path.join(root, relative);
    try {
      for (const name of await readdir(folder)) await add(found, root, path.join(relative, name));
    } catch (error) {
      throw localError(folder, error);
    }
  }
  return found;
}

async function add(found: Found, root: string, relative: string): Promise<void> {
  const place = path.join(root, relative);
  const info = await lstat(place);
  const type = typeOf(info.mode);
  if (type === "folder") found.folders.push({ relative, info });
  else if (type === "file") found.files.push({ relative, info });
  else if (type === "link") found.links.push({ relative, target: await readlink(place) });
  else warnSkipped(place);
}
