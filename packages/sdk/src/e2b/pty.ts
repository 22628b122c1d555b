import type { ProcessClient } from "../processes.ts";
import { CommandHandle, kill, sendStdin } from "./command-handle.ts";
import { positionOf, timeoutMsDefault } from "./commands.ts";
import { homeOf, userOf } from "./home.ts";
import { toSeconds } from "./options.ts";
import { type RequestOpts, request, withTimeout } from "./request.ts";

/** Options of `pty.create`. */
export interface PtyCreateOpts extends RequestOpts {
  cols: number;
  rows: number;
  onData: (data: Uint8Array) => void | Promise<void>;
  /** Default: 60,000; 0 = none. The server counts whole seconds, rounded up. */
  timeoutMs?: number | undefined;
  user?: string | undefined;
  envs?: Record<string, string> | undefined;
  /** Default: `/home/user`. */
  cwd?: string | undefined;
}

/** Options of `pty.connect`. */
export type PtyConnectOpts = Pick<PtyCreateOpts, "onData" | "timeoutMs"> & RequestOpts;

const shell = ["/bin/bash", "-i", "-l"];

/** The terminals of one sandbox. */
export class Pty {
  readonly #processes: ProcessClient;
  readonly #requestTimeoutMs: number | undefined;

  constructor(processes: ProcessClient, requestTimeoutMs?: number) {
    this.#processes = processes;
    this.#requestTimeoutMs = requestTimeoutMs;
  }

  /** A terminal with a login shell on it. */
  async create(opts: PtyCreateOpts): Promise<CommandHandle> {
    const { cols, rows, onData, timeoutMs = timeoutMsDefault } = opts;
    const seconds = toSeconds(timeoutMs);
    const start = {
      cwd: homeOf(opts.cwd),
      env: opts.envs,
      user: userOf(opts.user),
      stdin: true,
      pty: { term: "xterm-256color", cols, rows },
      timeoutSeconds: seconds > 0 ? seconds : undefined,
    };
    const pid = await request("process", this.#opts(opts), (stop) => this.#processes.start(shell, start, stop));
    return new CommandHandle(this.#processes, pid, { onPty: onData, startedWithTimeoutMs: timeoutMs });
  }

  /** Goes on with a terminal that runs, from what it prints next. @throws NotFoundError when it does not run */
  async connect(pid: number, opts?: PtyConnectOpts): Promise<CommandHandle> {
    const { onData = () => undefined, timeoutMs = timeoutMsDefault, signal } = opts ?? {};
    const at = await positionOf(this.#processes, pid, this.#opts(opts ?? {}));
    return new CommandHandle(this.#processes, pid, { onPty: onData, listenMs: timeoutMs, signal, ...at });
  }

  sendInput(pid: number, data: Uint8Array, opts: RequestOpts = {}): Promise<void> {
    return sendStdin(this.#processes, pid, data, this.#opts(opts));
  }

  resize(pid: number, { cols, rows }: { cols: number; rows: number }, opts: RequestOpts = {}): Promise<void> {
    return request("process", this.#opts(opts), () => this.#processes.resize(pid, cols, rows));
  }

  /** @returns false when it does not run */
  kill(pid: number, opts: RequestOpts = {}): Promise<boolean> {
    return kill(this.#processes, pid, this.#opts(opts));
  }

  #opts(opts: RequestOpts): RequestOpts {
    return withTimeout(opts, this.#requestTimeoutMs);
  }
}
