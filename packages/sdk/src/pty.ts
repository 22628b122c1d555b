import { AgentRunError } from "./errors.ts";
import type { Command } from "./exec.ts";
import type { ProcessClient } from "./processes.ts";

export interface PtyCallbacks {
  /** Output that was printed while nobody was connected, and is no longer kept: these bytes of it are missing. */
  onGap?: ((gap: { from: number; to: number }) => void) | undefined;
}

/** Size and program of a terminal. Default: 80 columns, 24 rows. */
export interface CreatePtyOptions extends PtyCallbacks {
  cols?: number | undefined;
  rows?: number | undefined;
  /** Default: bash where the sandbox has it, else sh. */
  command?: Command | undefined;
  cwd?: string | undefined;
  env?: Readonly<Record<string, string>> | undefined;
  user?: string | undefined;
  /** Default: xterm-256color. */
  term?: string | undefined;
}

/** Where to go on in the output of a terminal that exists. */
export interface ConnectPtyOptions extends PtyCallbacks {
  /** Go on at this offset of the output. Default: what the sandbox still keeps, from the beginning. */
  offset?: number | undefined;
}

const shell = "if command -v bash >/dev/null 2>&1; then exec bash; else exec sh; fi";
const sizeDefault = { cols: 80, rows: 24 };
/** Input that waits to be sent; more is a program that pastes faster than the terminal reads. */
const inputBytesMax = 16 * 1024 * 1024;

/** Starts a program on a terminal of its own and hands on what it prints. */
export async function createPty(
  processes: ProcessClient,
  onData: (data: Uint8Array) => void,
  options: CreatePtyOptions = {},
): Promise<Pty> {
  const { command = shell, cols = sizeDefault.cols, rows = sizeDefault.rows, term = "xterm-256color", onGap, ...rest } = options;
  const pid = await processes.start(command, { ...rest, stdin: true, pty: { term, cols, rows } });
  return new Pty(processes, pid, onData, { onGap });
}

/** A terminal in a sandbox. It lives on without us: `disconnect`, and connect again by pid and offset, also in a child of a fork. */
export class Pty {
  readonly pid: number;
  readonly #processes: ProcessClient;
  readonly #stop = new AbortController();
  readonly #exit: Promise<number>;
  #offset: number;
  #input: Uint8Array[] = [];
  #inputBytes = 0;
  #sending: Promise<void> | undefined;
  #resizing: Promise<void> = Promise.resolve();

  constructor(processes: ProcessClient, pid: number, onData: (data: Uint8Array) => void, { offset = 0, onGap }: ConnectPtyOptions = {}) {
    this.#processes = processes;
    this.pid = pid;
    this.#offset = offset;
    this.#exit = this.#follow(onData, onGap);
    this.#exit.catch(() => undefined); // seen by wait()
  }

  /** Where the output has been read to. */
  get offset(): number {
    return this.#offset;
  }

  /** Keeps the order of calls. Resolves when the sandbox has taken it. */
  sendInput(data: string | Uint8Array): Promise<void> {
    const bytes = typeof data === "string" ? new TextEncoder().encode(data) : data.slice();
    if (bytes.length === 0) return this.#sending ?? Promise.resolve();
    if (this.#inputBytes + bytes.length > inputBytesMax) {
      return Promise.reject(
        new AgentRunError("too much terminal input is waiting", {
          code: "rate_limited",
          cause: `${this.#inputBytes} bytes have not been taken yet`,
          remediation: "Await sendInput before sending more.",
        }),
      );
    }
    this.#input.push(bytes);
    this.#inputBytes += bytes.length;
    this.#sending ??= this.#send();
    return this.#sending;
  }

  resize(cols: number, rows: number): Promise<void> {
    this.#resizing = this.#resizing.catch(() => undefined).then(() => this.#processes.resize(this.pid, cols, rows));
    return this.#resizing;
  }

  /** SIGKILL to everything on the terminal. */
  async kill(): Promise<void> {
    await this.#processes.signal(this.pid, 9);
  }

  /** Stops listening; what runs on the terminal runs on. */
  disconnect(): void {
    this.#stop.abort(new Error("disconnected"));
  }

  /** The exit code; -1 when the terminal was disconnected or lost before the program ended. */
  wait(): Promise<number> {
    return this.#exit.catch(() => -1);
  }

  /** Why output ended before the program did; undefined while it goes on and after a proper end. */
  async failure(): Promise<unknown> {
    return this.#exit.then(
      () => undefined,
      (error) => error,
    );
  }

  async #follow(onData: (data: Uint8Array) => void, onGap: PtyCallbacks["onGap"]): Promise<number> {
    const events = this.#processes.output(this.pid, { stdoutFrom: this.#offset, signal: this.#stop.signal });
    for await (const event of events) {
      if (event.type === "exit") return event.exitCode;
      if (event.type === "gap") {
        this.#offset = event.to;
        onGap?.({ from: event.from, to: event.to });
      } else if (event.type === "stdout") {
        this.#offset = event.offset + event.data.length;
        onData(event.data);
      }
    }
    return -1;
  }

  /** One request at a time; what is typed meanwhile travels together in the next. */
  async #send(): Promise<void> {
    try {
      while (this.#input.length > 0) {
        const batch = concat(this.#input);
        this.#input = [];
        await this.#processes.writeStdin(this.pid, batch);
        this.#inputBytes -= batch.length;
      }
    } finally {
      // After a failure the rest is dropped: its callers hold the same promise.
      this.#input = [];
      this.#inputBytes = 0;
      this.#sending = undefined;
    }
  }
}

function concat(parts: readonly Uint8Array[]): Uint8Array {
  if (parts.length === 1) return parts[0]!;
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
