import { AgentRunError } from "../errors.ts";
import type { Sandbox } from "../sandbox.ts";
import { type EntryInfo, FileType, findEntries, move, type WriteInfo } from "./entries.ts";
import { InvalidArgumentError } from "./errors.ts";
import { homeOf } from "./home.ts";
import { refuse } from "./options.ts";
import { type RequestOpts, request, withTimeout } from "./request.ts";
import { type FilesystemEvent, startWatch, type WatchHandle, type WatchOpts } from "./watch.ts";

/** Options of calls about files. */
export interface FilesystemRequestOpts extends RequestOpts {
  /** `user` and `root` only, and both mean the sandbox's own user. Another one is refused: run a command as that user. */
  user?: string | undefined;
}

/** Options of `files.write`. */
export interface FilesystemWriteOpts extends FilesystemRequestOpts {
  /** Ignored, as `useOctetStream`: how it travels is the server's affair. */
  gzip?: boolean | undefined;
  useOctetStream?: boolean | undefined;
  /** Refused unless empty. */
  metadata?: Record<string, string> | undefined;
}

/** Options of `files.read`. */
export interface FilesystemReadOpts extends FilesystemRequestOpts {
  /** Ignored. */
  gzip?: boolean | undefined;
  /** Ignored: a stream waits for its next part as long as the connection stands; end it with `signal`. */
  streamIdleTimeoutMs?: number | undefined;
}

/** Options of `files.list`. */
export interface FilesystemListOpts extends FilesystemRequestOpts {
  /** Levels below the folder. Default: 1. */
  depth?: number | undefined;
}

/** What `files.write` takes. A stream is never held in memory. */
export type WriteData = string | ArrayBuffer | Blob | ReadableStream;

/** One file of several to write. */
export interface WriteEntry {
  path: string;
  data: WriteData;
}

/** The files of one sandbox. A relative path is one in `/home/user`. */
export class Filesystem {
  readonly #sandbox: Sandbox;
  readonly #requestTimeoutMs: number | undefined;

  constructor(sandbox: Sandbox, requestTimeoutMs?: number) {
    this.#sandbox = sandbox;
    this.#requestTimeoutMs = requestTimeoutMs;
  }

  /** @throws FileNotFoundError */
  read(path: string, opts?: FilesystemReadOpts & { format?: "text" | undefined }): Promise<string>;
  read(path: string, opts: FilesystemReadOpts & { format: "bytes" }): Promise<Uint8Array<ArrayBuffer>>;
  read(path: string, opts: FilesystemReadOpts & { format: "blob" }): Promise<Blob>;
  read(path: string, opts: FilesystemReadOpts & { format: "stream" }): Promise<ReadableStream<Uint8Array>>;
  read(
    path: string,
    { format = "text", ...opts }: FilesystemReadOpts & { format?: "text" | "bytes" | "blob" | "stream" | undefined } = {},
  ): Promise<string | Uint8Array | Blob | ReadableStream<Uint8Array>> {
    const { files } = this.#sandbox;
    const from = homeOf(path);
    return this.#request(opts, async (signal) => {
      switch (format) {
        case "text":
          return files.read(from, { signal });
        case "bytes":
          return files.readBytes(from, { signal });
        case "blob":
          return new Blob([await files.readBytes(from, { signal })]);
        case "stream":
          // Without the time-out of the request, which is over when the first part is there.
          return files.readStream(from, { signal: opts.signal });
        default:
          throw new InvalidArgumentError(`format must be "text", "bytes", "blob" or "stream", not ${JSON.stringify(format)}`);
      }
    });
  }

  /** Creates or replaces, with the folders above. */
  write(path: string, data: WriteData, opts?: FilesystemWriteOpts): Promise<WriteInfo>;
  write(files: WriteEntry[], opts?: FilesystemWriteOpts): Promise<WriteInfo[]>;
  write(pathOrFiles: string | WriteEntry[], dataOrOpts?: WriteData | FilesystemWriteOpts, opts?: FilesystemWriteOpts) {
    if (typeof pathOrFiles !== "string") return this.writeFiles(pathOrFiles, dataOrOpts as FilesystemWriteOpts | undefined);
    return this.#write({ path: pathOrFiles, data: dataOrOpts as WriteData }, opts);
  }

  async writeFiles(files: WriteEntry[], opts: FilesystemWriteOpts = {}): Promise<WriteInfo[]> {
    const written: WriteInfo[] = [];
    for (const file of files) written.push(await this.#write(file, opts));
    return written;
  }

  /** @throws FileNotFoundError; InvalidArgumentError for what is no folder */
  async list(path: string, { depth = 1, ...opts }: FilesystemListOpts = {}): Promise<EntryInfo[]> {
    if (!Number.isInteger(depth) || depth < 1) throw new InvalidArgumentError(`depth must be a whole number of at least 1, not ${depth}`);
    const folder = homeOf(path);
    const [self, ...entries] = await this.#request(opts, (signal) => findEntries(this.#sandbox, folder, { depth, follow: true }, signal));
    if (self?.type !== FileType.DIR) throw new InvalidArgumentError(`${path} is not a directory`);
    return entries;
  }

  /** With the folders above. @returns false when the folder exists. @throws InvalidArgumentError when something else does */
  makeDir(path: string, opts: FilesystemRequestOpts = {}): Promise<boolean> {
    const folder = homeOf(path);
    return this.#request(opts, async (signal) => {
      if (await this.#exists(folder)) {
        const [entry] = await findEntries(this.#sandbox, folder, { depth: 0, follow: true }, signal);
        if (entry?.type === FileType.DIR) return false;
        throw new InvalidArgumentError(`${path} exists and is not a directory`);
      }
      await this.#sandbox.files.mkdir(folder);
      return true;
    });
  }

  /** Of a file or a folder with everything in it. @throws FileNotFoundError */
  rename(oldPath: string, newPath: string, opts: FilesystemRequestOpts = {}): Promise<EntryInfo> {
    const to = homeOf(newPath);
    return this.#request(opts, async (signal) => {
      await move(this.#sandbox, homeOf(oldPath), to, signal);
      return this.#entry(to, signal);
    });
  }

  /** A file, or a folder with everything in it; one that does not exist is fine. */
  remove(path: string, opts: FilesystemRequestOpts = {}): Promise<void> {
    return this.#request(opts, () => this.#sandbox.files.remove(homeOf(path)));
  }

  exists(path: string, opts: FilesystemRequestOpts = {}): Promise<boolean> {
    return this.#request(opts, () => this.#exists(homeOf(path)));
  }

  /** Of the path itself: a link is not followed. @throws FileNotFoundError */
  getInfo(path: string, opts: FilesystemRequestOpts = {}): Promise<EntryInfo> {
    return this.#request(opts, (signal) => this.#entry(homeOf(path), signal));
  }

  /**
   * Tells what happens in a folder, from when this resolves until `stop` or the time-out. Below `/home/user` (`/workspace`) only.
   *
   * @throws FileNotFoundError
   */
  async watchDir(path: string, onEvent: (event: FilesystemEvent) => void | Promise<void>, opts: WatchOpts = {}): Promise<WatchHandle> {
    requireOwnUser(opts.user);
    return startWatch(this.#sandbox, path, onEvent, { ...opts, ...withTimeout(opts, this.#requestTimeoutMs) });
  }

  async #write({ path, data }: WriteEntry, opts: FilesystemWriteOpts = {}): Promise<WriteInfo> {
    refuse("metadata of files", Object.keys(opts.metadata ?? {}).length > 0, "write it to a file beside this one");
    const to = homeOf(path);
    await this.#request(opts, (signal) => this.#sandbox.files.write(to, contentOf(data), { signal }));
    return { name: to.slice(to.lastIndexOf("/") + 1), type: FileType.FILE, path: to };
  }

  /** `files.exists` does not follow links, which is right here: what a dangling link leads to is made by writing through it. */
  #exists(path: string): Promise<boolean> {
    return this.#sandbox.files.exists(path);
  }

  async #entry(path: string, signal: AbortSignal): Promise<EntryInfo> {
    const [entry] = await findEntries(this.#sandbox, path, { depth: 0, follow: false }, signal);
    if (entry) return entry;
    throw new AgentRunError("the answer tells of no file", { code: "invalid_response", cause: path });
  }

  async #request<T>(opts: FilesystemRequestOpts, run: (signal: AbortSignal) => Promise<T>): Promise<T> {
    requireOwnUser(opts.user);
    return request("file", withTimeout(opts, this.#requestTimeoutMs), run);
  }
}

function requireOwnUser(user: string | undefined): void {
  refuse(`the user ${user} for files`, user !== undefined && user !== "user" && user !== "root", "run a command with this user");
}

function contentOf(data: WriteData): string | Uint8Array | Blob | ReadableStream<Uint8Array> {
  if (data instanceof ArrayBuffer) return new Uint8Array(data);
  if (typeof data === "string" || data instanceof Blob || data instanceof ReadableStream) return data;
  // Not in E2B's types, and taken by it all the same: Buffer and the other views of bytes.
  if (ArrayBuffer.isView(data))
    return new Uint8Array((data as Uint8Array).buffer, (data as Uint8Array).byteOffset, (data as Uint8Array).byteLength);
  throw new InvalidArgumentError("data must be a string, an ArrayBuffer, a Blob or a ReadableStream");
}
