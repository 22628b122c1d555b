import { AgentRunError, EXEC_TIMEOUT_EXIT_CODE } from "../errors.ts";
import type { ProcessClient, ProcessEvent } from "../processes.ts";
import { timerMs } from "../timer.ts";
import { SandboxError, TimeoutError, toE2BError } from "./errors.ts";
import { type RequestOpts, request } from "./request.ts";

/** How a command ended, and what it printed. */
export interface CommandResult {
  exitCode: number;
  /** Undefined when it ended with 0. */
  error?: string | undefined;
  stdout: string;
  stderr: string;
}

/** A command that ended with another code than 0. */
export class CommandExitError extends SandboxError implements CommandResult {
  readonly #result: CommandResult;

  constructor(result: CommandResult) {
    super(result.error ?? `exit status ${result.exitCode}`);
    this.#result = result;
  }

  get exitCode(): number {
    return this.#result.exitCode;
  }
  get error(): string | undefined {
    return this.#result.error;
  }
  get stdout(): string {
    return this.#result.stdout;
  }
  get stderr(): string {
    return this.#result.stderr;
  }
}

export interface HandleOptions {
  onStdout?: ((text: string) => void | Promise<void>) | undefined;
  onStderr?: ((text: string) => void | Promise<void>) | undefined;
  onPty?: ((data: Uint8Array) => void | Promise<void>) | undefined;
  /** Of a command that was started with a time-out: with it exit code 124 is told from the program's own. */
  startedWithTimeoutMs?: number | undefined;
  /** How long to listen; the command runs on. 0 = to its end. */
  listenMs?: number | undefined;
  /** Aborting it stops listening. */
  signal?: AbortSignal | undefined;
  /** Where to begin: absolute offsets of the output. */
  stdoutFrom?: number | undefined;
  stderrFrom?: number | undefined;
}

/** A command or a terminal that runs. Listens from the beginning, whether anybody waits or not. */
export class CommandHandle {
  readonly pid: number;
  readonly #processes: ProcessClient;
  readonly #options: HandleOptions;
  readonly #stop = new AbortController();
  readonly #done: Promise<CommandResult>;
  #stdout = "";
  #stderr = "";
  #result: CommandResult | undefined;

  /** Use `commands.run`, `commands.connect`, `pty.create` or `pty.connect`. */
  constructor(processes: ProcessClient, pid: number, options: HandleOptions) {
    this.pid = pid;
    this.#processes = processes;
    this.#options = options;
    this.#done = this.#listen();
    this.#done.catch(() => undefined); // seen by wait()
  }

  /** Undefined while it runs. */
  get exitCode(): number | undefined {
    return this.#result?.exitCode;
  }
  get error(): string | undefined {
    return this.#result?.error;
  }
  /** What has arrived so far; of more than 64 Mi characters the latest. */
  get stdout(): string {
    return this.#stdout;
  }
  get stderr(): string {
    return this.#stderr;
  }

  /** @throws CommandExitError unless it ended with 0; TimeoutError when its time was up; what a callback threw */
  async wait(): Promise<CommandResult> {
    const result = await this.#done;
    if (result.exitCode !== 0) throw new CommandExitError(result);
    return result;
  }

  /** Stops listening: no callback is called any more. The command runs on. */
  async disconnect(): Promise<void> {
    this.#stop.abort(new SandboxError(`disconnected from the command ${this.pid}; connect to it again with commands.connect`));
  }

  /** SIGKILL to it and what it has started. @returns false when it had ended */
  kill(): Promise<boolean> {
    return kill(this.#processes, this.pid, {});
  }

  /** For a command that was started with `stdin: true`, and for a terminal. */
  async sendStdin(data: string | Uint8Array, opts: RequestOpts = {}): Promise<void> {
    await sendStdin(this.#processes, this.pid, data, opts);
  }

  /** The command reads the end of its input. */
  async closeStdin(opts: RequestOpts = {}): Promise<void> {
    await closeStdin(this.#processes, this.pid, opts);
  }

  async #listen(): Promise<CommandResult> {
    const { listenMs = 0, signal, startedWithTimeoutMs = 0, stdoutFrom, stderrFrom } = this.#options;
    const timer = listenMs > 0 ? setTimeout(() => this.#stop.abort(timedOut(listenMs, "listening")), timerMs(listenMs)) : undefined;
    const stop = signal ? AbortSignal.any([signal, this.#stop.signal]) : this.#stop.signal;
    try {
      const exit = await this.#follow(this.#processes.output(this.pid, { stdoutFrom, stderrFrom, signal: stop }), stop);
      if (exit.exitCode === EXEC_TIMEOUT_EXIT_CODE && startedWithTimeoutMs > 0 && exit.execTimeMs >= startedWithTimeoutMs) {
        throw timedOut(startedWithTimeoutMs, "running");
      }
      const error = describeExit(exit.exitCode);
      this.#result = { exitCode: exit.exitCode, stdout: this.#stdout, stderr: this.#stderr, ...(error === undefined ? {} : { error }) };
      return this.#result;
    } catch (error) {
      if (stop.aborted) throw stop.reason;
      throw toE2BError(error, "process");
    } finally {
      clearTimeout(timer);
    }
  }

  async #follow(events: AsyncIterable<ProcessEvent>, stop: AbortSignal): Promise<Extract<ProcessEvent, { type: "exit" }>> {
    const { onStdout, onStderr, onPty } = this.#options;
    const decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
    const hand = async (stream: "stdout" | "stderr", text: string) => {
      if (text === "") return;
      if (stream === "stdout") this.#stdout = append(this.#stdout, text);
      else this.#stderr = append(this.#stderr, text);
      await (stream === "stdout" ? onStdout : onStderr)?.(text);
    };
    for await (const event of events) {
      if (stop.aborted) throw stop.reason;
      if (event.type === "gap") continue; // visible only as what is missing
      if (event.type === "exit") {
        // A character whose last bytes never came.
        if (!onPty) for (const stream of ["stdout", "stderr"] as const) await hand(stream, decoders[stream].decode());
        return event;
      }
      if (onPty) await onPty(event.data);
      else await hand(event.type, decoders[event.type].decode(event.data, { stream: true }));
    }
    throw new SandboxError(`the output of process ${this.pid} ended before the process did`);
  }
}

const outputCharactersKept = 64 * 1024 * 1024;

/** Cuts only when twice as much is there: cutting copies. */
function append(kept: string, text: string): string {
  const all = kept + text;
  return all.length > 2 * outputCharactersKept ? all.slice(-outputCharactersKept) : all;
}

/** @returns false when there is no such process any more */
export function kill(processes: ProcessClient, pid: number, opts: RequestOpts): Promise<boolean> {
  return request("process", opts, async () => {
    try {
      await processes.signal(pid, 9);
      return true;
    } catch (error) {
      if (error instanceof AgentRunError && (await isEnded(processes, pid))) return false;
      throw error;
    }
  });
}

async function isEnded(processes: ProcessClient, pid: number): Promise<boolean> {
  return !(await processes.list()).some((row) => row.pid === pid && row.state === "running");
}

export function sendStdin(processes: ProcessClient, pid: number, data: string | Uint8Array, opts: RequestOpts): Promise<void> {
  const bytes = typeof data === "string" ? new TextEncoder().encode(data) : data;
  if (bytes.length === 0) return Promise.resolve();
  return request("process", opts, () => processes.writeStdin(pid, bytes));
}

export function closeStdin(processes: ProcessClient, pid: number, opts: RequestOpts): Promise<void> {
  return request("process", opts, () => processes.writeStdin(pid, new Uint8Array(), { close: true }));
}

function timedOut(timeoutMs: number, what: string): TimeoutError {
  return new TimeoutError(`${what} took longer than timeoutMs (${timeoutMs}); pass a larger one, or 0 for none`);
}

function describeExit(exitCode: number): string | undefined {
  if (exitCode === 0) return undefined;
  return exitCode === -1 ? "ended by a signal" : `exit status ${exitCode}`;
}
