import { AgentRunError } from "@mitos/sdk";

/** What a tool's failure is called in its result. Failures of the protocol itself are JSON-RPC errors (json-rpc.ts). */
export type ToolErrorCode =
  | "unknown_tool"
  | "invalid_arguments"
  | "missing_required_argument"
  | "tool_not_dispatchable"
  /** The Mitos server refused or did not answer; the cause begins with its own code. */
  | "backend_error";

/** A failure that the model is told, with what it can do next. Never holds a key. */
export class ToolError extends Error {
  readonly code: ToolErrorCode;
  readonly remediation: string;

  constructor(code: ToolErrorCode, cause: string, remediation: string) {
    super(cause);
    this.code = code;
    this.remediation = remediation;
  }

  /** The text of a failed tool's result. */
  toText(): string {
    return JSON.stringify({ code: this.code, cause: this.message, remediation: this.remediation });
  }
}

/** @returns what the Mitos server or the way to it reported, as a tool's failure; anything else as it is, since it is a bug of ours */
export function toToolError(error: unknown): unknown {
  if (!(error instanceof AgentRunError)) return error;
  const cause = error.errorCause && error.errorCause !== error.message ? `${error.message}: ${error.errorCause}` : error.message;
  return new ToolError("backend_error", `${error.code}: ${cause}`, error.remediation);
}
