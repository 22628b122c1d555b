import { limits } from "@mitos/protocol";
import type { Execution } from "../run-code.ts";
import type { Sandbox as MitosSandbox } from "../sandbox.ts";
import { DaytonaError, requireTimeout, translated } from "./errors.ts";
import { inWorkDir } from "./paths.ts";

export interface ExecutionArtifacts {
  stdout: string;
}

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

  constructor(sandbox: MitosSandbox, language: CodeLanguage) {
    this.#sandbox = sandbox;
    this.#language = language;
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
    if (exitCode === invalidOptionExitCode && stderr.includes("--input-type")) throw noTypeScript();
    return response(exitCode, exitCode === 0 ? stdout : stdout + stderr, stderr);
  }

  createSession(_sessionId: string): Promise<never> {
    return noSessions("createSession");
  }

  getSession(_sessionId: string): Promise<never> {
    return noSessions("getSession");
  }

  executeSessionCommand(_sessionId: string, _request: { command: string; runAsync?: boolean }, _timeout?: number): Promise<never> {
    return noSessions("executeSessionCommand");
  }

  deleteSession(_sessionId: string): Promise<never> {
    return noSessions("deleteSession");
  }

  listSessions(): Promise<never> {
    return noSessions("listSessions");
  }
}

const interpreters: Readonly<Record<CodeLanguage, readonly string[]>> = {
  python: ["python3", "-c"],
  javascript: ["node", "-e"],
  typescript: ["node", "--input-type=module-typescript", "-e"],
};

/** Of Node, for an option that it does not know. */
const invalidOptionExitCode = 9;

function noTypeScript(): DaytonaError {
  const remediation = "Use a template with Node 22.18 or newer, or the language javascript.";
  return new DaytonaError(`the sandbox's Node runs no TypeScript. ${remediation}`, { code: "not_supported", remediation });
}

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

async function noSessions(method: string): Promise<never> {
  const remediation =
    "Use sandbox.sandbox.execBackground for a program that runs on, sandbox.sandbox.createPty for a shell that keeps its state, or process.codeRun, whose interpreter does.";
  throw new DaytonaError(`process.${method} is not supported. ${remediation}`, { code: "not_supported", remediation });
}
