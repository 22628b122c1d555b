import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import {
  createMcpHandler,
  isInitializeRequest,
  isLegacyRequest,
  type JSONRPCMessage,
  ProtocolErrorCode,
} from "@modelcontextprotocol/server";
import { messageBytesMax, type Refusal, receive, refuse } from "../json-rpc.ts";
import type { OpenSession } from "../session.ts";
import { guardWith } from "./guard.ts";
import { type HeldMessage, HeldMessages } from "./held-messages.ts";
import { type SessionLimits, Sessions, sessionLimits } from "./sessions.ts";

export interface HttpOptions {
  readonly host: string;
  /** 0 takes any free one. */
  readonly port: number;
  /** What clients must bring as `Authorization: Bearer`; undefined = nothing, for loopback addresses only. */
  readonly token?: string | undefined;
  readonly openSession: OpenSession;
  readonly onerror: (error: Error) => void;
  readonly limits?: SessionLimits | undefined;
}

export interface HttpServer {
  /** Where clients connect. */
  readonly url: string;
  /** Ends all sessions and what runs for them. */
  close(): Promise<void>;
}

/** From the first byte of a request to its last. */
const bodyTimeoutMs = 60_000;
const endpoint = "/mcp";
const methods = ["GET", "POST", "DELETE"];
/** Words of the protocol for failures of the transport itself. */
const sessionNotFound = -32_001;
const transportFailure = -32_000;

/**
 * Serves MCP over streamable HTTP. Clients of the revisions up to 2025-11-25 get a session with `initialize`; those of 2026-07-28 send all
 * that is needed with each request.
 *
 * @throws what `listen` throws
 */
export async function startHttp({ host, port, token, openSession, onerror, limits = sessionLimits }: HttpOptions): Promise<HttpServer> {
  const guard = guardWith(token);
  const messages = new HeldMessages();
  const sessions = new Sessions(openSession, limits, onerror);
  const sessionless = openSession();
  const modern = createMcpHandler(() => sessionless.createServer(), { legacy: "reject", onerror, maxRequestBodySize: messageBytesMax });

  const serve = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const denial = guard(request);
    if (denial) return sendError(response, denial.status, refuse(null, transportFailure, denial.message));
    if (request.url?.split("?", 1)[0] !== endpoint) {
      return sendError(response, 404, refuse(null, transportFailure, `Not found: the endpoint is ${endpoint}`));
    }
    if (!methods.includes(request.method ?? "")) {
      response.setHeader("Allow", methods.join(", "));
      return sendError(response, 405, refuse(null, transportFailure, `Method not allowed: use ${methods.join(", ")}`));
    }
    const held = messages.hold();
    response.once("close", () => held[Symbol.dispose]());
    const body = request.method === "POST" ? await readMessage(request, held) : undefined;
    if (body && "refusal" in body) {
      // The rest is dropped: many clients read the answer only when they have sent everything.
      request.resume();
      if (body.status === 503) response.setHeader("Retry-After", "1");
      return sendError(response, body.status, body.refusal);
    }
    const answer = await route(toWebRequest(request, response), body?.message, request, response);
    if (answer) await send(response, answer);
  };

  /** @returns undefined when it has been answered */
  const route = async (web: Request, message: JSONRPCMessage | undefined, { headers }: IncomingMessage, response: ServerResponse) => {
    const id = headers["mcp-session-id"];
    if (typeof id === "string") {
      const transport = sessions.find(id, response);
      if (transport) return transport.handleRequest(web, { parsedBody: message });
      return sendError(response, 404, refuse(null, sessionNotFound, "Session not found: it has ended; send initialize again"));
    }
    if (!(await isLegacyRequest(web, message))) return modern.fetch(web, { parsedBody: message });
    if (!isInitializeRequest(message)) {
      return sendError(response, 400, refuse(null, transportFailure, "The Mcp-Session-Id header is missing: send initialize first"));
    }
    const answer = await sessions.initialize(web, message, response);
    if (answer) return answer;
    response.setHeader("Retry-After", "60");
    return sendError(response, 503, refuse(null, transportFailure, "All sessions are in use: end one, or try again later"));
  };

  const server = createServer({ requestTimeout: bodyTimeoutMs }, (request, response) => {
    serve(request, response).catch((error: Error) => {
      onerror(error);
      if (!response.headersSent) sendError(response, 500, refuse(null, ProtocolErrorCode.InternalError, "Internal error"));
      else response.destroy();
    });
  });
  await listen(server, host, port);
  return {
    url: `http://${host.includes(":") ? `[${host}]` : host}:${(server.address() as AddressInfo).port}${endpoint}`,
    async close() {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      await Promise.all([sessions.close(), modern.close()]);
      await sessionless.end();
      server.closeAllConnections();
      await closed;
    },
  };
}

type Body = { readonly message: JSONRPCMessage } | { readonly status: number; readonly refusal: Refusal };

async function readMessage(request: IncomingMessage, held: HeldMessage): Promise<Body> {
  if (!/^application\/json\s*(?:;|$)/i.test(request.headers["content-type"] ?? "")) {
    return { status: 415, refusal: refuse(null, transportFailure, "The Content-Type must be application/json") };
  }
  const tooLarge = { status: 413, refusal: refuse(null, ProtocolErrorCode.InvalidRequest, `A message may have ${messageBytesMax} bytes`) };
  if (Number(request.headers["content-length"] ?? 0) > messageBytesMax) return tooLarge;
  const chunks: Buffer[] = [];
  let size = 0;
  // The answer is sent on the same connection, so an early end must not destroy the request.
  for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > messageBytesMax) return tooLarge;
    if (!held.add(chunk.length)) {
      return {
        status: 503,
        refusal: refuse(null, transportFailure, "Too many large messages are under way: try again when some are answered"),
      };
    }
    chunks.push(chunk);
  }
  const received = receive(Buffer.concat(chunks).toString("utf8"));
  return "message" in received ? received : { status: 400, refusal: received.refusal };
}

/** Without the body, which has been parsed. Its signal fires when the client leaves before the end of the answer. */
function toWebRequest(request: IncomingMessage, response: ServerResponse): Request {
  const left = new AbortController();
  response.once("close", () => {
    if (!response.writableFinished) left.abort();
  });
  const headers = new Headers();
  for (const [name, values] of Object.entries(request.headersDistinct)) for (const value of values ?? []) headers.append(name, value);
  return new Request(`http://localhost${request.url}`, { method: request.method ?? "GET", headers, signal: left.signal });
}

/** As it comes; when the client leaves, the answer's stream is cancelled. */
async function send(response: ServerResponse, answer: Response): Promise<void> {
  response.writeHead(answer.status, Object.fromEntries(answer.headers));
  if (!answer.body) return void response.end();
  response.flushHeaders();
  await pipeline(Readable.fromWeb(answer.body), response).catch(() => {}); // the client has left
}

function sendError(response: ServerResponse, status: number, refusal: Refusal): undefined {
  const headers = {
    "Content-Type": "application/json",
    ...(status === 401 ? { "WWW-Authenticate": "Bearer" } : {}),
  };
  response.writeHead(status, headers).end(JSON.stringify(refusal));
}

function listen(server: Server, host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, host, () => {
      server.off("error", reject);
      resolve();
    });
  });
}
