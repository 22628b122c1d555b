/**
 * Daytona's sessions: shells that keep folder, variables and functions from command to command.
 *
 * A session is one background shell that reads command lines from its standard input. Everything about a command lies in a folder of its own
 * in the sandbox (the command, its two outputs, its exit code), so any client, and each child of a fork, finds it. What the shell itself
 * prints are the ids of commands that are done: that is what is waited for.
 */

import { NotFoundError } from "../errors.ts";
import type { ProcessInfo } from "../processes.ts";
import type { Sandbox as MitosSandbox } from "../sandbox.ts";
import { DaytonaConflictError, DaytonaNotFoundError, DaytonaSessionEndedError, invalidArgument, within } from "./errors.ts";

/** A command for the shell of a session. */
export interface SessionExecuteRequest {
  command: string;
  /** Not to wait for its end. Default: false. */
  runAsync?: boolean;
  /** Daytona's earlier name of it. */
  async?: boolean;
}

/** A command of a session, with what it has printed if it was waited for. */
export interface SessionExecuteResponse extends SessionCommandLogsResponse {
  cmdId: string;
  /** Not there for a command that is not waited for, or when the sandbox has lost it. */
  exitCode?: number;
}

/** What a command has printed until now. */
export interface SessionCommandLogsResponse {
  /** Standard output, then standard error. */
  output?: string;
  stdout?: string;
  stderr?: string;
}

/** A command of a session as it is listed. */
export interface SessionCommand {
  id: string;
  command: string;
  /** Not there while it runs. */
  exitCode?: number;
}

/** A session with its commands. */
export interface Session {
  sessionId: string;
  commands: SessionCommand[];
}

const root = "/tmp/.daytona-sessions";
/** By which the shell of a session is found among the processes. */
const mark = "daytona-session:";

export class Sessions {
  readonly #sandbox: MitosSandbox;

  constructor(sandbox: MitosSandbox) {
    this.#sandbox = sandbox;
  }

  async create(sessionId: string): Promise<void> {
    requireId(sessionId);
    await within(`session ${sessionId}`, 0, async () => {
      if ((await this.#shell(sessionId))?.state === "running") throw exists(sessionId);
      await this.#sandbox.files.remove(`${root}/${sessionId}`);
      await this.#sandbox.files.mkdir(`${root}/${sessionId}`);
      const shell = 'exec "$(command -v bash || command -v sh)" -s "$0"';
      await this.#sandbox.execBackground(["sh", "-c", shell, mark + sessionId], { stdin: true }).started;
    });
  }

  list(): Promise<Session[]> {
    return within("list of sessions", 0, async () => {
      const shells = (await this.#sandbox.processes()).filter((each) => each.state === "running").map(sessionIdOf);
      const ids = [...new Set(shells.filter((id) => id !== undefined))];
      return Promise.all(ids.map((id) => this.#session(id)));
    });
  }

  get(sessionId: string): Promise<Session> {
    return within(`session ${sessionId}`, 0, async () => {
      await this.#requireShell(sessionId);
      return this.#session(sessionId);
    });
  }

  /** Ends the shell, with what runs in it, and forgets its commands. */
  async delete(sessionId: string): Promise<void> {
    await within(`session ${sessionId}`, 0, async () => {
      const { pid, state } = await this.#requireShell(sessionId);
      if (state === "running") await this.#sandbox.connectProcess(pid).kill();
      await this.#sandbox.files.remove(`${root}/${sessionId}`);
    });
  }

  /** @param timeout - seconds to wait for its end, 0 for no limit; the command itself runs on */
  async execute(sessionId: string, request: SessionExecuteRequest, timeout: number): Promise<SessionExecuteResponse> {
    return within(`command in session ${sessionId}`, timeout, async (signal) => {
      const shell = await this.#requireShell(sessionId);
      if (shell.state !== "running") throw ended(sessionId);
      const cmdId = newCommandId();
      const folder = folderOf(sessionId, cmdId);
      await this.#sandbox.files.write(`${folder}/command`, `${request.command}\n`);
      // A builtin that reads the file in this shell: folder and variables stay, and a syntax error is the command's own.
      const run = `command . ${folder}/command >${folder}/stdout 2>${folder}/stderr </dev/null`;
      const process = this.#sandbox.connectProcess(shell.pid);
      await process.writeStdin(`${run}; command echo $? >${folder}/exit; command echo ${cmdId}\n`);
      if (request.runAsync || request.async) return { cmdId };
      const shellExit = await this.#done(shell, cmdId, signal);
      const [logs, ownExit] = await Promise.all([this.#logs(folder), this.#exitCode(folder)]);
      const exitCode = ownExit ?? shellExit;
      return { cmdId, ...logs, ...(exitCode === undefined ? {} : { exitCode }) };
    });
  }

  command(sessionId: string, commandId: string): Promise<SessionCommand> {
    return within(`command ${commandId}`, 0, () => this.#command(folderOf(sessionId, commandId), commandId));
  }

  /** What it has printed until now. With callbacks: from its beginning, and what it goes on to print; resolves at its end. */
  logs(sessionId: string, commandId: string, onOutput?: OutputOf<(chunk: string) => void>): Promise<SessionCommandLogsResponse> {
    return within(`logs of command ${commandId}`, 0, async () => {
      const folder = folderOf(sessionId, commandId);
      await this.#sandbox.files.stat(folder);
      if (onOutput) await this.#follow(sessionId, commandId, onOutput);
      return this.#logs(folder);
    });
  }

  async #follow(sessionId: string, commandId: string, onOutput: OutputOf<(chunk: string) => void>): Promise<void> {
    const folder = folderOf(sessionId, commandId);
    const readers = (["stdout", "stderr"] as const).map((name) => this.#reader(`${folder}/${name}`, onOutput[name]));
    const shell = await this.#requireShell(sessionId);
    const stop = new AbortController();
    let done = (await this.#exitCode(folder)) !== undefined;
    const end = done ? undefined : this.#done({ ...shell, stdoutBytes: 0 }, commandId, stop.signal).then(() => (done = true));
    end?.catch(() => undefined); // seen by the race below, which may come later
    try {
      for (;;) {
        // What was printed before the end was seen is read after it.
        const last = done;
        for (const read of readers) await read();
        if (last) return;
        await Promise.race([end, new Promise((resolve) => setTimeout(resolve, readAgainMs))]);
      }
    } finally {
      stop.abort();
    }
  }

  /** Hands on what a growing file has gained since the last call. */
  #reader(path: string, onText: (chunk: string) => void): () => Promise<void> {
    const decoder = new TextDecoder();
    let offset = 0;
    return async () => {
      const { size } = (await this.#sandbox.files.stat(path).catch(noneWhenMissing)) ?? { size: 0 };
      if (size <= offset) return;
      const stream = await this.#sandbox.files.readStream(path, { offset, length: size - offset });
      const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
      offset += bytes.length;
      const text = decoder.decode(bytes, { stream: true });
      if (text) onText(text);
    };
  }

  /** Waits until the shell says that a command is done. @returns the shell's exit code when the command ended the shell */
  async #done(shell: ProcessInfo, commandId: string, signal: AbortSignal | undefined): Promise<number | undefined> {
    let printed = "";
    const events = this.#sandbox.connectProcess(shell.pid).output({ stdoutFrom: shell.stdoutBytes, signal });
    for await (const event of events) {
      if (event.type === "exit") return event.exitCode;
      if (event.type !== "stdout") continue;
      printed += new TextDecoder().decode(event.data);
      if (printed.split("\n").includes(commandId)) return undefined;
    }
    return undefined;
  }

  async #session(sessionId: string): Promise<Session> {
    const ids = (await this.#sandbox.files.list(`${root}/${sessionId}`)).map(({ name }) => name).sort();
    return { sessionId, commands: await Promise.all(ids.map((id) => this.#command(folderOf(sessionId, id), id))) };
  }

  async #command(folder: string, id: string): Promise<SessionCommand> {
    const [command, exitCode] = await Promise.all([this.#sandbox.files.read(`${folder}/command`), this.#exitCode(folder)]);
    return { id, command: command.slice(0, -1), ...(exitCode === undefined ? {} : { exitCode }) };
  }

  async #logs(folder: string): Promise<{ output: string; stdout: string; stderr: string }> {
    const names = ["stdout", "stderr"] as const;
    const read = (name: string) => this.#sandbox.files.read(`${folder}/${name}`).catch(noneWhenMissing);
    const [stdout = "", stderr = ""] = await Promise.all(names.map(read));
    return { output: stdout + stderr, stdout, stderr };
  }

  async #exitCode(folder: string): Promise<number | undefined> {
    const text = await this.#sandbox.files.read(`${folder}/exit`).catch(noneWhenMissing);
    return text ? Number(text) : undefined;
  }

  /** The newest of the id: one of an earlier life may be listed for a while. */
  async #shell(sessionId: string): Promise<ProcessInfo | undefined> {
    const shells = (await this.#sandbox.processes()).filter((each) => sessionIdOf(each) === sessionId);
    return shells.find(({ state }) => state === "running") ?? shells.at(-1);
  }

  async #requireShell(sessionId: string): Promise<ProcessInfo> {
    const shell = await this.#shell(sessionId);
    if (shell) return shell;
    throw new DaytonaNotFoundError(`there is no session ${sessionId}. Create it with createSession.`, {
      code: "not_found",
      statusCode: 404,
      remediation: "Create it with createSession.",
    });
  }
}

type OutputOf<T> = Readonly<Record<"stdout" | "stderr", T>>;

/** How often the output of a command is looked at while it runs. */
const readAgainMs = 200;

function sessionIdOf({ command }: ProcessInfo): string | undefined {
  return new RegExp(`${mark}([A-Za-z0-9_.-]+)`).exec(command)?.[1];
}

function folderOf(sessionId: string, commandId: string): string {
  for (const id of [sessionId, commandId]) requireId(id);
  return `${root}/${sessionId}/${commandId}`;
}

/** The ids become parts of paths and of the shell's input. */
function requireId(id: string): void {
  if (/^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$/.test(id)) return;
  throw invalidArgument(
    `${JSON.stringify(id)} is not an id`,
    "Use 1 to 64 letters, digits, `_`, `.` and `-`, beginning with a letter or digit.",
  );
}

/** Their order is that in which they were given. */
function newCommandId(): string {
  return `${Date.now().toString(36).padStart(9, "0")}-${crypto.randomUUID().slice(0, 8)}`;
}

function noneWhenMissing(error: unknown): undefined {
  if (error instanceof NotFoundError) return undefined;
  throw error;
}

function ended(sessionId: string): DaytonaSessionEndedError {
  const remediation = "Delete it and create it again.";
  return new DaytonaSessionEndedError(`the shell of session ${sessionId} has ended. ${remediation}`, {
    code: "idle_timeout",
    statusCode: 410,
    remediation,
  });
}

function exists(sessionId: string): DaytonaConflictError {
  const remediation = "Use it, or delete it first.";
  return new DaytonaConflictError(`session ${sessionId} exists. ${remediation}`, { code: "already_exists", statusCode: 409, remediation });
}
