/**
 * What the SDK throws. Every failure, of the server, of the transport or found before a request was sent, is an AgentRunError;
 * the codes that callers branch on most have classes of their own.
 */

import { catalogue, type ErrorCode } from "@mitos/protocol";

/** What an AgentRunError is made of. */
export interface AgentRunErrorOptions {
  /** Stable machine identifier: a code of the server's catalogue, or one of the client's own (docs/errors.md). */
  code: string;
  /** What happened here: ids, paths, names of operations. Never a key. */
  cause?: string | undefined;
  /** What to do next. */
  remediation?: string | undefined;
  context?: Readonly<Record<string, unknown>> | undefined;
  /** HTTP status of the answer; undefined when there was none. */
  status?: number | undefined;
}

/** Every failure of the SDK. `code` is what programs branch on; the subclasses are the codes that they branch on most. */
export class AgentRunError extends Error {
  readonly code: string;
  /** The server's `cause` (`Error.cause` is the language's own, for a foreign error behind this one). */
  readonly errorCause: string;
  readonly remediation: string;
  readonly context: Readonly<Record<string, unknown>>;
  readonly status: number | undefined;

  constructor(message: string, options: AgentRunErrorOptions, reason?: unknown) {
    super(message, reason === undefined ? undefined : { cause: reason });
    this.name = new.target.name;
    this.code = options.code;
    this.errorCause = options.cause ?? "";
    this.remediation = options.remediation ?? "";
    this.context = options.context ?? {};
    this.status = options.status;
  }

  /** `[code] message | cause: … | remediation: …`, without the parts that are empty. */
  override toString(): string {
    const parts = [`[${this.code}] ${this.message}`];
    if (this.errorCause) parts.push(`cause: ${this.errorCause}`);
    if (this.remediation) parts.push(`remediation: ${this.remediation}`);
    return parts.join(" | ");
  }

  /**
   * The error in a non-2xx answer of a `/v1` route: its envelope, or what the status alone tells.
   *
   * @param retryAfter - the header, which becomes `retry_after_ms` of the context
   */
  static fromResponse(status: number, bodyText: string, token?: string, retryAfter?: string | null): AgentRunError {
    const fallback = fallbackForStatus(status);
    const body = redact(bodyText.trim(), token).slice(0, causeCharsMax);
    let code = fallback.code;
    let message: string | undefined;
    let cause = body || `HTTP ${status}`;
    let remediation = fallback.remediation;
    let context: Record<string, unknown> = {};
    const error = redactAll((parseJson(bodyText) as { error?: unknown } | null | undefined)?.error, token);
    if (isText(error)) {
      cause = error;
    } else if (isObject(error)) {
      // The envelope has been read: a cause that it leaves out does not become the whole body.
      cause = "";
      if (isText(error.code)) code = error.code;
      if (isText(error.message)) message = error.message;
      if (isText(error.cause)) cause = error.cause;
      if (isText(error.remediation)) remediation = error.remediation;
      if (isObject(error.context)) context = error.context;
    }
    message ??= `sandbox API request failed: HTTP ${status} (${code})`;
    return errorForCode(message, {
      code,
      cause: cause || `HTTP ${status}`,
      remediation,
      context: withRetryAfter(context, retryAfter),
      status,
    });
  }
}

/** When to try again, where only the header says it: whole seconds, as our servers send it. */
function withRetryAfter(context: Record<string, unknown>, retryAfter: string | null | undefined): Record<string, unknown> {
  if (!retryAfter || !/^\d{1,9}$/.test(retryAfter) || "retry_after_ms" in context) return context;
  return { ...context, retry_after_ms: Number(retryAfter) * 1000 };
}

/** The sandbox has ended: its time-out, its idle time-out, or a terminate. */
export class IdleTimeoutError extends AgentRunError {}
/** A program or a cell ran into its time-out and was killed. */
export class ExecutionDeadlineError extends AgentRunError {}
/** The caller's AbortSignal fired, or the server saw the caller leave. */
export class RequestCanceledError extends AgentRunError {}
/** Too many requests; `context.retry_after_ms` says when to try again. */
export class RateLimitedError extends AgentRunError {}
/** No such sandbox, template, file or process. */
export class NotFoundError extends AgentRunError {}
/** The server asks for a key and got none, or a wrong one. */
export class UnauthorizedError extends AgentRunError {}
/** A time-out above the ceiling: rejected, never shortened. */
export class TimeoutTooLargeError extends AgentRunError {}

const classes: Readonly<Record<string, typeof AgentRunError>> = {
  idle_timeout: IdleTimeoutError,
  exec_timeout: ExecutionDeadlineError,
  canceled: RequestCanceledError,
  rate_limited: RateLimitedError,
  not_found: NotFoundError,
  unauthorized: UnauthorizedError,
  timeout_too_large: TimeoutTooLargeError,
};

/** The error of the class that belongs to the code. */
export function errorForCode(message: string, options: AgentRunErrorOptions, reason?: unknown): AgentRunError {
  const ErrorClass = Object.hasOwn(classes, options.code) ? classes[options.code]! : AgentRunError;
  return new ErrorClass(message, options, reason);
}

/** Replaces every occurrence of the key, so that no error field can carry it. */
export function redact(text: string, token?: string): string {
  return token ? text.replaceAll(token, "[REDACTED]") : text;
}

/** The same for every text in a JSON value, names of members included. */
function redactAll(value: unknown, token: string | undefined): unknown {
  if (!token) return value;
  if (typeof value === "string") return redact(value, token);
  if (Array.isArray(value)) return value.map((item) => redactAll(item, token));
  if (!isObject(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [redact(name, token), redactAll(item, token)]));
}

/** Ceiling of every requested time-out. */
export const MAX_EXEC_TIMEOUT_SECONDS = 86_400;
/** The exit code of a program that was killed because its time was up. */
export const EXEC_TIMEOUT_EXIT_CODE = 124;

/** @throws timeout_too_large before anything is sent */
export function validateTimeout(timeoutSeconds: number | undefined): void {
  if (timeoutSeconds === undefined || timeoutSeconds <= MAX_EXEC_TIMEOUT_SECONDS) return;
  throw errorForCode("the time-out is above the ceiling", {
    code: "timeout_too_large",
    cause: `${timeoutSeconds} s were asked for, ${MAX_EXEC_TIMEOUT_SECONDS} s are allowed`,
    remediation: `Ask for at most ${MAX_EXEC_TIMEOUT_SECONDS} seconds.`,
    context: { requested_s: timeoutSeconds, max_timeout_s: MAX_EXEC_TIMEOUT_SECONDS },
  });
}

/** What a Connect route answers instead of a result, in the body or in the end of the stream. */
export interface ConnectFailure {
  code?: unknown;
  message?: unknown;
  details?: unknown;
}

const connectStatus: Readonly<Record<string, number>> = {
  canceled: 499,
  unknown: 500,
  invalid_argument: 400,
  deadline_exceeded: 504,
  not_found: 404,
  already_exists: 409,
  permission_denied: 403,
  resource_exhausted: 429,
  failed_precondition: 400,
  aborted: 409,
  out_of_range: 400,
  unimplemented: 501,
  internal: 500,
  unavailable: 503,
  data_loss: 500,
  unauthenticated: 401,
};

/** Connect's words for what has a word of ours. */
const ownCodes: Readonly<Record<string, string>> = {
  deadline_exceeded: "exec_timeout",
  resource_exhausted: "rate_limited",
  unauthenticated: "unauthorized",
};

/**
 * The error that a Connect route reported.
 *
 * @param catalogueCode - the exact code, which our server sends beside Connect's coarser one; older servers do not
 * @param retryAfter - the header, or what stands for it in the end of a stream
 */
export function errorForConnect(
  failure: ConnectFailure,
  token?: string,
  catalogueCode?: string | null,
  retryAfter?: string | null,
): AgentRunError {
  const connectCode = isText(failure.code) ? redact(failure.code, token) : "";
  const text = isText(failure.message) ? redact(failure.message, token) : "";
  const entry = isCatalogued(catalogueCode) ? catalogue[catalogueCode] : undefined;
  const code = entry ? (catalogueCode as ErrorCode) : (ownCodes[connectCode] ?? (connectCode || "internal_error"));
  return errorForCode(entry?.message ?? `sandbox RPC failed: ${connectCode || "internal"}`, {
    code,
    cause: withoutPrefix(text, `${entry?.message}: `) || `connect error ${connectCode || "internal"}`,
    remediation: entry?.remediation ?? (isCatalogued(code) ? catalogue[code].remediation : connectRemediation),
    context: withRetryAfter({ connect_code: connectCode || "internal" }, retryAfter),
    status: entry?.status ?? connectStatus[connectCode] ?? 500,
  });
}

/** Connect has one text for what is message and cause here. */
function withoutPrefix(text: string, prefix: string): string {
  return text.startsWith(prefix) ? text.slice(prefix.length) : text;
}

const connectRemediation = "Read the cause: it names what the sandbox refused; correct that and call again.";

function isCatalogued(code: string | null | undefined): code is ErrorCode {
  return isText(code) && Object.hasOwn(catalogue, code);
}

/** A request that got no answer. */
export function transportError(what: string, baseUrl: string, reason: unknown, token?: string): AgentRunError {
  return new AgentRunError(
    `no answer from ${baseUrl}`,
    {
      code: "transport_error",
      cause: redact(`${what}: ${describe(reason)}`, token),
      remediation: "Check that a server runs there (start one with `mitos serve`) or set MITOS_BASE_URL to the right address.",
    },
    mentions(reason, token) ? undefined : reason,
  );
}

/** Whether a foreign error, or one behind it, would show the key to whoever prints it. */
function mentions(reason: unknown, token: string | undefined): boolean {
  if (!token || !(reason instanceof Error)) return false;
  return `${reason.message} ${reason.stack}`.includes(token) || mentions(reason.cause, token);
}

/** @param signal - its reason tells a time-out from a cancellation */
export function canceledError(what: string, signal: AbortSignal): AgentRunError {
  return new RequestCanceledError(
    `${what} was canceled`,
    { code: "canceled", cause: describe(signal.reason), remediation: "Call again if that was not meant." },
    signal.reason,
  );
}

/** undici says only "fetch failed" and keeps the reason one level deeper. */
function describe(reason: unknown): string {
  if (!(reason instanceof Error)) return String(reason);
  return textOf(reason.cause) || textOf(reason);
}

/** Several attempts at one connection fail with an error that has no message, only a code. */
function textOf(error: unknown): string {
  if (!(error instanceof Error)) return "";
  const { code } = error as { code?: unknown };
  return error.message || (isText(code) ? code : "");
}

const causeCharsMax = 2000;

function fallbackForStatus(status: number): { code: string; remediation: string } {
  return { code: fallbackCode(status), remediation: fallbackRemediation(status) };
}

function fallbackCode(status: number): string {
  const known: Readonly<Record<number, string>> = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    413: "request_too_large",
    429: "rate_limited",
    500: "internal_error",
    503: "unavailable",
  };
  return known[status] ?? (status >= 500 ? "server_error" : "request_failed");
}

function fallbackRemediation(status: number): string {
  if (status === 401 || status === 403) return "Check the key: pass the right one as apiKey, or set MITOS_API_KEY.";
  if (status === 404) return "Check that the id exists and the sandbox is running.";
  if (status === 413) return "Send less in one request.";
  if (status === 429) return "Wait, then call again with back-off.";
  if (status >= 500) return "Call again; if it fails again, read the server's log.";
  return "Check the fields of the request.";
}

export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isText(value: unknown): value is string {
  return typeof value === "string" && value !== "";
}
