import type { FileInfo as MitosFileInfo } from "../files.ts";
import type { Sandbox as MitosSandbox } from "../sandbox.ts";
import { DaytonaFileNotFoundError, DaytonaNotFoundError, invalidArgument, toDaytonaError, within } from "./errors.ts";
import { inWorkDir } from "./paths.ts";

/** A file or folder as Daytona describes it. */
export interface FileInfo {
  name: string;
  path: string;
  isDir: boolean;
  /** Bytes. */
  size: number;
  /** As `ls -l` prints it: `-rw-r--r--`. */
  mode: string;
  /** Permission bits in octal: `0644`. */
  permissions: string;
  /** ISO 8601. */
  modifiedAt: string;
  /** The same. */
  modTime: string;
}

/** Half an hour. */
const transferSeconds = 1800;

/** Files of one sandbox. Relative paths begin at /workspace; time-outs are seconds, 0 means none. */
export class FileSystem {
  readonly #sandbox: MitosSandbox;

  constructor(sandbox: MitosSandbox) {
    this.#sandbox = sandbox;
  }

  /**
   * Creates or replaces a file, with the folders above it.
   *
   * @param file - the content, or the path of a local file, which is streamed
   */
  async uploadFile(file: Uint8Array | string, remotePath: string, timeout: number = transferSeconds): Promise<void> {
    const isBytes = file instanceof Uint8Array;
    if (!isBytes && typeof file !== "string") throw invalidArgument("this is no file", "Pass a Buffer, or the path of a local file.");
    await this.#within(`upload to ${remotePath}`, timeout, async (signal) => {
      const content = isBytes ? file : await (await import("./local-files.ts")).readLocalFile(file);
      await this.#sandbox.files.write(inWorkDir(remotePath), content, { signal });
    });
  }

  /**
   * A file's content: as a Buffer, or streamed into the local file that is named.
   *
   * @throws DaytonaFileNotFoundError
   */
  downloadFile(remotePath: string, timeout?: number): Promise<Buffer>;
  downloadFile(remotePath: string, localPath: string, timeout?: number): Promise<void>;
  // biome-ignore lint/suspicious/noConfusingVoidType: one of the two overloads answers nothing
  async downloadFile(remotePath: string, localPath?: string | number, timeout: number = transferSeconds): Promise<Buffer | void> {
    const path = inWorkDir(remotePath);
    if (typeof localPath === "string") {
      return this.#within(`download of ${remotePath}`, timeout, async (signal) => {
        const content = await this.#sandbox.files.readStream(path, { signal });
        await (await import("./local-files.ts")).writeLocalFile(localPath, content, signal);
      });
    }
    const bytes = await this.#within(`download of ${remotePath}`, localPath ?? timeout, (signal) =>
      this.#sandbox.files.readBytes(path, { signal }),
    );
    return toBuffer(bytes);
  }

  /** @param options.depth - how many levels. Default: 1, the folder's own entries */
  async listFiles(path = "/", options: { depth?: number } = {}): Promise<FileInfo[]> {
    const { depth = 1 } = options;
    if (!Number.isInteger(depth) || depth < 1) throw invalidArgument(`${depth} is not a depth`, "Pass a whole number, 1 or more.");
    return this.#within(`list of ${path}`, 0, () => this.#list(inWorkDir(path), depth));
  }

  /**
   * With the folders above it; one that exists is fine.
   *
   * @param mode - permission bits in octal. Default: 0755
   */
  async createFolder(path: string, mode = "0755"): Promise<void> {
    if (!/^[0-7]{3,4}$/.test(mode)) throw invalidArgument(`${JSON.stringify(mode)} is not a mode`, 'Pass permission bits in octal: "755".');
    const folder = inWorkDir(path);
    await this.#within(`creation of ${path}`, 0, async () => {
      await this.#sandbox.files.mkdir(folder);
      await this.#sandbox.exec(["chmod", "--", mode, folder]);
    });
  }

  /** @param recursive - needed for a folder */
  async deleteFile(path: string, recursive = false): Promise<void> {
    const target = inWorkDir(path);
    await this.#within(`deletion of ${path}`, 0, async () => {
      const { isDir } = await this.#sandbox.files.stat(target);
      if (isDir && !recursive) throw invalidArgument(`${path} is a folder`, "Pass recursive = true to delete it with all that is in it.");
      await this.#sandbox.files.remove(target);
    });
  }

  /** @throws DaytonaFileNotFoundError */
  async getFileDetails(path: string): Promise<FileInfo> {
    const target = inWorkDir(path);
    return this.#within(`look at ${path}`, 0, async () => toFileInfo(await this.#sandbox.files.stat(target), target));
  }

  /** The name in Daytona's Python SDK. */
  getFileInfo(path: string): Promise<FileInfo> {
    return this.getFileDetails(path);
  }

  async #list(folder: string, depth: number): Promise<FileInfo[]> {
    const entries = (await this.#sandbox.files.list(folder)).map((entry) => toFileInfo(entry, join(folder, entry.name)));
    if (depth === 1) return entries;
    const below = await Promise.all(entries.map((entry) => (entry.isDir ? this.#list(entry.path, depth - 1) : [])));
    return entries.flatMap((entry, index) => [entry, ...below[index]!]);
  }

  async #within<T>(what: string, timeout: number, call: (signal: AbortSignal | undefined) => Promise<T>): Promise<T> {
    try {
      return await within(what, timeout, call, DaytonaFileNotFoundError);
    } catch (error) {
      if (!(error instanceof DaytonaFileNotFoundError)) throw error;
      // A sandbox that is gone is not a file that is missing.
      const alive = await this.#sandbox.files.stat("/").then(
        () => true,
        () => false,
      );
      throw alive ? error : toDaytonaError(error.cause, DaytonaNotFoundError);
    }
  }
}

function toFileInfo({ name, isDir, size, mode, modifiedAt }: MitosFileInfo, path: string): FileInfo {
  const time = modifiedAt === undefined ? "" : new Date(Number(modifiedAt) * 1000).toISOString();
  const bits = mode & 0o7777;
  return {
    name,
    path,
    isDir,
    size,
    mode: modeText(mode),
    permissions: bits.toString(8).padStart(4, "0"),
    modifiedAt: time,
    modTime: time,
  };
}

function modeText(mode: number): string {
  const type = mode & 0o170000;
  const kind = type === 0o040000 ? "d" : type === 0o120000 ? "l" : "-";
  const letters = Array.from("rwxrwxrwx", (letter, index) => (mode & (0o400 >> index) ? letter : "-"));
  return kind + letters.join("");
}

function join(folder: string, name: string): string {
  return folder.endsWith("/") ? folder + name : `${folder}/${name}`;
}

/** Outside Node there is no Buffer; its bytes are what programs there read. */
function toBuffer(bytes: Uint8Array<ArrayBuffer>): Buffer {
  return "Buffer" in globalThis ? Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength) : (bytes as Buffer);
}
