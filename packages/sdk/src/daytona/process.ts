import { limits } from "@mitos/protocol";
import type { Execution } from "../run-code.ts";
import type { Sandbox as MitosSandbox } from "../sandbox.ts";
import { notSupported, requireTimeout, translated } from "./errors.ts";
import { inWorkDir } from "./paths.ts";
import {
  type Session,
  type SessionCommand,
  type SessionCommandLogsResponse,
  type SessionExecuteRequest,
  type SessionExecuteResponse,
  Sessions,
} from "./sessions.ts";

/** What a program has left besides its exit code. */
export interface ExecutionArtifacts {
  stdout: string;
}

/** A program that has ended. */
export interface ExecuteResponse {
  exitCode: number;
  /** What was printed to standard output. */
  result: string;
  artifacts?: ExecutionArtifacts;
  /** Beyond Daytona's shape: what was printed to standard error. */
  stderr: string;
}

/** With either of these the code runs as a program of its own, not in the live interpreter. */
export class CodeRunParams {
  argv?: string[];
  env?: Record<string, string>;
}

/** Languages of `codeRun`. */
export const CodeLanguage = { PYTHON: "python", TYPESCRIPT: "typescript", JAVASCRIPT: "javascript" } as const;
export type CodeLanguage = (typeof CodeLanguage)[keyof typeof CodeLanguage];

/** Programs and code in one sandbox. Time-outs are seconds; 0 means the longest that there is, a day. */
export class Process {
  readonly #sandbox: MitosSandbox;
  readonly #language: CodeLanguage;
  readonly #sessions: Sessions;

  constructor(sandbox: MitosSandbox, language: CodeLanguage) {
    this.#sandbox = sandbox;
    this.#language = language;
    this.#sessions = new Sessions(sandbox);
  }

  /**
   * Runs a line in the shell.
   *
   * @param cwd - default, and the base of a relative one: /workspace
   * @param timeout - default: 30
   * @throws DaytonaProcessExecutionTimeoutError when the time is up; the program is killed
   */
  async executeCommand(
    command: string,
    cwd?: string,
    env?: Record<string, string>,
    timeout: number = limits.execTimeoutSecondsDefault,
  ): Promise<ExecuteResponse> {
    const timeoutSeconds = secondsOf(timeout);
    const options = { cwd: cwd === undefined ? undefined : inWorkDir(cwd), env, timeoutSeconds };
    const { exitCode, stdout, stderr } = await translated(() => this.#sandbox.exec(command, options));
    return response(exitCode, stdout, stderr);
  }

  /** The name in Daytona's Python SDK. */
  exec(command: string, cwd?: string, env?: Record<string, string>, timeout?: number): Promise<ExecuteResponse> {
    return this.executeCommand(command, cwd, env, timeout);
  }

  /**
   * Runs code in the sandbox's language. Python and JavaScript run in the live interpreter, which keeps its variables from call to call.
   * `result` is what the code printed, or the value of its last expression when it printed nothing; after an exception, what it printed
   * and the traceback, with exit code 1. TypeScript runs as a program of its own.
   *
   * @param timeout - default: 60
   * @throws DaytonaError with `not_supported` for TypeScript where the sandbox's Node is older than 22.18
   */
  async codeRun(code: string, params?: CodeRunParams, timeout: number = limits.runCodeTimeoutSecondsDefault): Promise<ExecuteResponse> {
    const timeoutSeconds = secondsOf(timeout);
    const ownProgram = this.#language === CodeLanguage.TYPESCRIPT || params?.argv !== undefined || params?.env !== undefined;
    if (!ownProgram) {
      return fromExecution(await translated(() => this.#sandbox.runCode(code, { language: this.#language, timeoutSeconds })));
    }
    const program = [...interpreters[this.#language], code, ...argumentsOf(this.#language, params?.argv)];
    const options = { env: params?.env, timeoutSeconds };
    const { exitCode, stdout, stderr } = await translated(() => this.#sandbox.exec(program, options));
    if (exitCode === invalidOptionExitCode && stderr.includes("--input-type")) {
      throw notSupported("TypeScript in the sandbox's Node is", "Use a template with Node 22.18 or newer, or the language javascript.");
    }
    return response(exitCode, exitCode === 0 ? stdout : stdout + stderr, stderr);
  }

  /** A shell that keeps folder, variables and functions from command to command. @throws DaytonaConflictError for an id that is in use */
  createSession(sessionId: string): Promise<void> {
    return this.#sessions.create(sessionId);
  }

  getSession(sessionId: string): Promise<Session> {
    return this.#sessions.get(sessionId);
  }

  listSessions(): Promise<Session[]> {
    return this.#sessions.list();
  }

  /** Ends the shell and what runs in it. */
  deleteSession(sessionId: string): Promise<void> {
    return this.#sessions.delete(sessionId);
  }

  /**
   * Commands of a session run one after the other, and read an empty input.
   *
   * @param timeout - how long to wait for its end; the command runs on. Default: no limit
   */
  executeSessionCommand(sessionId: string, request: SessionExecuteRequest, timeout = 0): Promise<SessionExecuteResponse> {
    return this.#sessions.execute(sessionId, request, timeout);
  }

  getSessionCommand(sessionId: string, commandId: string): Promise<SessionCommand> {
    return this.#sessions.command(sessionId, commandId);
  }

  /** What it has printed until now; with callbacks, all that it prints until its end. */
  getSessionCommandLogs(sessionId: string, commandId: string): Promise<SessionCommandLogsResponse>;
  getSessionCommandLogs(
    sessionId: string,
    commandId: string,
    onStdout: (chunk: string) => void,
    onStderr: (chunk: string) => void,
  ): Promise<void>;
  async getSessionCommandLogs(
    sessionId: string,
    commandId: string,
    onStdout?: (chunk: string) => void,
    onStderr?: (chunk: string) => void,
    // biome-ignore lint/suspicious/noConfusingVoidType: one of the two overloads answers nothing
  ): Promise<SessionCommandLogsResponse | void> {
    if (!onStdout && !onStderr) return this.#sessions.logs(sessionId, commandId);
    await this.#sessions.logs(sessionId, commandId, { stdout: onStdout ?? nobody, stderr: onStderr ?? nobody });
  }

  /** @throws DaytonaError with `not_supported`, always */
  async sendSessionCommandInput(_sessionId: string, _commandId: string, _data: string): Promise<never> {
    throw notSupported(
      "input for a session's command is",
      "Use sandbox.sandbox.execBackground with stdin: true, or sandbox.sandbox.createPty.",
    );
  }
}

function nobody(): void {}

const interpreters: Readonly<Record<CodeLanguage, readonly string[]>> = {
  python: ["python3", "-c"],
  javascript: ["node", "-e"],
  typescript: ["node", "--input-type=module-typescript", "-e"],
};

/** Of Node, for an option that it does not know. */
const invalidOptionExitCode = 9;

/** Node takes what follows as its own options otherwise. */
function argumentsOf(language: CodeLanguage, argv: readonly string[] = []): readonly string[] {
  return language === CodeLanguage.PYTHON || argv.length === 0 ? argv : ["--", ...argv];
}

function fromExecution({ text, logs, error }: Execution): ExecuteResponse {
  const stdout = logs.stdout.join("");
  const stderr = logs.stderr.join("");
  if (!error) return response(0, stdout || (text ?? ""), stderr);
  const traceback = error.traceback.length > 0 ? error.traceback.join("\n") : `${error.name}: ${error.value}`;
  return response(1, stdout + traceback, stderr + traceback);
}

function response(exitCode: number, result: string, stderr: string): ExecuteResponse {
  return { exitCode, result, artifacts: { stdout: result }, stderr };
}

function secondsOf(timeout: number): number {
  requireTimeout(timeout);
  return timeout === 0 ? limits.timeoutSecondsMax : timeout;
}
