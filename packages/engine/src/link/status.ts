/** The status codes of the guest and the errors of our catalogue: the one place that knows both. */

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { type ConnectCodeName, type ErrorCode, type ErrorDetail, MitosError } from "@mitos/protocol";
import { guest } from "@mitos/protocol/proto";
import { noPayload } from "./frame.ts";
import { LinkViolation } from "./violation.ts";

const messageCharactersMax = 1024;

const codes: Readonly<Record<ConnectCodeName, ErrorCode>> = {
  canceled: "canceled",
  unknown: "internal",
  invalid_argument: "invalid_input",
  deadline_exceeded: "exec_timeout",
  not_found: "not_found",
  already_exists: "already_exists",
  permission_denied: "permission_denied",
  resource_exhausted: "sandbox_exhausted",
  failed_precondition: "failed_precondition",
  aborted: "conflict",
  out_of_range: "invalid_input",
  unimplemented: "not_supported",
  internal: "internal",
  unavailable: "unavailable",
  data_loss: "internal",
  // The agent knows no credentials; a guest that says so is not to be taken for the server's own answer.
  unauthenticated: "permission_denied",
};

const fileMethods = new Set([
  "ReadFile",
  "WriteFile",
  "List",
  "Stat",
  "Mkdir",
  "Remove",
  "Rename",
  "SetMode",
  "MakeSymlink",
  "ReadLink",
  "Watch",
  "Archive",
  "Upload",
]);
const processMethods = new Set(["Exec", "ListProcesses", "WriteStdin", "ResizeTerminal", "SignalProcess", "Processes", "RunCode"]);
const contextMethods = new Set(["RunCode", "CreateContext", "RestartContext", "RemoveContext"]);

/** What a failure of the guest becomes for the client; undefined when the status means OK. */
export function errorOfStatus(status: guest.Status, method: string): MitosError | undefined {
  if (status.code === "") return undefined;
  const known = Object.hasOwn(codes, status.code) ? codes[status.code as ConnectCodeName] : "internal";
  const code = known === "internal" ? internalOf(method) : known;
  const detail: ErrorDetail = { cause: printable(status.message) || printable(status.code) };
  return new MitosError(code, { ...detail, remediation: remedyOf(code, method) });
}

/** Where a method knows better what to do than the catalogue. */
function remedyOf(code: ErrorCode, method: string): string | undefined {
  const isOfContext = contextMethods.has(method);
  if (code === "not_found") {
    if (method === "CreateContext") return "Give a directory of the sandbox as cwd, or create it first.";
    if (isOfContext) return "List the contexts (GET /v1/sandboxes/{id}/contexts), or create one (POST, with its language).";
    return "Check the path, the process id or the port.";
  }
  if (!isOfContext) return undefined;
  if (code === "sandbox_exhausted" && method === "CreateContext") return "Remove a context that is not used any more.";
  if (code === "failed_precondition")
    return "Read the cause: the sandbox may have no interpreter for this language, or the context's folder is gone.";
  return undefined;
}

function internalOf(method: string): ErrorCode {
  if (fileMethods.has(method)) return "file_failed";
  return processMethods.has(method) ? "exec_failed" : "internal";
}

/** Guest text goes into answers and logs: one line, no control characters, of bounded length. */
export function printable(text: string, charactersMax = messageCharactersMax): string {
  return text
    .slice(0, charactersMax)
    .replace(/[\p{Cc}\u2028\u2029]+/gu, " ")
    .trim();
}

/** An empty payload is OK. @throws LinkViolation when it is no Status */
export function decodeStatus(payload: Uint8Array): guest.Status {
  try {
    return fromBinary(guest.StatusSchema, payload, { readUnknownFields: false });
  } catch {
    throw new LinkViolation("a status that cannot be decoded");
  }
}

export function encodeStatus(code: ConnectCodeName | "", message = ""): Uint8Array {
  if (code === "") return noPayload;
  return toBinary(guest.StatusSchema, create(guest.StatusSchema, { code, message: message.slice(0, messageCharactersMax) }));
}

/** What the guest is told about a failure of one of its own calls. */
export function statusOfError(error: unknown): Uint8Array {
  if (error instanceof MitosError) return encodeStatus(error.entry.connect, error.message);
  return encodeStatus("internal", "the host failed");
}

export function linkLost(reason: Error | undefined): MitosError {
  const cause = reason instanceof LinkViolation ? "the sandbox broke a rule of its link" : "the connection to the sandbox was lost";
  return new MitosError("unavailable", { cause, reason });
}

export function callerLeft(): MitosError {
  return new MitosError("canceled");
}
