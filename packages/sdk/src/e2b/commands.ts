import type { ProcessInfo as NativeProcessInfo, ProcessClient } from "../processes.ts";
import { CommandHandle, type CommandResult, closeStdin, kill, sendStdin } from "./command-handle.ts";
import { NotFoundError } from "./errors.ts";
import { homeOf, userOf } from "./home.ts";
import { toSeconds } from "./options.ts";
import { type RequestOpts, request, withTimeout } from "./request.ts";

/** Options of calls about a command. */
export type CommandRequestOpts = RequestOpts;

/** Options of `commands.run`. */
export interface CommandStartOpts extends CommandRequestOpts {
  background?: boolean | undefined;
  /** Default: `/home/user`. */
  cwd?: string | undefined;
  /** Default: the sandbox's own user, which is also what `user` means. */
  user?: string | undefined;
  envs?: Record<string, string> | undefined;
  onStdout?: ((data: string) => void | Promise<void>) | undefined;
  onStderr?: ((data: string) => void | Promise<void>) | undefined;
  /** Whether sendStdin will be used. Default: false, the command reads an empty input. */
  stdin?: boolean | undefined;
  /** Default: 60,000, in the background too; 0 = none. The server counts whole seconds, rounded up. */
  timeoutMs?: number | undefined;
}

/** Options of `commands.connect`. */
export type CommandConnectOpts = Pick<CommandStartOpts, "onStdout" | "onStderr" | "timeoutMs"> & CommandRequestOpts;

/** A command or terminal that runs. */
export interface ProcessInfo {
  pid: number;
  /** Never set: there are no tags here. */
  tag?: string;
  cmd: string;
  args: string[];
  /** Always empty: the server does not tell what a process was given. */
  envs: Record<string, string>;
  /** Never set, for the same reason. */
  cwd?: string;
}

export const timeoutMsDefault = 60_000;
/** What E2B runs a command with: `-l` reads the profile, so that what an installation has put there counts. */
const shell = ["/bin/bash", "-l", "-c"] as const;

/** Commands and terminals of one sandbox. */
export class Commands {
  readonly #processes: ProcessClient;
  readonly #requestTimeoutMs: number | undefined;

  constructor(processes: ProcessClient, requestTimeoutMs?: number) {
    this.#processes = processes;
    this.#requestTimeoutMs = requestTimeoutMs;
  }

  /** What runs now. */
  async list(opts: CommandRequestOpts = {}): Promise<ProcessInfo[]> {
    const rows = await request("process", this.#opts(opts), () => this.#processes.list());
    return rows.filter(({ state }) => state === "running").map(toProcessInfo);
  }

  /** @throws NotFoundError when there is no such process */
  sendStdin(pid: number, data: string | Uint8Array, opts: CommandRequestOpts = {}): Promise<void> {
    return sendStdin(this.#processes, pid, data, this.#opts(opts));
  }

  closeStdin(pid: number, opts: CommandRequestOpts = {}): Promise<void> {
    return closeStdin(this.#processes, pid, this.#opts(opts));
  }

  /** SIGKILL to it and what it has started. @returns false when it does not run */
  kill(pid: number, opts: CommandRequestOpts = {}): Promise<boolean> {
    return kill(this.#processes, pid, this.#opts(opts));
  }

  /** Listens to a running command, from what it prints next. @throws NotFoundError when it does not run */
  async connect(pid: number, opts: CommandConnectOpts = {}): Promise<CommandHandle> {
    const { onStdout, onStderr, timeoutMs = timeoutMsDefault, signal } = opts;
    const at = await positionOf(this.#processes, pid, this.#opts(opts));
    return new CommandHandle(this.#processes, pid, { onStdout, onStderr, listenMs: timeoutMs, signal, ...at });
  }

  /** Runs `cmd` with `bash -l -c`. @throws CommandExitError when it ends with another code than 0; TimeoutError */
  run(cmd: string, opts?: CommandStartOpts & { background?: false | undefined }): Promise<CommandResult>;
  run(cmd: string, opts: CommandStartOpts & { background: true }): Promise<CommandHandle>;
  run(cmd: string, opts?: CommandStartOpts): Promise<CommandHandle | CommandResult>;
  async run(cmd: string, opts: CommandStartOpts = {}): Promise<CommandHandle | CommandResult> {
    const { timeoutMs = timeoutMsDefault, onStdout, onStderr, background, signal } = opts;
    const seconds = toSeconds(timeoutMs);
    const start = {
      cwd: homeOf(opts.cwd),
      env: opts.envs,
      user: userOf(opts.user),
      stdin: opts.stdin,
      timeoutSeconds: seconds > 0 ? seconds : undefined,
    };
    const pid = await request("process", this.#opts(opts), (stop) => this.#processes.start([...shell, cmd], start, stop));
    const listening = { onStdout, onStderr, startedWithTimeoutMs: timeoutMs };
    if (background) return new CommandHandle(this.#processes, pid, listening);
    const handle = new CommandHandle(this.#processes, pid, { ...listening, signal });
    try {
      return await handle.wait();
    } finally {
      // Cancelled, or a callback threw: nobody else knows of it.
      if (handle.exitCode === undefined) await handle.kill().catch(() => undefined);
    }
  }

  #opts(opts: RequestOpts): RequestOpts {
    return withTimeout(opts, this.#requestTimeoutMs);
  }
}

/** Where the output of a running process ends now. @throws NotFoundError when it does not run */
export async function positionOf(
  processes: ProcessClient,
  pid: number,
  opts: RequestOpts,
): Promise<{ stdoutFrom: number; stderrFrom: number }> {
  const rows = await request("process", opts, () => processes.list());
  const row = rows.find((row) => row.pid === pid && row.state === "running");
  if (!row) throw new NotFoundError(`no process ${pid} runs in the sandbox; commands.list tells which do`);
  return { stdoutFrom: row.stdoutBytes, stderrFrom: row.stderrBytes };
}

/** The server gives a command line in one piece. Those of `run` are told apart again; another one is left whole. */
export function toProcessInfo({ pid, command }: Pick<NativeProcessInfo, "pid" | "command">): ProcessInfo {
  const [program, ...flags] = shell;
  const prefix = `${shell.join(" ")} `;
  const parts = command.startsWith(prefix) ? { cmd: program, args: [...flags, command.slice(prefix.length)] } : { cmd: command, args: [] };
  return { pid, ...parts, envs: {} };
}
