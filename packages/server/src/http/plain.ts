import type { ServerResponse } from "node:http";
import type { Http2ServerResponse } from "node:http2";
import type { ConnectError } from "@connectrpc/connect";
import { codeToHttpStatus, endStreamToJson, errorToJsonBytes } from "@connectrpc/connect/protocol-connect";
import type { MitosError } from "@mitos/protocol";
import { envelope, flagEndOfStream } from "../envelope.ts";
import { retryAfterSeconds } from "../errors.ts";
import type { AnyRequest } from "./guard.ts";

export type AnyResponse = (ServerResponse & { readonly stream?: undefined }) | Http2ServerResponse;

/** How long a client may go on sending a body whose request has been answered already. */
const lateBodyMs = 30_000;

/** Drops the rest of a body whose request has been answered: many clients read the answer only when they have sent everything. */
export function endLateBody(request: AnyRequest): void {
  request.resume();
  if (!request.complete) setTimeout(() => request.complete || request.destroy(), lateBodyMs).unref();
}

export function sendPlain(response: AnyResponse, status: number, text: string, headers: Record<string, string> = {}): void {
  const body = `${text}\n`;
  (response as ServerResponse).writeHead(status, {
    "content-type": "text/plain; charset=utf-8",
    "content-length": String(Buffer.byteLength(body)),
    ...headers,
  });
  response.end(body);
}

/** The error envelope, outside Fastify. */
export function sendEnvelope(response: AnyResponse, error: MitosError): void {
  const body = `${JSON.stringify(error.toEnvelope())}\n`;
  (response as ServerResponse).writeHead(error.entry.status, {
    "content-type": "application/json",
    "content-length": String(Buffer.byteLength(body)),
    ...challenge(error.entry.status),
    ...retryAfter(error),
  });
  response.end(body);
}

/** Which 401 has to carry (RFC 9110). */
function challenge(status: number): Record<string, string> {
  return status === 401 ? { "www-authenticate": "Bearer" } : {};
}

export function retryAfter(error: MitosError): Record<string, string> {
  const value = retryAfterSeconds(error);
  return value === undefined ? {} : { "retry-after": value };
}

/** The error of a unary RPC, outside the Connect handler. */
export function sendConnectError(response: AnyResponse, error: ConnectError): void {
  const body = errorToJsonBytes(error, undefined);
  const status = codeToHttpStatus(error.code);
  (response as ServerResponse).writeHead(status, {
    "content-type": "application/json",
    "content-length": String(body.byteLength),
    ...challenge(status),
    ...Object.fromEntries(error.metadata),
  });
  response.end(body);
}

/** The error of a Connect stream that does not begin, outside the Connect handler. */
export function sendEndStream(response: AnyResponse, contentType: string, error: ConnectError): void {
  const end = endOfStream(error);
  (response as ServerResponse).writeHead(200, { "content-type": contentType, "content-length": String(end.byteLength) });
  response.end(end);
}

/** What ends a Connect stream. @param error - undefined: it ends well */
export function endOfStream(error?: ConnectError): Buffer {
  const end = error ? JSON.stringify(endStreamToJson(new Headers(), error, undefined)) : "{}";
  return envelope(Buffer.from(end), flagEndOfStream);
}
