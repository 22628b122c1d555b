/** One request through a tunnel to a program in a sandbox, and its answer back. Both bodies stream; nothing is kept. */

import { type ClientRequest, request as httpRequest, type IncomingMessage, ServerResponse } from "node:http";
import type { Duplex } from "node:stream";
import { pipeline } from "node:stream/promises";
import { MitosError } from "@mitos/protocol";
import type { AnyRequest } from "../http/guard.ts";
import { type AnyResponse, endLateBody } from "../http/plain.ts";
import { endToEnd, type Header, headersOf, toRecord } from "./headers.ts";

/** What the program is asked. */
export interface Question {
  readonly method: string;
  /** Path and query. */
  readonly target: string;
  /** End-to-end headers. */
  readonly headers: readonly Header[];
}

/** What a program may send before its answer (100, early hints): it is written on at once, whether the client reads or not. */
const informationMax = 16;

/**
 * Asks the program and passes its answer on; resolves when the answer is complete. The socket is destroyed then.
 *
 * @param rewrite - the answer's headers as the client is to see them
 * @throws unavailable while nothing of the answer has been sent; afterwards a failure breaks the answer off
 */
export async function exchange(
  socket: Duplex,
  question: Question,
  request: AnyRequest,
  response: AnyResponse,
  rewrite: (headers: Header[]) => Header[],
): Promise<number> {
  try {
    const upstream = ask(socket, question, bodyHeaders(request));
    const answered = answerOf(upstream);
    passInformation(upstream, response);
    request.pipe(upstream);
    try {
      const answer = await answered;
      if (answer.statusCode === 101) throw notHttp("it left HTTP without being asked to");
      sendHead(response, answer, rewrite);
      // What becomes of the request now shows in the answer.
      upstream.on("error", () => {});
      await pipeline(answer, response as ServerResponse).catch(() => breakOff(response));
      return answer.statusCode ?? 0;
    } finally {
      request.unpipe(upstream);
      endLateBody(request);
    }
  } finally {
    socket.destroy();
  }
}

/** A request to become a WebSocket. */
export interface UpgradingClient {
  readonly request: IncomingMessage;
  readonly socket: Duplex;
  readonly head: Buffer;
  /** The place for an ordinary answer, which ends the connection: the same one each time. */
  respond(): AnyResponse;
}

export function upgradingClient(request: IncomingMessage, socket: Duplex, head: Buffer): UpgradingClient {
  let response: AnyResponse | undefined;
  const respond = () => {
    response ??= responseOn(socket, request);
    return response;
  };
  return { request, socket, head, respond };
}

/**
 * The same for a request to become a WebSocket: when the program agrees, the two sockets are one from then on; resolves when both sides have
 * ended. Anything else that it answers goes to the client as the answer that it is.
 */
export async function exchangeUpgrade(
  socket: Duplex,
  question: Question,
  client: UpgradingClient,
  rewrite: (headers: Header[]) => Header[],
): Promise<number> {
  try {
    const protocol = client.request.headers.upgrade ?? "websocket";
    const upstream = ask(socket, question, [
      ["Connection", "Upgrade"],
      ["Upgrade", protocol],
    ]);
    const answered = answerOf(upstream);
    upstream.end();
    const answer = await answered;
    upstream.on("error", () => {});
    if (answer.statusCode === 101) {
      client.socket.write(switchingHead(answer, protocol, rewrite));
      await join(client.socket, client.head, socket, answer.head);
    } else {
      const response = client.respond();
      sendHead(response, answer, rewrite);
      await pipeline(answer, response as ServerResponse).catch(() => breakOff(response));
    }
    return answer.statusCode ?? 0;
  } finally {
    socket.destroy();
  }
}

/** A socket takes one at a time. */
function responseOn(socket: Duplex, request: IncomingMessage): AnyResponse {
  const response = new ServerResponse(request);
  response.shouldKeepAlive = false;
  response.assignSocket(socket as Parameters<ServerResponse["assignSocket"]>[0]);
  response.on("finish", () => socket.end());
  return response as AnyResponse;
}

const joinedListenersMax = 20;

/** Bytes both ways until both sides have ended; one that breaks takes the other with it. */
export async function join(client: Duplex, clientHead: Buffer, socket: Duplex, socketHead: Buffer = Buffer.alloc(0)): Promise<void> {
  if (clientHead.length > 0) client.unshift(clientHead);
  if (socketHead.length > 0) socket.unshift(socketHead);
  // Two pipelines for the life of both: with HTTP's own they come to more listeners than Node takes for sane.
  for (const end of [client, socket]) end.setMaxListeners(joinedListenersMax);
  try {
    await Promise.all([pipeline(client, socket), pipeline(socket, client)]);
  } catch {
    // Whose fault it was, nobody can be told any more.
  } finally {
    client.destroy();
    socket.destroy();
  }
}

function ask(socket: Duplex, { method, target, headers }: Question, framing: readonly Header[]): ClientRequest {
  try {
    // A list, so that order and spelling stay as the client sent them.
    const flat = [...headers, ...framing].flat();
    return httpRequest({ createConnection: () => socket, method, path: target, headers: flat as unknown as Record<string, string> });
  } catch (error) {
    throw new MitosError("invalid_input", { cause: "the request cannot be passed on as it is", reason: error });
  }
}

/** How the length of the body is told to the program: as the client told it. */
function bodyHeaders(request: AnyRequest): Header[] {
  const close: Header = ["Connection", "close"];
  // Among the headers that go on already.
  if (request.headers["content-length"] !== undefined) return [close];
  const hasBody = "stream" in request ? !request.stream.endAfterHeaders : request.headers["transfer-encoding"] !== undefined;
  if (hasBody) return [close, ["Transfer-Encoding", "chunked"]];
  return request.method === "GET" || request.method === "HEAD" ? [close] : [close, ["Content-Length", "0"]];
}

type Answer = IncomingMessage & { readonly head: Buffer };

function answerOf(upstream: ClientRequest): Promise<Answer> {
  return new Promise((resolve, reject) => {
    upstream.once("response", (answer) => resolve(Object.assign(answer, { head: Buffer.alloc(0) })));
    upstream.once("upgrade", (answer, _socket, head) => resolve(Object.assign(answer, { head })));
    upstream.once("error", (error) => reject(noAnswer(error)));
  });
}

function noAnswer(error: Error): MitosError {
  // A tunnel that fails says why: the sandbox was paused, has ended, or the server goes down.
  if (error instanceof MitosError) return error;
  return notHttp("code" in error && String(error.code).startsWith("HPE_") ? "what it sent is not HTTP" : "it closed the connection", error);
}

function notHttp(cause: string, reason?: Error): MitosError {
  return new MitosError("unavailable", {
    message: "the program in the sandbox gave no answer",
    cause,
    remediation: "Look at the program's own output, then send the request again.",
    reason,
  });
}

function passInformation(upstream: ClientRequest, response: AnyResponse): void {
  let passed = 0;
  upstream.on("information", ({ statusCode, headers }) => {
    passed += 1;
    if (passed > informationMax) {
      upstream.destroy(notHttp(`more than ${informationMax} times it announced an answer`));
      return;
    }
    if (response.headersSent) return;
    if (statusCode === 100) response.writeContinue();
    const { link } = headers;
    if (statusCode !== 103 || link === undefined) return;
    try {
      response.writeEarlyHints({ link });
    } catch {
      // A hint that is not well-formed helps nobody.
    }
  });
}

function sendHead(response: AnyResponse, answer: IncomingMessage, rewrite: (headers: Header[]) => Header[]): void {
  const headers = toRecord(rewrite(endToEnd(headersOf(answer))));
  try {
    (response as ServerResponse).writeHead(answer.statusCode ?? 502, headers);
    (response as ServerResponse).flushHeaders();
  } catch (error) {
    throw noAnswer(Object.assign(error as Error, { code: "HPE_INVALID_HEADER" }));
  }
}

function switchingHead(answer: IncomingMessage, protocol: string, rewrite: (headers: Header[]) => Header[]): Buffer {
  const lines = rewrite(endToEnd(headersOf(answer))).map(([name, value]) => `${name}: ${value}`);
  return Buffer.from(
    ["HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", `Upgrade: ${protocol}`, ...lines, "", ""].join("\r\n"),
    "latin1",
  );
}

/** Whoever waits for the rest learns that it does not come. */
export function breakOff(response: AnyResponse): void {
  if (response.stream) response.stream.close(2);
  else response.destroy();
}
