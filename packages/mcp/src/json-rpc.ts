import { isInitializeRequest, type JSONRPCMessage, ProtocolErrorCode, parseJSONRPCMessage } from "@modelcontextprotocol/server";

/** One message on any transport: a line on stdio, a body over HTTP. */
export const messageBytesMax = 16 * 1024 * 1024;

/** An answer to something that is not a message, or to one that no session can take. */
export interface Refusal {
  readonly jsonrpc: "2.0";
  /** Null when what was sent has no readable id. */
  readonly id: string | number | null;
  readonly error: { readonly code: number; readonly message: string };
}

export type Received = { readonly message: JSONRPCMessage } | { readonly refusal: Refusal };

/** @returns the message, or -32700 for what is not JSON, -32600 for what is no JSON-RPC message, -32602 for an `initialize` that is incomplete */
export function receive(json: string): Received {
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch {
    return { refusal: refuse(null, ProtocolErrorCode.ParseError, "Parse error: this is not JSON") };
  }
  if (Array.isArray(value)) {
    return { refusal: refuse(null, ProtocolErrorCode.InvalidRequest, "Invalid Request: send one message at a time, not a batch") };
  }
  let message: JSONRPCMessage;
  try {
    message = parseJSONRPCMessage(value);
  } catch {
    return { refusal: refuse(idOf(value), ProtocolErrorCode.InvalidRequest, "Invalid Request: this is not a JSON-RPC 2.0 message") };
  }
  if ("method" in message && "id" in message && message.method === "initialize" && !isInitializeRequest(message)) {
    const text = "Invalid params: initialize needs protocolVersion, capabilities and clientInfo with name and version";
    return { refusal: refuse(message.id, ProtocolErrorCode.InvalidParams, text) };
  }
  return { message };
}

export function refuse(id: Refusal["id"], code: number, message: string): Refusal {
  return { jsonrpc: "2.0", id, error: { code, message } };
}

function idOf(value: unknown): Refusal["id"] {
  const id = typeof value === "object" && value !== null ? (value as { id?: unknown }).id : undefined;
  return typeof id === "string" || Number.isInteger(id) ? (id as string | number) : null;
}
