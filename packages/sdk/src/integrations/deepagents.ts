import type { BaseSandbox, ExecuteResponse, FileDownloadResponse, FileOperationError, FileUploadResponse } from "deepagents";
import { AgentRunError, EXEC_TIMEOUT_EXIT_CODE } from "../errors.ts";
import type { Sandbox } from "../sandbox.ts";
import { loadFramework } from "./framework.ts";
import { toolErrorText } from "./tools.ts";

/**
 * A sandbox as the file system and shell of a deep agent. Listing, reading, searching and editing are the framework's own, built on these
 * three operations. Its operations on files answer failures for each file; `execute` throws only when the sandbox itself fails.
 */
export interface MitosBackend extends BaseSandbox, AsyncDisposable {
  /**
   * stdout, then stderr. A command that is killed at its time-out is a result with exit code 124 and a line that says so; output beyond
   * 8 MiB a stream is dropped and `truncated` says so.
   *
   * @param options.timeout - seconds, default: 60
   */
  execute(command: string, options?: { timeout?: number | undefined }): Promise<ExecuteResponse>;
  uploadFiles(files: [path: string, content: Uint8Array][]): Promise<FileUploadResponse[]>;
  downloadFiles(paths: string[]): Promise<FileDownloadResponse[]>;
  /** Backends over children that continue from this sandbox's exact state. */
  fork(count?: number): Promise<MitosBackend[]>;
  /** Ends the sandbox. */
  close(): Promise<void>;
}

/**
 * For `createDeepAgent({ backend })`.
 *
 * @param source - a sandbox, or an adapter over one
 * @throws integration_dependency_missing without `deepagents`
 */
export async function asDeepagentsBackend(source: Sandbox | { readonly sandbox: Sandbox }): Promise<MitosBackend> {
  const { BaseSandbox } = await loadFramework("deepagents", () => import("deepagents"));

  class Backend extends BaseSandbox implements MitosBackend {
    readonly id: string;
    readonly #sandbox: Sandbox;

    constructor(sandbox: Sandbox) {
      super();
      this.id = sandbox.id;
      this.#sandbox = sandbox;
    }

    execute(command: string, { timeout = 60 }: { timeout?: number | undefined } = {}): Promise<ExecuteResponse> {
      return execute(this.#sandbox, command, timeout);
    }

    uploadFiles(files: [path: string, content: Uint8Array][]): Promise<FileUploadResponse[]> {
      return inTurn(files, async ([path, content]) => ({
        path,
        error: await failureOf(this.#sandbox, path, () => this.#sandbox.files.write(path, content)),
      }));
    }

    downloadFiles(paths: string[]): Promise<FileDownloadResponse[]> {
      return inTurn(paths, async (path) => {
        let content: Uint8Array | null = null;
        const error = await failureOf(this.#sandbox, path, async () => {
          content = await this.#sandbox.files.readBytes(path);
        });
        return { path, content, error };
      });
    }

    async fork(count = 1): Promise<MitosBackend[]> {
      return (await this.#sandbox.fork(count)).map((child) => new Backend(child));
    }

    close(): Promise<void> {
      return this.#sandbox[Symbol.asyncDispose]();
    }

    [Symbol.asyncDispose](): Promise<void> {
      return this.close();
    }
  }

  return new Backend("sandbox" in source ? source.sandbox : source);
}

const outputBytesMax = 8 * 1024 * 1024;

async function execute(sandbox: Sandbox, command: string, timeoutSeconds: number): Promise<ExecuteResponse> {
  const stdout = new OutputStart();
  const stderr = new OutputStart();
  let exitCode: number | null = null;
  for await (const event of sandbox.execStream(command, { timeoutSeconds })) {
    if (event.type === "stdout") stdout.push(event.data);
    else if (event.type === "stderr") stderr.push(event.data);
    else exitCode = event.exitCode;
  }
  const note =
    exitCode === EXEC_TIMEOUT_EXIT_CODE ? `[exec_timeout] the command was killed after ${timeoutSeconds} s; split the work.\n` : "";
  return { output: stdout.text() + stderr.text() + note, exitCode, truncated: stdout.truncated || stderr.truncated };
}

/** The first bytes of a stream, joined before they are decoded: a character may be cut between two events. */
class OutputStart {
  truncated = false;
  #left = outputBytesMax;
  #text = "";
  readonly #decoder = new TextDecoder();

  push(data: Uint8Array): void {
    if (data.length > this.#left) this.truncated = true;
    const kept = data.subarray(0, this.#left);
    this.#left -= kept.length;
    this.#text += this.#decoder.decode(kept, { stream: true });
  }

  text(): string {
    // Half a character at the cut stays away.
    return this.truncated ? this.#text : this.#text + this.#decoder.decode();
  }
}

/** One after the other: a list may be long, and a server has a limit of streams for each sandbox. */
async function inTurn<Item, Answer>(items: readonly Item[], work: (item: Item) => Promise<Answer>): Promise<Answer[]> {
  const answers: Answer[] = [];
  for (const item of items) answers.push(await work(item));
  return answers;
}

/** What went wrong with one file, in the framework's words where it has one, else in ours, with code and remedy. */
async function failureOf(sandbox: Sandbox, path: string, work: () => Promise<void>): Promise<FileOperationError | null> {
  if (!path.startsWith("/")) return "invalid_path";
  try {
    await work();
    return null;
  } catch (error) {
    const code = error instanceof AgentRunError ? error.code : "";
    if (code === "not_found") return "file_not_found";
    if (code === "permission_denied") return "permission_denied";
    if (code === "invalid_input" || code === "failed_precondition")
      return (await isDirectory(sandbox, path)) ? "is_directory" : "invalid_path";
    return toolErrorText(error) as FileOperationError;
  }
}

async function isDirectory(sandbox: Sandbox, path: string): Promise<boolean> {
  try {
    return (await sandbox.files.stat(path)).isDir;
  } catch {
    return false;
  }
}
