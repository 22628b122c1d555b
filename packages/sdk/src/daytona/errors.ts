/**
 * Failures in Daytona's class names: the one place where ours become theirs. The original is the `cause`.
 */

import { AgentRunError } from "../errors.ts";
import { timerMs } from "../timer.ts";

/** What an error tells beside its text. */
export interface DaytonaErrorOptions {
  /** HTTP status of the server's answer; undefined when there was none. */
  statusCode?: number | undefined;
  /** Code of our catalogue (docs/errors.md). */
  code?: string | undefined;
  /** What to do next. */
  remediation?: string | undefined;
}

/** Every failure of the shim. Its text says what happened and what to do; the original is its `cause`. */
export class DaytonaError extends Error {
  readonly statusCode: number | undefined;
  readonly code: string | undefined;
  readonly remediation: string;

  constructor(message: string, options: DaytonaErrorOptions = {}, reason?: unknown) {
    super(message, reason === undefined ? undefined : { cause: reason });
    this.name = new.target.name;
    this.statusCode = options.statusCode;
    this.code = options.code;
    this.remediation = options.remediation ?? "";
  }

  /** Daytona's earlier name of `code`. */
  get errorCode(): string | undefined {
    return this.code;
  }
}

/** 400: the server refused the request as it was. */
export class DaytonaBadRequestError extends DaytonaError {}
/** An argument is not valid. */
export class DaytonaValidationError extends DaytonaBadRequestError {}
/** Found before a request was sent. */
export class DaytonaInvalidArgumentError extends DaytonaValidationError {}
/** 401: no key, or one that the server does not know. */
export class DaytonaAuthenticationError extends DaytonaError {}
/** 403: the key does not allow it. */
export class DaytonaForbiddenError extends DaytonaError {}
/** 404: no such sandbox, session or command. */
export class DaytonaNotFoundError extends DaytonaError {}
/** No such file in the sandbox. */
export class DaytonaFileNotFoundError extends DaytonaNotFoundError {}
/** It was not done in the time that was given. */
export class DaytonaTimeoutError extends DaytonaError {}
/** The program was killed because its time was up. */
export class DaytonaProcessExecutionTimeoutError extends DaytonaTimeoutError {}
/** 409: not in the state that it is in, or it exists already. */
export class DaytonaConflictError extends DaytonaError {}
/** 410: the sandbox has ended. */
export class DaytonaGoneError extends DaytonaError {}
/** The shell of a session has ended, by `exit` for one; its commands can still be read. */
export class DaytonaSessionEndedError extends DaytonaGoneError {}
/** 422: a template could not be built. */
export class DaytonaUnprocessableEntityError extends DaytonaError {}
/** 429: too many requests, or a limit of the key is reached. */
export class DaytonaRateLimitError extends DaytonaError {}
/** 500: a fault of the server. */
export class DaytonaInternalServerError extends DaytonaError {}
/** 503: the server cannot do it now. */
export class DaytonaServiceUnavailableError extends DaytonaError {}
/** The server was not reached, or went away. */
export class DaytonaConnectionError extends DaytonaError {}

const byStatus: Readonly<Record<number, typeof DaytonaError>> = {
  400: DaytonaBadRequestError,
  401: DaytonaAuthenticationError,
  403: DaytonaForbiddenError,
  404: DaytonaNotFoundError,
  408: DaytonaTimeoutError,
  409: DaytonaConflictError,
  410: DaytonaGoneError,
  422: DaytonaUnprocessableEntityError,
  429: DaytonaRateLimitError,
  500: DaytonaInternalServerError,
  503: DaytonaServiceUnavailableError,
  504: DaytonaTimeoutError,
};

/** Codes that say more than their status. */
const byCode: Readonly<Record<string, typeof DaytonaError>> = {
  exec_timeout: DaytonaProcessExecutionTimeoutError,
  transport_error: DaytonaConnectionError,
  exec_stream_truncated: DaytonaConnectionError,
  run_code_stream_truncated: DaytonaConnectionError,
  invalid_sandbox_id: DaytonaInvalidArgumentError,
  fork_unavailable: DaytonaTimeoutError,
};

/** Ours as theirs; everything else as it is. */
export function toDaytonaError(error: unknown, missing?: typeof DaytonaNotFoundError): unknown {
  if (!(error instanceof AgentRunError)) return error;
  const { code, status: statusCode, remediation } = error;
  return new (classOf(error, missing))(messageOf(error), { code, statusCode, remediation }, error);
}

/**
 * A call of ours, with its failures as Daytona's.
 *
 * @param missing - the class of `not_found`, where it is known what is missing
 */
export async function translated<T>(call: () => Promise<T>, missing?: typeof DaytonaNotFoundError): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw toDaytonaError(error, missing);
  }
}

/**
 * The same, given up after a time.
 *
 * @param timeoutSeconds - 0 for no limit
 * @param call - gets a signal for what can be called off; what cannot goes on without its caller
 * @throws DaytonaTimeoutError
 */
export async function within<T>(
  what: string,
  timeoutSeconds: number,
  call: (signal: AbortSignal | undefined) => Promise<T>,
  missing?: typeof DaytonaNotFoundError,
): Promise<T> {
  requireTimeout(timeoutSeconds);
  if (timeoutSeconds === 0) return translated(() => call(undefined), missing);
  const signal = AbortSignal.timeout(timerMs(timeoutSeconds * 1000));
  const timeUp = new Promise<never>((_resolve, reject) => {
    signal.addEventListener("abort", () => reject(givenUp(what, timeoutSeconds)), { once: true });
  });
  return Promise.race([translated(() => call(signal), missing), timeUp]);
}

function givenUp(what: string, timeoutSeconds: number): DaytonaTimeoutError {
  const remediation = "Give it more time, or 0 for no limit.";
  return new DaytonaTimeoutError(`${what} did not finish within ${timeoutSeconds} s. ${remediation}`, { code: "canceled", remediation });
}

/** @throws DaytonaInvalidArgumentError unless it is a number of seconds, 0 or more */
export function requireTimeout(timeoutSeconds: number): void {
  if (Number.isFinite(timeoutSeconds) && timeoutSeconds >= 0) return;
  throw invalidArgument(`${timeoutSeconds} is not a time-out`, "Pass a number of seconds; 0 means no limit.");
}

export function invalidArgument(message: string, remediation: string): DaytonaInvalidArgumentError {
  return new DaytonaInvalidArgumentError(`${message}. ${remediation}`, { code: "invalid_input", remediation });
}

/** For what Daytona has and we have in another form, or not at all. */
export function notSupported(what: string, remediation: string): DaytonaError {
  return new DaytonaError(`${what} not supported. ${remediation}`, { code: "not_supported", remediation });
}

function classOf(error: AgentRunError, missing?: typeof DaytonaNotFoundError): typeof DaytonaError {
  if (error.code === "not_found" && missing) return missing;
  if (Object.hasOwn(byCode, error.code)) return byCode[error.code]!;
  // Found by the SDK itself: no server was asked.
  if (error.status === undefined) return error.code.startsWith("invalid_") ? DaytonaInvalidArgumentError : DaytonaError;
  return byStatus[error.status] ?? DaytonaError;
}

/** Daytona's errors have one text: it says what happened and what to do. */
function messageOf({ message, errorCause, remediation }: AgentRunError): string {
  return [errorCause ? `${message}: ${errorCause}` : message, remediation].filter(Boolean).join(". ");
}
