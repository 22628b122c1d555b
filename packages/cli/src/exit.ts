import type { AgentRunError } from "@mitos/sdk";

/** The exit codes of the command line (docs/cli.md). A command in a sandbox passes its own code through. */
export const exitCodes = { ok: 0, failure: 1, usage: 2, notFound: 3, timedOut: 124, interrupted: 130 } as const;

/** Ends a command with this code, after it has said everything itself. */
export class Exit extends Error {
  readonly exitCode: number;

  constructor(exitCode: number) {
    super(`exit ${exitCode}`);
    this.exitCode = exitCode;
  }
}

/** What the user got wrong; printed without a stack, exit code 2. */
export class UsageError extends Error {
  readonly remedy: string | undefined;

  constructor(message: string, remedy?: string) {
    super(message);
    this.remedy = remedy;
  }
}

/** A failure on this machine, with what to do next; exit code 1 unless another is given. */
export class CommandError extends Error {
  readonly remedy: string;
  readonly detail: string;
  readonly exitCode: number;

  constructor(message: string, detail: string, remedy: string, exitCode: number = exitCodes.failure) {
    super(message);
    this.detail = detail;
    this.remedy = remedy;
    this.exitCode = exitCode;
  }
}

export interface Failure {
  readonly exitCode: number;
  readonly message: string;
  readonly cause?: string | undefined;
  readonly nextStep?: string | undefined;
}

export function toFailure(error: unknown): Failure {
  if (error instanceof UsageError) return { exitCode: exitCodes.usage, message: error.message, nextStep: error.remedy };
  if (error instanceof CommandError) {
    return { exitCode: error.exitCode, message: error.message, cause: error.detail, nextStep: error.remedy };
  }
  if (isAgentRunError(error)) {
    return { exitCode: exitCodeOf(error), message: error.message, cause: error.errorCause, nextStep: nextStepOf(error) };
  }
  const foreign = foreignCatalogued(error);
  if (foreign) return foreign;
  return internal(error);
}

/** A server names its routes; whoever types commands is told the command. */
function nextStepOf({ code, remediation }: AgentRunError): string {
  return remediation.includes("/v1/") ? (commandFor[code] ?? remediation) : remediation;
}

const commandFor: Readonly<Record<string, string>> = {
  not_found: "Check the id or path; `mitos sandbox ls` and `mitos template ls` list what exists.",
  sandbox_not_running: "`mitos sandbox resume` wakes a paused one; create a new one if it has failed.",
};

/** By its shape: the SDK is loaded only by commands that use it, and an error of it exists only then. */
function isAgentRunError(error: unknown): error is AgentRunError {
  return error instanceof Error && "code" in error && "errorCause" in error && "remediation" in error;
}

/** What nobody foresaw: a defect of ours. The stack is for those who look into it. */
function internal(error: unknown): Failure {
  const isDebugging = Boolean(process.env.MITOS_DEBUG);
  const message = error instanceof Error ? error.message : String(error);
  return {
    exitCode: exitCodes.failure,
    message: `mitos itself failed: ${message.split("\n", 1)[0]}`,
    cause: isDebugging && error instanceof Error ? error.stack : undefined,
    nextStep: isDebugging ? "Report it, with this." : "Run it again with MITOS_DEBUG=1, and report what it prints then.",
  };
}

function exitCodeOf(error: AgentRunError): number {
  if (error.code === "not_found" || error.code === "idle_timeout") return exitCodes.notFound;
  if (error.code === "exec_timeout" || error.code === "wait_timeout") return exitCodes.timedOut;
  if (error.code === "canceled") return exitCodes.interrupted;
  if (error.code === "invalid_sandbox_id") return exitCodes.usage;
  return exitCodes.failure;
}

/** An error of the catalogue that was thrown in this process (by the engine of `serve`), not answered by a server. */
function foreignCatalogued(error: unknown): Failure | undefined {
  if (!(error instanceof Error) || !("toEnvelope" in error) || typeof error.toEnvelope !== "function") return undefined;
  const { error: envelope } = error.toEnvelope() as { error: { message: string; cause?: string; remediation: string } };
  return { exitCode: exitCodes.failure, message: envelope.message, cause: envelope.cause, nextStep: envelope.remediation };
}
