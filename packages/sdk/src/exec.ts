import { decodeBase64 } from "./base64.ts";
import type { ConnectClient, Message } from "./connect.ts";
import { AgentRunError, EXEC_TIMEOUT_EXIT_CODE, errorForCode, isObject, validateTimeout } from "./errors.ts";

/** A string is run by `/bin/sh -c`; a list is a program and its arguments, with no shell in between. */
export type Command = string | readonly string[];

/** How a program is run. */
export interface ExecOptions {
  /** Default: /workspace. */
  cwd?: string | undefined;
  /** Laid over the sandbox's environment. */
  env?: Readonly<Record<string, string>> | undefined;
  /** Name or number; default: the sandbox's own user. */
  user?: string | undefined;
  /** Default: the server's 30 seconds. When it is over the whole process group is killed. */
  timeoutSeconds?: number | undefined;
  /** Aborting it kills the whole process group. */
  signal?: AbortSignal | undefined;
}

/** Called with output while the program runs; a character may be cut between two calls. */
export interface OutputCallbacks {
  onStdout?: ((data: Uint8Array) => void) | undefined;
  onStderr?: ((data: Uint8Array) => void) | undefined;
}

/** How a program ended, with all that it printed. */
export interface ExecResult {
  /** 124 when the time-out killed it, -1 when a signal ended it. */
  exitCode: number;
  stdout: string;
  stderr: string;
  execTimeMs?: number;
}

/** What a program prints, a piece at a time, and its end. */
export type ExecEvent =
  | { readonly type: "stdout"; readonly data: Uint8Array }
  | { readonly type: "stderr"; readonly data: Uint8Array }
  /** The last event. */
  | { readonly type: "exit"; readonly exitCode: number; readonly execTimeMs: number };

/** Runs a program and yields what it prints, while it prints. Leaving the iteration before its end kills the process group. */
export async function* execStream(
  client: ConnectClient,
  command: Command,
  options: ExecOptions = {},
): AsyncGenerator<ExecEvent, void, undefined> {
  validateTimeout(options.timeoutSeconds);
  for await (const message of client.serverStream("ExecStream", execMessage(command, options), options.signal)) {
    if (typeof message.stdout === "string") yield { type: "stdout", data: decodeBase64(message.stdout) };
    else if (typeof message.stderr === "string") yield { type: "stderr", data: decodeBase64(message.stderr) };
    else if (isObject(message.exit)) {
      yield exitEvent(message.exit, client);
      return;
    }
  }
  throw new AgentRunError("the program's output ended before its exit status", {
    code: "exec_stream_truncated",
    cause: "the connection ended without the terminal exit frame",
    remediation: "Check with files or another exec what the program has done, then run it again if it is safe to.",
  });
}

function execMessage(command: Command, { cwd, env, timeoutSeconds }: ExecOptions): Message {
  return {
    ...program(command),
    ...(cwd === undefined ? {} : { cwd }),
    ...(env === undefined ? {} : { env: Object.entries(env).map(([key, value]) => ({ key, value })) }),
    ...(timeoutSeconds === undefined ? {} : { timeoutSeconds }),
  };
}

/** On this message a program is a command with arguments; without any the command is a line for the shell. */
function program(command: Command): Message {
  if (typeof command === "string") return { command };
  const [name, ...args] = requireArgv(command);
  return args.length > 0 ? { command: name, args } : { command: `exec '${name!.replaceAll("'", "'\\''")}'` };
}

export function requireArgv(argv: readonly string[]): readonly string[] {
  if (argv.length > 0 && argv[0] !== "") return argv;
  throw new AgentRunError("the command is empty", {
    code: "invalid_input",
    cause: "a command given as a list needs the program as its first element",
    remediation: "Pass a non-empty list, or a string for the shell.",
  });
}

function exitEvent(exit: Record<string, unknown>, client: ConnectClient): ExecEvent {
  if (typeof exit.error === "string" && exit.error) throw execFailed(client.redact(exit.error), "exec_stream_error");
  return { type: "exit", exitCode: Number(exit.exitCode ?? 0), execTimeMs: Number(exit.execTimeMs ?? 0) };
}

/** @param code - published TypeScript clients have one of their own for what the last frame of a stream tells */
export function execFailed(cause: string, code: "exec_failed" | "exec_stream_error" = "exec_failed"): AgentRunError {
  return new AgentRunError("the program could not be run", {
    code,
    cause,
    remediation: "Read the cause: check that the program, the working directory and the user exist in the sandbox.",
  });
}

/** What a blocking exec keeps of each stream; a program that prints more is for execStream or a file. */
const outputBytesMax = 64 * 1024 * 1024;

/**
 * Reads a program's events to the end and returns its result; the callbacks get the bytes meanwhile.
 *
 * @param deadlineSeconds - turns exit code 124 into an exec_timeout error; undefined leaves it a result
 * @throws exec_timeout, output_too_large
 */
export async function collect(
  events: AsyncIterable<ExecEvent>,
  callbacks: OutputCallbacks,
  deadlineSeconds: number | undefined,
): Promise<ExecResult> {
  const stdout = new OutputText("stdout");
  const stderr = new OutputText("stderr");
  for await (const event of events) {
    if (event.type === "stdout") {
      stdout.push(event.data);
      callbacks.onStdout?.(event.data);
    } else if (event.type === "stderr") {
      stderr.push(event.data);
      callbacks.onStderr?.(event.data);
    } else {
      if (event.exitCode === EXEC_TIMEOUT_EXIT_CODE && deadlineSeconds !== undefined) throw deadlineError(deadlineSeconds);
      return { exitCode: event.exitCode, stdout: stdout.text(), stderr: stderr.text(), execTimeMs: event.execTimeMs };
    }
  }
  throw new Error("execStream ended without an exit event");
}

function deadlineError(timeoutSeconds: number): AgentRunError {
  return errorForCode("the program ran into its time-out and was killed", {
    code: "exec_timeout",
    cause: `it ran for ${timeoutSeconds} s`,
    remediation: "Raise timeoutSeconds, split the work, or use execBackground.",
    context: { timeout_s: timeoutSeconds },
  });
}

/** Joins the bytes first: a character may be cut between two events. */
class OutputText {
  readonly #stream: string;
  readonly #decoder = new TextDecoder();
  #parts: string[] = [];
  #bytes = 0;

  constructor(stream: string) {
    this.#stream = stream;
  }

  push(data: Uint8Array): void {
    this.#bytes += data.length;
    if (this.#bytes > outputBytesMax) {
      throw new AgentRunError("the program prints more than a result can hold", {
        code: "output_too_large",
        cause: `${this.#stream} is over ${outputBytesMax} bytes; the program was stopped`,
        remediation: "Read it with execStream, or let the program write to a file and read that with files.readStream.",
      });
    }
    this.#parts.push(this.#decoder.decode(data, { stream: true }));
  }

  text(): string {
    return this.#parts.join("") + this.#decoder.decode();
  }
}
