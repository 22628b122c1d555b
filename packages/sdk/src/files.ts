import { decodeBase64, encodeBase64 } from "./base64.ts";
import type { ConnectClient, Message } from "./connect.ts";
import { AgentRunError, isObject } from "./errors.ts";
import type { HttpClient } from "./http.ts";

/** One entry of a folder, or one path. */
export interface FileInfo {
  name: string;
  isDir: boolean;
  size: number;
  /** Type and permission bits, as in `st_mode`. */
  mode: number;
  /** Unix seconds, as the wire has it. */
  modifiedAt?: string;
  path?: string;
}

/** How a file is written. */
export interface WriteOptions {
  /** Permission bits of a file that is created. Default: 0o644. */
  mode?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** Which part of a file to read. */
export interface ReadStreamOptions {
  /** First byte. Default: 0. */
  offset?: number | undefined;
  /** Number of bytes. Default: to the end. */
  length?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** A change below a watched path. */
export interface FileEvent {
  kind: "create" | "modify" | "delete" | "rename";
  path: string;
  /** For rename. */
  newPath?: string;
}

/** Text is written as UTF-8; blobs, streams and iterables may be of any size. */
export type FileContent = string | Uint8Array | ArrayBuffer | Blob | ReadableStream<Uint8Array> | AsyncIterable<Uint8Array>;

/** One of several files that are written together. */
export interface FileToWrite {
  path: string;
  content: FileContent;
  /** Default: what the call says for all of them. */
  mode?: number | undefined;
}

/** Above this a file travels as it is, over the raw file route; below, as one message, which every Mitos server understands. */
const messageBytesMax = 2 * 1024 * 1024;

/** The files of one sandbox. A path that does not exist is a NotFoundError. */
export class SandboxFiles {
  readonly #connect: ConnectClient;
  readonly #http: HttpClient;
  readonly #rawPath: string;

  constructor(connect: ConnectClient, http: HttpClient, sandboxId: string) {
    this.#connect = connect;
    this.#http = http;
    this.#rawPath = `/v1/sandboxes/${sandboxId}/files`;
  }

  /** As UTF-8; bytes that are not become U+FFFD. */
  async read(path: string, options: { signal?: AbortSignal | undefined } = {}): Promise<string> {
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(await this.readBytes(path, options));
  }

  async readBytes(path: string, options: { signal?: AbortSignal | undefined } = {}): Promise<Uint8Array<ArrayBuffer>> {
    const chunks: Uint8Array[] = [];
    let complete = false;
    for await (const { data, eof } of this.#connect.serverStream("ReadFile", { path }, options.signal)) {
      if (typeof data === "string" && data !== "") chunks.push(decodeBase64(data));
      if (eof === true) complete = true;
    }
    if (!complete) throw truncatedFile(path);
    return join(chunks);
  }

  /** Of any size, a part at a time. What breaks it off is an error of the stream: transport_error, or canceled. */
  async readStream(path: string, options: ReadStreamOptions = {}): Promise<ReadableStream<Uint8Array>> {
    const { offset = 0, length, signal } = options;
    const get = (headers = {}) => this.#http.send("GET", this.#raw({ path }), undefined, { headers, signal });
    // A header cannot ask for nothing.
    const last = length ? offset + length - 1 : "";
    const response = await get(offset > 0 || length ? { Range: `bytes=${offset}-${last}` } : {}).catch((error: unknown) => {
      // An empty file has no first byte to begin with; files such as those of /proc say that they are empty.
      if (offset === 0 && error instanceof AgentRunError && error.status === 416) return get();
      throw error;
    });
    const content = this.#http.stream(`reading ${path}`, response, signal);
    const isWhole = length === undefined || (length > 0 && response.status === 206);
    return isWhole ? content : firstBytes(content, length);
  }

  /** Creates or replaces a file, with the folders above it. Streams are of any size and never held in memory. Bytes must not change until it resolves. */
  async write(path: string, content: FileContent, options: WriteOptions = {}): Promise<void> {
    const bytes = bytesOf(content);
    if (bytes instanceof Uint8Array && bytes.length <= messageBytesMax) return this.#writeMessage(path, bytes, options);
    const body = bytes instanceof Uint8Array ? ownBytes(bytes) : toBody(bytes);
    const mode = options.mode === undefined ? {} : { mode: options.mode.toString(8) };
    await this.#http.put(this.#raw({ path, ...mode }), body, {
      headers: { "Content-Type": "application/octet-stream" },
      signal: options.signal,
    });
  }

  /** Several files, in their order. One that cannot be written ends it: those before it are written, those after it are not. */
  async writeAll(files: readonly FileToWrite[], options: WriteOptions = {}): Promise<void> {
    for (const { path, content, mode = options.mode } of files) await this.write(path, content, { ...options, mode });
  }

  async list(path = "/"): Promise<FileInfo[]> {
    const { entries } = await this.#connect.unary("List", { parent: path });
    return (Array.isArray(entries) ? entries : []).filter(isObject).map(toFileInfo);
  }

  /** Of the path itself: a symbolic link is not followed. */
  async stat(path: string): Promise<FileInfo> {
    return toFileInfo(await this.#connect.unary("Stat", { path }));
  }

  async exists(path: string): Promise<boolean> {
    try {
      await this.stat(path);
      return true;
    } catch (error) {
      if (error instanceof AgentRunError && error.code === "not_found" && (await this.#sandboxAnswers())) return false;
      throw error;
    }
  }

  /** With the folders above it; one that exists is fine. */
  async mkdir(path: string): Promise<void> {
    await this.#connect.unary("Mkdir", { path });
  }

  /** A file, a link or a whole folder; one that does not exist is fine. */
  async remove(path: string): Promise<void> {
    await this.#connect.unary("Remove", { path, recursive: true });
  }

  /**
   * Gives a file, link or folder another path, in one step, as rename(2) does: what is a file there is replaced, and so is an empty folder by
   * a folder. The folder above `to` must exist. What others hold open stays open.
   *
   * @throws not_found for `from` or the folder above `to`, already_exists when `to` is a folder with content, invalid_input when one is a
   *   folder and the other is not, failed_precondition between file systems (such as /tmp and /workspace)
   */
  async rename(from: string, to: string): Promise<void> {
    await this.#http.post(`${this.#rawPath}/rename`, { from, to });
  }

  /** What happens in a folder, from now on, until the iteration is left or the signal aborts. */
  async *watch(
    path: string,
    options: { recursive?: boolean | undefined; signal?: AbortSignal | undefined } = {},
  ): AsyncGenerator<FileEvent, void, undefined> {
    const request = { path, recursive: options.recursive ?? false };
    for await (const message of this.#connect.serverStream("Watch", request, options.signal)) {
      const event = toFileEvent(message);
      if (event) yield event;
    }
  }

  async #writeMessage(path: string, bytes: Uint8Array, { mode, signal }: WriteOptions): Promise<void> {
    const open = { open: { path, ...(mode === undefined ? {} : { mode }) } };
    let written: unknown;
    for await (const answer of this.#connect.bidi("WriteFile", [open, { data: encodeBase64(bytes) }], signal)) {
      written = answer.bytesWritten ?? 0;
    }
    if (Number(written) !== bytes.length) throw shortWrite(path, written, bytes.length);
  }

  /** A sandbox that is gone is `not_found` too, and that is not "the file does not exist". */
  async #sandboxAnswers(): Promise<boolean> {
    await this.#connect.unary("Stat", { path: "/" });
    return true;
  }

  #raw(query: Record<string, string>): string {
    return `${this.#rawPath}?${new URLSearchParams(query)}`;
  }
}

function toFileInfo(entry: Message): FileInfo {
  return {
    name: String(entry.name ?? ""),
    isDir: entry.isDir === true,
    size: Number(entry.size ?? 0),
    mode: Number(entry.mode ?? 0),
    ...(entry.modifiedAtUnix === undefined ? {} : { modifiedAt: String(entry.modifiedAtUnix) }),
    ...(typeof entry.path === "string" ? { path: entry.path } : {}),
  };
}

const eventKinds: Readonly<Record<string, FileEvent["kind"]>> = {
  CREATE: "create",
  MODIFY: "modify",
  DELETE: "delete",
  RENAME: "rename",
};

function toFileEvent({ kind, path, newPath }: Message): FileEvent | undefined {
  const known = typeof kind === "string" ? eventKinds[kind] : undefined;
  if (!known) return undefined;
  return { kind: known, path: String(path ?? ""), ...(typeof newPath === "string" ? { newPath } : {}) };
}

function join(chunks: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let at = 0;
  for (const chunk of chunks) {
    all.set(chunk, at);
    at += chunk.length;
  }
  return all;
}

/** What is in memory as bytes; streams and blobs as they are. */
function bytesOf(content: FileContent): Exclude<FileContent, string | ArrayBuffer> {
  if (typeof content === "string") return new TextEncoder().encode(content);
  return content instanceof ArrayBuffer ? new Uint8Array(content) : content;
}

/** fetch takes no bytes of shared memory. */
function ownBytes(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  return bytes.buffer instanceof ArrayBuffer ? (bytes as Uint8Array<ArrayBuffer>) : new Uint8Array(bytes);
}

function toBody(content: Blob | ReadableStream<Uint8Array> | AsyncIterable<Uint8Array>): Blob | ReadableStream<Uint8Array> {
  if (content instanceof Blob || content instanceof ReadableStream) return content;
  const iterator = content[Symbol.asyncIterator]();
  return new ReadableStream({
    async pull(controller) {
      const { done, value } = await iterator.next();
      if (done) controller.close();
      else controller.enqueue(value);
    },
    async cancel() {
      await iterator.return?.();
    },
  });
}

function firstBytes(content: ReadableStream<Uint8Array>, length: number): ReadableStream<Uint8Array> {
  const reader = content.getReader();
  let left = length;
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const value = left > 0 ? (await reader.read()).value : undefined;
        if (value) {
          controller.enqueue(value.subarray(0, left));
          left -= value.length;
        } else {
          controller.close();
          await reader.cancel();
        }
      },
      cancel: (reason) => reader.cancel(reason),
    },
    { highWaterMark: 0 },
  );
}

function truncatedFile(path: string): AgentRunError {
  return new AgentRunError("the file arrived incomplete", {
    code: "file_failed",
    cause: `the connection ended before the end of ${path}`,
    remediation: "Read it again.",
  });
}

function shortWrite(path: string, written: unknown, length: number): AgentRunError {
  return new AgentRunError("the file was not written completely", {
    code: "file_failed",
    cause: `${written ?? "none"} of ${length} bytes were written to ${path}`,
    remediation: "Write it again; check the free space in the sandbox.",
  });
}
