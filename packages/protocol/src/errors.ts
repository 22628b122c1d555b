/**
 * The error catalogue: every code that a Mitos server answers, with its status, its Connect code, and what the reader can do about it.
 *
 * Server, SDK, CLI and the docs page derive from this table; `errors.test.ts` compares it with docs/errors.md.
 */

export type ConnectCodeName =
  | "canceled"
  | "unknown"
  | "invalid_argument"
  | "deadline_exceeded"
  | "not_found"
  | "already_exists"
  | "permission_denied"
  | "resource_exhausted"
  | "failed_precondition"
  | "aborted"
  | "out_of_range"
  | "unimplemented"
  | "internal"
  | "unavailable"
  | "data_loss"
  | "unauthenticated";

export interface CatalogueEntry {
  /** HTTP status on `/v1` routes. */
  readonly status: number;
  /** Code on Connect routes. */
  readonly connect: ConnectCodeName;
  /** Whether the same request may succeed later: at once after a change, with back-off, or never. */
  readonly retry: "never" | "after_change" | "with_backoff";
  readonly message: string;
  readonly remediation: string;
}

export const catalogue = {
  already_exists: {
    status: 409,
    connect: "already_exists",
    retry: "after_change",
    message: "it exists already in the sandbox",
    remediation: "Choose another path, or remove what is there first.",
  },
  body_too_large: {
    status: 413,
    connect: "resource_exhausted",
    retry: "after_change",
    message: "the request body is too large",
    remediation: "Send less, or use the raw file routes, which stream files of any size.",
  },
  build_failed: {
    status: 422,
    connect: "failed_precondition",
    retry: "after_change",
    message: "a template could not be built",
    remediation: "Read the cause, change that step or the template's command, and create the template again.",
  },
  budget_exhausted: {
    status: 403,
    connect: "permission_denied",
    retry: "after_change",
    message: "the sandbox's own budget is spent",
    remediation: "Create the sandbox with a larger budget, or stay within it.",
  },
  canceled: {
    status: 499,
    connect: "canceled",
    retry: "after_change",
    message: "the caller went away",
    remediation: "Send the request again if that was not meant.",
  },
  exec_failed: {
    status: 500,
    connect: "internal",
    retry: "after_change",
    message: "the program could not be run",
    remediation: "Read the cause: check that the program, the working directory and the user exist in the sandbox.",
  },
  exec_timeout: {
    status: 504,
    connect: "deadline_exceeded",
    retry: "after_change",
    message: "the program ran into its time-out and was killed",
    remediation: "Raise the time-out, or split the work.",
  },
  failed_precondition: {
    status: 409,
    connect: "failed_precondition",
    retry: "after_change",
    message: "the sandbox is not in a state that allows this",
    remediation: "Read the cause: a path may be of another kind than the operation needs, or a directory not empty.",
  },
  file_failed: {
    status: 500,
    connect: "internal",
    retry: "after_change",
    message: "the file operation failed",
    remediation: "Read the cause and check the path.",
  },
  forbidden: {
    status: 403,
    connect: "permission_denied",
    retry: "after_change",
    message: "this is not allowed",
    remediation: "Use a key of the owner with the scope that the operation needs.",
  },
  idle_timeout: {
    status: 410,
    connect: "failed_precondition",
    retry: "never",
    message: "the sandbox has ended",
    remediation: "Create or fork a new one; give it a longer time-out if it ended too early.",
  },
  internal: {
    status: 500,
    connect: "internal",
    retry: "with_backoff",
    message: "the server failed",
    remediation: "Send the request again; if it fails again, read the server's log for this request.",
  },
  invalid_input: {
    status: 400,
    connect: "invalid_argument",
    retry: "after_change",
    message: "the request is not valid",
    remediation: "Correct the value that the cause names.",
  },
  invalid_json: {
    status: 400,
    connect: "invalid_argument",
    retry: "after_change",
    message: "the request body is not valid JSON",
    remediation: "Send one JSON object as the API describes.",
  },
  not_found: {
    status: 404,
    connect: "not_found",
    retry: "after_change",
    message: "no such thing",
    remediation: "Check the id or path; list what exists with GET /v1/sandboxes or GET /v1/templates.",
  },
  oom_killed: {
    status: 410,
    connect: "failed_precondition",
    retry: "after_change",
    message: "the sandbox used more memory than its limit and was ended",
    remediation: "Create one with more memory (resources.mem_size_mib), or use less.",
  },
  permission_denied: {
    status: 403,
    connect: "permission_denied",
    retry: "after_change",
    message: "the sandbox itself refuses this",
    remediation: "Check the owner and the mode of the path or process inside the sandbox, and the user that was asked for.",
  },
  quota_exceeded: {
    status: 429,
    connect: "resource_exhausted",
    retry: "with_backoff",
    message: "this machine has no room for it now",
    remediation: "Wait as Retry-After says, terminate sandboxes, or give the server a larger budget.",
  },
  rate_limited: {
    status: 429,
    connect: "resource_exhausted",
    retry: "with_backoff",
    message: "too many requests",
    remediation: "Wait retry_after_ms, then send the request again.",
  },
  sandbox_exhausted: {
    status: 413,
    connect: "resource_exhausted",
    retry: "after_change",
    message: "it is too large for the sandbox, or a limit inside it is reached",
    remediation: "Send or ask for less, free disk space or processes in the sandbox, or create one with more.",
  },
  sandbox_not_running: {
    status: 409,
    connect: "failed_precondition",
    retry: "after_change",
    message: "the sandbox is not running",
    remediation: "Resume it with POST /v1/resume if it is paused; create a new one if it has failed.",
  },
  conflict: {
    status: 409,
    connect: "aborted",
    retry: "after_change",
    message: "this collides with something that exists or is under way",
    remediation: "Choose another id, or wait until the other operation is done.",
  },
  secret_inheritance_denied: {
    status: 409,
    connect: "failed_precondition",
    retry: "after_change",
    message: "the sandbox holds secrets, which a fork would copy",
    remediation: "Ask for it with inherit_secrets: true, or fork a sandbox that was given no secrets.",
  },
  snapshot_incompatible: {
    status: 409,
    connect: "failed_precondition",
    retry: "after_change",
    message: "the saved state does not fit this machine any more",
    remediation: "Put back what the cause names, or create a new sandbox from the template.",
  },
  not_supported: {
    status: 501,
    connect: "unimplemented",
    retry: "never",
    message: "this engine cannot do that",
    remediation: "Start the server with another --engine; `mitos doctor` says which ones this machine can run, and what the others lack.",
  },
  timeout_too_large: {
    status: 400,
    connect: "invalid_argument",
    retry: "after_change",
    message: "the time-out is above the ceiling",
    remediation: "Ask for at most max_timeout_s seconds.",
  },
  too_many_streams: {
    status: 429,
    connect: "resource_exhausted",
    retry: "with_backoff",
    message: "too many streams are open on this sandbox",
    remediation: "Close a stream, or raise --max-streams-per-sandbox.",
  },
  unauthorized: {
    status: 401,
    connect: "unauthenticated",
    retry: "after_change",
    message: "the key is missing or wrong",
    remediation: "Send Authorization: Bearer <key>.",
  },
  unavailable: {
    status: 503,
    connect: "unavailable",
    retry: "with_backoff",
    message: "the sandbox does not answer",
    remediation: "Send the request again; if the sandbox stays silent, terminate it.",
  },
} as const satisfies Record<string, CatalogueEntry>;

export type ErrorCode = keyof typeof catalogue;

export interface ErrorDetail {
  /** What happened here: ids, paths, names of operations. Never a secret, a token or file content. */
  readonly cause?: string | undefined;
  /** Machine-readable facts, with the keys of the specification for the code. */
  readonly context?: Readonly<Record<string, string | number>> | undefined;
  /** Instead of the catalogue's message, where the code is used for something narrower. */
  readonly message?: string | undefined;
  readonly remediation?: string | undefined;
  /** When a retry makes sense, in milliseconds from now; becomes `Retry-After`. */
  readonly retryAfterMs?: number | undefined;
  /** The foreign error behind it: logged, never sent. */
  readonly reason?: unknown;
}

/** The envelope of `/v1` routes. */
export interface ErrorEnvelope {
  readonly error: {
    readonly code: string;
    readonly message: string;
    readonly cause?: string;
    readonly remediation: string;
    readonly context?: Readonly<Record<string, string | number>>;
  };
}

/** An error of the catalogue, on its way from where it was noticed to the client. */
export class MitosError extends Error {
  override readonly name = "MitosError";
  readonly code: ErrorCode;
  readonly detail: ErrorDetail;

  constructor(code: ErrorCode, detail: ErrorDetail = {}) {
    const message = detail.message ?? catalogue[code].message;
    super(detail.cause ? `${message}: ${detail.cause}` : message, { cause: detail.reason });
    this.code = code;
    this.detail = detail;
  }

  get entry(): CatalogueEntry {
    return catalogue[this.code];
  }

  toEnvelope(): ErrorEnvelope {
    const { cause, context } = this.detail;
    return {
      error: {
        code: this.code,
        message: this.detail.message ?? this.entry.message,
        ...(cause ? { cause } : {}),
        remediation: this.detail.remediation ?? this.entry.remediation,
        ...(context && Object.keys(context).length > 0 ? { context } : {}),
      },
    };
  }
}
