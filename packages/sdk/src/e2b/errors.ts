/**
 * E2B's error classes, and the one place where an error of ours becomes one of them. The error of ours stays as `cause`, with its code,
 * its remedy and its context.
 */

import type { ErrorCode } from "@mitos/protocol";
import { AgentRunError } from "../errors.ts";

/** The parent of most errors. `cause` is the error of ours behind it, with its code, remedy and context. */
export class SandboxError extends Error {
  /** HTTP status of the answer, when there was one. */
  declare statusCode?: number;

  constructor(message?: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** A command, a cell, a watch or a request ran into its time-out, or the sandbox did. */
export class TimeoutError extends SandboxError {}
/** An argument is wrong, or an option cannot be honoured here; the message says what to do instead. */
export class InvalidArgumentError extends SandboxError {}
/** It is too large for the sandbox, or a limit inside it is reached. */
export class NotEnoughSpaceError extends SandboxError {}
/** A process, a context or a template is not there; also the parent of the two below. */
export class NotFoundError extends SandboxError {}
/** A path is not there. */
export class FileNotFoundError extends NotFoundError {}
/** The sandbox is not known, has ended, or is paused. */
export class SandboxNotFoundError extends NotFoundError {}
/** Never thrown: in E2B it means an old template. */
export class TemplateError extends SandboxError {}
/** Too much at once; `cause.context.retry_after_ms` says when to try again. */
export class RateLimitError extends SandboxError {}

/** Not a SandboxError, as in E2B. */
export class AuthenticationError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** The server cannot do it now and has changed nothing. Not a SandboxError, as in E2B. */
export class ServiceBusyError extends Error {
  readonly statusCode = 503;

  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** A template could not be built. Not a SandboxError, as in E2B. */
export class BuildError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** What was asked about. The same code is another class for another thing: `not_found` is a file's, a process's or the sandbox's own. */
export type Subject = "sandbox" | "template" | "file" | "process" | "code";

type ErrorClass = new (message: string, options?: ErrorOptions) => Error;
type ClientCode =
  | "transport_error"
  | "invalid_response"
  | "invalid_sandbox_id"
  | "fork_unavailable"
  | "exec_stream_error"
  | "exec_stream_truncated"
  | "run_code_stream_truncated"
  | "output_too_large";

const missing = {
  sandbox: SandboxNotFoundError,
  template: NotFoundError,
  file: FileNotFoundError,
  process: NotFoundError,
  code: NotFoundError,
};
/** A sandbox that does not run: E2B's calls into it end with a time-out, those that start something in it or are about it with a not-found. */
const gone = {
  sandbox: SandboxNotFoundError,
  template: SandboxNotFoundError,
  file: TimeoutError,
  process: SandboxNotFoundError,
  code: TimeoutError,
};
const silent = { sandbox: ServiceBusyError, template: ServiceBusyError, file: TimeoutError, process: TimeoutError, code: TimeoutError };

const classes: Readonly<Record<ErrorCode | ClientCode, ErrorClass | Readonly<Record<Subject, ErrorClass>>>> = {
  already_exists: SandboxError,
  body_too_large: InvalidArgumentError,
  budget_exhausted: SandboxError,
  build_failed: BuildError,
  canceled: TimeoutError,
  conflict: SandboxError,
  exec_failed: InvalidArgumentError,
  exec_timeout: TimeoutError,
  failed_precondition: InvalidArgumentError,
  file_failed: SandboxError,
  forbidden: SandboxError,
  idle_timeout: gone,
  internal: SandboxError,
  invalid_input: InvalidArgumentError,
  invalid_json: InvalidArgumentError,
  not_found: missing,
  not_supported: SandboxError,
  oom_killed: gone,
  permission_denied: SandboxError,
  quota_exceeded: RateLimitError,
  rate_limited: RateLimitError,
  sandbox_exhausted: NotEnoughSpaceError,
  sandbox_not_running: gone,
  secret_inheritance_denied: SandboxError,
  snapshot_incompatible: SandboxError,
  timeout_too_large: InvalidArgumentError,
  too_many_streams: RateLimitError,
  unauthorized: AuthenticationError,
  unavailable: silent,
  transport_error: SandboxError,
  invalid_response: SandboxError,
  invalid_sandbox_id: InvalidArgumentError,
  fork_unavailable: TimeoutError,
  exec_stream_error: InvalidArgumentError,
  exec_stream_truncated: SandboxError,
  run_code_stream_truncated: SandboxError,
  output_too_large: SandboxError,
};

/** Errors that are no AgentRunError, such as one that a callback threw, stay what they are. */
export function toE2BError(error: unknown, subject: Subject): unknown {
  if (!(error instanceof AgentRunError)) return error;
  const Mapped = classFor(error, subject);
  const mapped = new Mapped(describe(error), { cause: error });
  if (mapped instanceof SandboxError && error.status !== undefined) mapped.statusCode = error.status;
  return mapped;
}

function classFor(error: AgentRunError, subject: Subject): ErrorClass {
  const known = Object.hasOwn(classes, error.code) ? classes[error.code as ErrorCode] : SandboxError;
  if (typeof known === "function") return known;
  return (known === missing && isAboutSandbox(error) ? gone : known)[subject];
}

/** The server's words for a sandbox that it does not have, or has no more, to a call that goes into it. */
function isAboutSandbox({ errorCause }: AgentRunError): boolean {
  return /\bno sandbox has the id\b/.test(errorCause);
}

function describe({ message, errorCause, remediation }: AgentRunError): string {
  const what = errorCause ? `${message}: ${errorCause}` : message;
  return remediation ? `${what}. ${remediation}` : what;
}

/** Whether the sandbox that a call was about is not there: unknown, or ended. */
export function isGone(error: unknown): boolean {
  return error instanceof AgentRunError && (error.status === 404 || error.status === 410);
}

/** For what E2B has and Mitos has not. */
export function unavailable(what: string, instead: string): SandboxError {
  const reason = new AgentRunError(`${what} is not available`, {
    code: "not_supported",
    cause: "Mitos has nothing like it",
    remediation: `Instead, ${instead}.`,
  });
  return new SandboxError(describe(reason), { cause: reason });
}
