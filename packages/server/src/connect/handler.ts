/** The Connect service on Node's requests, HTTP/1.1 and HTTP/2. */

import { randomUUID } from "node:crypto";
import type { ServerResponse } from "node:http";
import type { DescMethod } from "@bufbuild/protobuf";
import { ConnectError, createConnectRouter, createContextValues } from "@connectrpc/connect";
import { createAsyncIterable, type UniversalHandler, type UniversalServerResponse } from "@connectrpc/connect/protocol";
import {
  contentTypeStreamJson,
  contentTypeStreamProto,
  contentTypeUnaryJson,
  contentTypeUnaryProto,
} from "@connectrpc/connect/protocol-connect";
import { universalRequestFromNodeRequest } from "@connectrpc/connect-node";
import { isId, limits, MitosError } from "@mitos/protocol";
import { sandbox as pb } from "@mitos/protocol/proto";
import { rpcAccess } from "../auth/access.ts";
import type { ServerContext } from "../context.ts";
import { toConnectError } from "../errors.ts";
import type { AnyRequest } from "../http/guard.ts";
import type { HeldBody } from "../http/held-bodies.ts";
import { type AnyResponse, endLateBody, sendConnectError, sendEndStream, sendPlain } from "../http/plain.ts";
import { firstMessageIsWhole, unlessSilent } from "../http/silence.ts";
import { describeRequest } from "../http/tracing.ts";
import { writeTo } from "../stream/write.ts";
import { renameExecAliases, withExecAliases } from "./aliases.ts";
import { rawRequest } from "./call.ts";
import { directFormat, type Implementation, serveDirectly } from "./direct.ts";
import { heldGzip, Inflated } from "./held-gzip.ts";
import { heldMessages, heldWhole } from "./held-messages.ts";
import { blamingClient } from "./malformed.ts";
import { sandboxService } from "./service.ts";
import { wholeMessages } from "./whole-messages.ts";

export const servicePrefix = `/${pb.Sandbox.typeName}/`;

export function createConnectHandler(context: ServerContext): (request: AnyRequest, response: AnyResponse) => void {
  const router = createConnectRouter({
    acceptCompression: [heldGzip],
    readMaxBytes: limits.messageBytesMax,
    writeMaxBytes: limits.messageBytesMax,
  });
  const service = sandboxService(context);
  router.service(pb.Sandbox, service);
  const handlers = new Map(router.handlers.map((handler) => [handler.requestPath, handler]));

  return (request, response) => {
    const handler = handlers.get(request.url?.split("?", 1)[0] ?? "");
    if (!handler) return sendPlain(response, 404, "404 page not found");
    const { method } = handler;
    const requestId = randomUUID();
    response.setHeader("X-Request-Id", requestId);
    // Where the RPC finds it for its log lines; what the client sent under this name is not believed.
    request.headers["x-request-id"] = requestId;
    const sandbox = request.headers["x-sandbox-id"];
    describeRequest(request, { route: handler.requestPath, sandbox, requestId });
    response.once("close", () => {
      const { statusCode: status } = response;
      context.metrics.requests.inc({ method: request.method ?? "", route: handler.requestPath, status });
      context.log.debug({ requestId, rpc: method.name, status, ...(isId(sandbox) ? { sandbox } : {}) }, "answered");
    });
    if (request.method !== "POST") return sendPlain(response, 405, "method not allowed", { Allow: "POST" });
    if (method.methodKind === "bidi_streaming" && request.httpVersionMajor === 1) {
      // The body may never end, so the connection must.
      return sendPlain(response, 505, "this RPC needs HTTP/2", { Connection: "close" });
    }
    if (!handler.supportedContentType(request.headers["content-type"] ?? "")) {
      return sendPlain(response, 415, "unsupported media type", { "Accept-Post": acceptPost(handler) });
    }
    const { name, localName } = method;
    const denied = context.auth?.authorise(request, response, rpcAccess[localName as keyof typeof rpcAccess], name);
    if (denied) return refuseRpc(request, response, denied);
    response.once("finish", () => endLateBody(request));
    const implementation = service[localName as keyof typeof service] as Implementation;
    serve(context, { handler, implementation, request, response }).catch((error: unknown) => {
      context.log.debug({ requestId, rpc: method.name, code: ConnectError.from(error).code }, "an RPC was broken off");
      request.destroy();
    });
  };
}

/** Before anything of the body is read. A Connect stream carries its errors in its end, everything else in its status. */
export function refuseRpc(request: AnyRequest, response: AnyResponse, error: MitosError): void {
  const contentType = request.headers["content-type"] ?? "";
  const connect = toConnectError(error);
  if (contentType.startsWith("application/connect+")) sendEndStream(response, contentType, connect);
  else sendConnectError(response, connect);
}

interface Exchange {
  readonly handler: UniversalHandler;
  readonly implementation: Implementation;
  readonly request: AnyRequest;
  readonly response: AnyResponse;
}

async function serve(context: ServerContext, exchange: Exchange): Promise<void> {
  const { request, response, implementation, handler } = exchange;
  const { method } = handler;
  using held = context.holdBody(request, method.name);
  const silenceMs = context.bodySilenceMs;
  const format = directFormat(method, request);
  if (!format) return await serveByLibrary(exchange, held, (inflated) => bodyOf(handler, request, { held, inflated, silenceMs }));
  const rename = hasAliases(method, format.contentType) ? renameExecAliases : undefined;
  const unread = await serveDirectly({ method, format, implementation, request, response, held, silenceMs, rename });
  if (unread) await serveByLibrary(exchange, held, () => createAsyncIterable([unread]));
}

async function serveByLibrary(
  { handler, request, response }: Exchange,
  held: HeldBody,
  bodyWith: (inflated: Inflated) => AsyncIterable<Uint8Array>,
): Promise<void> {
  const contextValues = createContextValues().set(rawRequest, request);
  const universal = universalRequestFromNodeRequest(request, response, undefined, contextValues);
  const inflated = new Inflated(held);
  await inflated.during(async () => {
    const answer = await handler({ ...universal, body: bodyWith(inflated) });
    await sendAnswer(await blamingClient(answer), response);
  });
}

/** The headers wait for the first message, so that an RPC may still set some. */
async function sendAnswer({ status, header, body, trailer }: UniversalServerResponse, response: AnyResponse): Promise<void> {
  const messages = body?.[Symbol.asyncIterator]();
  let message = await messages?.next();
  (response as ServerResponse).writeHead(status, Object.fromEntries(header ?? []));
  for (; message && !message.done; message = await messages?.next()) {
    try {
      await writeTo(response, message.value);
    } catch (error) {
      // Tells the RPC that nobody listens.
      await messages?.throw?.(error).catch(() => {});
      throw error;
    }
  }
  if (trailer) response.addTrailers(Object.fromEntries(trailer));
  response.end();
}

/** Connect's streams, and all of gRPC. */
const hasEnvelopes = /^application\/(?:connect\+|grpc)/;

interface Reading {
  readonly held: HeldBody;
  readonly inflated: Inflated;
  readonly silenceMs: number;
}

async function* bodyOf(handler: UniversalHandler, request: AnyRequest, { held, inflated, silenceMs }: Reading): AsyncGenerator<Uint8Array> {
  // An answer may be due before the body is read to its end, on the same connection: leaving the body must not destroy it.
  const bytes = request.iterator({ destroyOnReturn: false }) as AsyncIterable<Uint8Array>;
  const { methodKind } = handler.method;
  // Who types into a program, or has a connection into a sandbox, may think for hours.
  const isCalm = methodKind === "bidi_streaming" ? firstMessageIsWhole() : undefined;
  const received = unlessSilent(bytes, silenceMs, isCalm);
  const isOneMessage = methodKind === "unary" || methodKind === "server_streaming";
  const counted = isOneMessage ? heldWhole(received, held) : heldMessages(received, held, inflated);
  const contentType = request.headers["content-type"] ?? "";
  const body = hasEnvelopes.test(contentType) ? wholeMessages(counted) : counted;
  try {
    yield* hasAliases(handler.method, contentType) ? withExecAliases(body) : body;
  } catch (error) {
    throw error instanceof MitosError ? toConnectError(error) : error;
  }
}

function hasAliases(method: DescMethod, contentType: string): boolean {
  return method === pb.Sandbox.method.execStream && contentType.startsWith(contentTypeStreamJson);
}

function acceptPost({ method }: UniversalHandler): string {
  const own =
    method.methodKind === "unary" ? [contentTypeUnaryJson, contentTypeUnaryProto] : [contentTypeStreamJson, contentTypeStreamProto];
  return [
    ...own,
    "application/grpc",
    "application/grpc+json",
    "application/grpc+proto",
    "application/grpc-web",
    "application/grpc-web+json",
    "application/grpc-web+proto",
  ].join(", ");
}
