import { MAX_EXEC_TIMEOUT_SECONDS } from "../errors.ts";
import type { ExecutionError as NativeExecutionError } from "../run-code.ts";
import type { RunCodeOptions, Sandbox } from "../sandbox.ts";
import { environmentCells } from "./environment.ts";
import { InvalidArgumentError, TimeoutError } from "./errors.ts";
import { Execution, type ExecutionError, OutputMessage, Result } from "./execution.ts";
import { homeOf } from "./home.ts";
import { toSeconds } from "./options.ts";
import { request } from "./request.ts";

/** An interpreter of its own, with its own state. */
export interface Context {
  id: string;
  language: string;
  cwd: string;
}

/** `python`, `javascript` and `bash`; another one is refused when code runs. */
export type RunCodeLanguage = "python" | "javascript" | "typescript" | "r" | "java" | "bash" | (string & {});

/** Options of `runCode`. */
export interface RunCodeOpts {
  onStdout?: ((output: OutputMessage) => unknown) | undefined;
  onStderr?: ((output: OutputMessage) => unknown) | undefined;
  onResult?: ((result: Result) => unknown) | undefined;
  onError?: ((error: ExecutionError) => unknown) | undefined;
  /** For this cell only; what was there before is put back after it. */
  envs?: Record<string, string> | undefined;
  /** Default: 60,000; 0 = the server's ceiling. Whole seconds, rounded up. */
  timeoutMs?: number | undefined;
  /** Ignored: it is `timeoutMs` that ends a cell. */
  requestTimeoutMs?: number | undefined;
}

export type RunCodeTarget = { language?: RunCodeLanguage | undefined; context?: Context | undefined };

/** Options of `createCodeContext`. */
export interface CreateCodeContextOpts {
  /** Default: `/home/user`. */
  cwd?: string | undefined;
  /** Default: `python`. */
  language?: RunCodeLanguage | undefined;
  requestTimeoutMs?: number | undefined;
}

const timeoutMsDefault = 60_000;

/** @throws TimeoutError when its time is up: the cell is interrupted, the interpreter keeps its state */
export async function runCode(sandbox: Sandbox, code: string, opts: RunCodeOpts & RunCodeTarget): Promise<Execution> {
  const { context, timeoutMs = timeoutMsDefault, envs = {} } = opts;
  if (context && opts.language) throw new InvalidArgumentError("language and context exclude each other: a context has its language");
  const language = opts.language ?? context?.language ?? "python";
  const target: RunCodeOptions = {
    ...(context ? { context: context.id } : { language }),
    timeoutSeconds: toSeconds(timeoutMs) || MAX_EXEC_TIMEOUT_SECONDS,
  };
  const run = (cell: string, callbacks: RunCodeOptions = {}) =>
    request("code", { requestTimeoutMs: 0 }, () => sandbox.runCode(cell, { ...target, ...callbacks }));

  const callbacks = new Callbacks(opts);
  const cells = Object.keys(envs).length > 0 ? environmentCells(language, envs) : undefined;
  if (cells) throwUnlessRun((await run(cells.before)).error, language, timeoutMs);
  try {
    const execution = await run(code, callbacks.native);
    throwUnlessRun(execution.error, language, timeoutMs);
    const result = Execution.of(execution);
    if (result.error) callbacks.error(result.error);
    await callbacks.settled();
    return result;
  } finally {
    if (cells) await run(cells.after).catch(() => undefined);
  }
}

/** The user's functions, which may be asynchronous: they are called in order, each when the one before is done. */
class Callbacks {
  readonly #opts: RunCodeOpts;
  #last: Promise<unknown> = Promise.resolve();

  constructor(opts: RunCodeOpts) {
    this.#opts = opts;
  }

  get native(): Pick<RunCodeOptions, "onStdout" | "onStderr" | "onResult"> {
    const { onStdout, onStderr, onResult } = this.#opts;
    const message = (text: string, error: boolean) => new OutputMessage(text, Date.now() * 1_000_000, error);
    return {
      onStdout: (text) => this.#call(onStdout, message(text, false)),
      onStderr: (text) => this.#call(onStderr, message(text, true)),
      onResult: (result) => this.#call(onResult, Result.of(result)),
    };
  }

  error(error: ExecutionError): void {
    this.#call(this.#opts.onError, error);
  }

  /** @throws what one of them threw */
  async settled(): Promise<void> {
    await this.#last;
  }

  #call<T>(callback: ((value: T) => unknown) | undefined, value: T): void {
    if (!callback) return;
    this.#last = this.#last.then(() => callback(value));
    this.#last.catch(() => undefined); // seen by settled()
  }
}

/** What the agent says of a cell, rather than the cell of itself. */
function throwUnlessRun(error: NativeExecutionError | null, language: string, timeoutMs: number): void {
  if (!error || error.traceback.length > 0) return;
  const cause = { cause: error };
  if (error.name === "KernelUnavailable") throw new InvalidArgumentError(`${language} cannot be run here: ${error.value}`, cause);
  if (error.name === "TimeoutError" && /^execution exceeded the \d+s timeout budget$/.test(error.value)) {
    throw new TimeoutError(`the code took longer than timeoutMs (${timeoutMs}); pass a larger one`, cause);
  }
}

export function createCodeContext(sandbox: Sandbox, { cwd, language = "python", ...opts }: CreateCodeContextOpts): Promise<Context> {
  return request("code", opts, async (signal) => toContext(await sandbox.createContext({ language, cwd: homeOf(cwd), signal })));
}

/** Also those that code without a context runs in: they are named by their language. */
export function listCodeContexts(sandbox: Sandbox): Promise<Context[]> {
  return request("code", {}, async () => (await sandbox.listContexts()).map(toContext));
}

export function removeCodeContext(sandbox: Sandbox, context: Context | string): Promise<void> {
  return request("code", {}, () => sandbox.removeContext(context));
}

export async function restartCodeContext(sandbox: Sandbox, context: Context | string): Promise<void> {
  await request("code", {}, () => sandbox.restartContext(context));
}

function toContext({ id, language, cwd }: Context): Context {
  return { id, language, cwd };
}
