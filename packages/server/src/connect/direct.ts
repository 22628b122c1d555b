/**
 * The short way of most calls: Connect's own protocol, one message that comes whole and as it is, no deadline. connect-es passes every byte of a
 * call through some twenty iterators, which took longer than all else that the server does for a short one. What both ways answer is the same;
 * whatever is unusual about a call, a message that does not parse among it, takes the long way.
 */

import type { ServerResponse } from "node:http";
import { type DescMessage, type DescMethod, fromBinary, fromJsonString, type Message, toBinary, toJsonString } from "@bufbuild/protobuf";
import { Code, ConnectError, createContextValues } from "@connectrpc/connect";
import {
  contentTypeStreamJson,
  contentTypeStreamProto,
  contentTypeUnaryJson,
  contentTypeUnaryProto,
} from "@connectrpc/connect/protocol-connect";
import { limits, MitosError } from "@mitos/protocol";
import { envelope, envelopeHeaderBytes } from "../envelope.ts";
import { toConnectError } from "../errors.ts";
import type { AnyRequest } from "../http/guard.ts";
import type { HeldBody } from "../http/held-bodies.ts";
import { type AnyResponse, endOfStream, sendConnectError } from "../http/plain.ts";
import { readToEnd } from "../http/silence.ts";
import { writeTo } from "../stream/write.ts";
import { type RpcContext, rawRequest } from "./call.ts";
import { heldGzip } from "./held-gzip.ts";

/** Larger requests are read as they come. */
const requestBytesMax = 1024 * 1024;
/** Shorter answers are sent as they are, whatever the client accepts; connect-es does so from the same size. */
const compressedBytesMin = 1024;

/** Of a unary RPC the message, of one with a stream of answers these. */
type Answer = Promise<Message> | AsyncIterable<Message>;
export type Implementation = (request: Message, context: RpcContext) => Answer;

interface Format {
  readonly contentType: string;
  parse(schema: DescMessage, bytes: Buffer): Message;
  write(schema: DescMessage, message: Message): Uint8Array;
}

const json = {
  parse: (schema: DescMessage, bytes: Buffer) => fromJsonString(schema, bytes.toString(), { ignoreUnknownFields: true }),
  write: (schema: DescMessage, message: Message) => Buffer.from(toJsonString(schema, message)),
};
const proto = { parse: fromBinary, write: toBinary };

const unaryFormats: readonly Format[] = [
  { contentType: contentTypeUnaryJson, ...json },
  { contentType: contentTypeUnaryProto, ...proto },
];
const streamFormats: readonly Format[] = [
  { contentType: contentTypeStreamJson, ...json },
  { contentType: contentTypeStreamProto, ...proto },
];

/** Each makes a call one for the long way. */
const unusualHeaders = ["connect-timeout-ms", "content-encoding", "connect-content-encoding", "connect-accept-encoding"];

/** @returns undefined for what takes the long way */
export function directFormat({ methodKind }: DescMethod, { headers }: AnyRequest): Format | undefined {
  const formats = methodKind === "unary" ? unaryFormats : methodKind === "server_streaming" ? streamFormats : [];
  const format = formats.find(({ contentType }) => contentType === headers["content-type"]);
  const isWhole = Number(headers["content-length"] ?? Number.NaN) <= requestBytesMax;
  return isWhole && !unusualHeaders.some((name) => name in headers) ? format : undefined;
}

export interface DirectCall {
  readonly method: DescMethod;
  readonly format: Format;
  readonly implementation: Implementation;
  readonly request: AnyRequest;
  readonly response: AnyResponse;
  readonly held: HeldBody;
  readonly silenceMs: number;
  /** Puts the JSON of a request right that one published client sends in another form. */
  readonly rename?: ((json: Buffer) => Buffer) | undefined;
}

/** Answers. @returns the body when it is to take the long way after all: nothing has been answered then */
export async function serveDirectly(call: DirectCall): Promise<Buffer | undefined> {
  const { method, implementation, request, response } = call;
  const left = new AbortController();
  response.once("close", () => {
    if (!response.writableEnded) left.abort(new ConnectError("the client has gone", Code.Canceled));
  });
  const send = method.methodKind === "unary" ? sendUnary : sendStream;
  let body: Buffer;
  try {
    body = await read(call);
  } catch (error) {
    await send(call, left.signal, () => {
      throw error;
    });
    return undefined;
  }
  const message = parsed(call, body);
  if (!message) return body;
  await send(call, left.signal, () => implementation(message, contextOf(request, left.signal)));
  return undefined;
}

/** @throws invalid_input when the client falls silent, canceled when it goes away, quota_exceeded */
async function read({ request, held, silenceMs }: DirectCall): Promise<Buffer> {
  const pieces: Buffer[] = [];
  await readToEnd(request, silenceMs, (piece) => {
    held.add(piece.byteLength);
    pieces.push(piece);
  });
  return pieces.length === 1 ? pieces[0]! : Buffer.concat(pieces);
}

/** The one message. Undefined when it cannot be read: why, the long way says. */
function parsed({ method, format, rename }: DirectCall, body: Buffer): Message | undefined {
  const payload = method.methodKind === "unary" ? body : onlyPayload(body);
  try {
    return payload && format.parse(method.input, rename ? rename(payload) : payload);
  } catch {
    return undefined;
  }
}

function onlyPayload(body: Buffer): Buffer | undefined {
  const isOne = body.byteLength >= envelopeHeaderBytes && body[0] === 0 && envelopeHeaderBytes + body.readUInt32BE(1) === body.byteLength;
  return isOne ? body.subarray(envelopeHeaderBytes) : undefined;
}

function contextOf(request: AnyRequest, signal: AbortSignal): RpcContext {
  const get = (name: string) => {
    const value = request.headers[name.toLowerCase()];
    return Array.isArray(value) ? value.join(", ") : (value ?? null);
  };
  return { signal, requestHeader: { get }, values: createContextValues().set(rawRequest, request) };
}

async function sendUnary({ method, format, request, response }: DirectCall, left: AbortSignal, answer: () => Answer): Promise<void> {
  let body: Uint8Array;
  try {
    body = written(format, method, await (answer() as Promise<Message>));
  } catch (error) {
    left.throwIfAborted();
    return sendConnectError(response, asConnectError(error));
  }
  left.throwIfAborted();
  const isCompressed = body.byteLength >= compressedBytesMin && accepts(request.headers["accept-encoding"], heldGzip.name);
  if (isCompressed) body = await heldGzip.compress(body);
  (response as ServerResponse).writeHead(200, {
    "content-type": format.contentType,
    ...(isCompressed ? { "content-encoding": heldGzip.name } : {}),
    "content-length": String(body.byteLength),
  });
  response.end(body);
}

/** The headers go with the first message. */
async function sendStream({ method, format, response }: DirectCall, left: AbortSignal, answer: () => Answer): Promise<void> {
  const begin = () => {
    if (!response.headersSent) (response as ServerResponse).writeHead(200, { "content-type": format.contentType });
  };
  let failure: ConnectError | undefined;
  try {
    for await (const message of answer() as AsyncIterable<Message>) {
      left.throwIfAborted();
      const piece = envelope(written(format, method, message));
      begin();
      await writeTo(response, piece);
    }
  } catch (error) {
    failure = asConnectError(error);
  }
  // Nobody is there to be told.
  left.throwIfAborted();
  begin();
  response.end(endOfStream(failure));
}

/** @throws resource_exhausted for more than a message may have */
function written({ write }: Format, { output }: DescMethod, message: Message): Uint8Array {
  const bytes = write(output, message);
  if (bytes.byteLength > limits.messageBytesMax) {
    throw new ConnectError(
      `message size ${bytes.byteLength} is larger than configured writeMaxBytes ${limits.messageBytesMax}`,
      Code.ResourceExhausted,
    );
  }
  return bytes;
}

function asConnectError(error: unknown): ConnectError {
  if (error instanceof ConnectError || error instanceof MitosError) return toConnectError(error);
  return new ConnectError("internal error", Code.Internal, undefined, undefined, error);
}

function accepts(header: string | string[] | undefined, name: string): boolean {
  return typeof header === "string" && header.split(",").some((one) => one.trim() === name);
}
