import { limits } from "@mitos/protocol";
import { AgentRunError, type ConnectFailure, errorForConnect, isObject, parseJson, redact } from "./errors.ts";
import { HttpClient, tokenOf } from "./http.ts";

const flagCompressed = 0x01;
const flagEndOfStream = 0x02;
const headerBytes = 5;
const frameBytesMax = limits.messageBytesMax;
/** Tells the code of the catalogue where Connect's own is coarser. */
const codeHeader = "mitos-error-code";
const retryAfterHeader = "retry-after";
const utf8 = new TextDecoder();

/** A protobuf message in its JSON form. */
export type Message = Record<string, unknown>;
type Headers = Readonly<Record<string, string>>;

/** The `sandbox.v1.Sandbox` service of one sandbox: Connect with JSON. */
export class ConnectClient {
  readonly #http: HttpClient;
  readonly #sandboxId: string;
  readonly #token: string | undefined;

  constructor(baseUrl: string | HttpClient, sandboxId: string, token?: string) {
    this.#http = typeof baseUrl === "string" ? new HttpClient(baseUrl, token) : baseUrl;
    this.#sandboxId = sandboxId;
    this.#token = tokenOf(this.#http);
  }

  /** A text of the sandbox as an error may show it. */
  redact(text: string): string {
    return redact(text, this.#token);
  }

  async unary(method: string, message: Message, signal?: AbortSignal): Promise<Message> {
    const response = await this.#call(method, "application/json", JSON.stringify(message), signal);
    const text = await this.#text(method, response, signal);
    if (text.trim() === "") return {};
    const answer = parseJson(text);
    if (!isObject(answer)) throw brokenStream(`${method} answered something that is not a JSON object`);
    return answer;
  }

  /** The answers as they arrive. Leaving the iteration early closes the request, which ends what it started. */
  serverStream(method: string, message: Message, signal?: AbortSignal, headers?: Headers): AsyncGenerator<Message, void, undefined> {
    return this.bidi(method, [message], signal, headers);
  }

  /** All messages are sent at once: fetch cannot send and receive at the same time over HTTP/1.1. */
  async *bidi(
    method: string,
    messages: readonly Message[],
    signal?: AbortSignal,
    headers?: Headers,
  ): AsyncGenerator<Message, void, undefined> {
    const response = await this.#call(method, "application/connect+json", encodeEnvelopes(messages), signal, headers);
    if (!response.body) throw brokenStream(`${method} answered without a body`);
    try {
      yield* decodeEnvelopes(response.body, this.#token);
    } catch (error) {
      throw this.#http.failure(method, error, signal);
    }
  }

  async #call(
    method: string,
    contentType: string,
    body: string | Uint8Array<ArrayBuffer>,
    signal?: AbortSignal,
    extraHeaders?: Headers,
  ): Promise<Response> {
    const headers = { ...extraHeaders, "Content-Type": contentType, "Connect-Protocol-Version": "1", "X-Sandbox-Id": this.#sandboxId };
    const response = await this.#http.fetch("POST", `/sandbox.v1.Sandbox/${method}`, body, { headers, signal });
    if (response.ok) return response;
    const text = await this.#text(method, response, signal);
    const failure = parseJson(text);
    if (isObject(failure) && typeof failure.code === "string") {
      throw errorForConnect(failure, this.#token, response.headers.get(codeHeader), response.headers.get(retryAfterHeader));
    }
    throw AgentRunError.fromResponse(response.status, text, this.#token, response.headers.get(retryAfterHeader));
  }

  async #text(method: string, response: Response, signal?: AbortSignal): Promise<string> {
    try {
      return await response.text();
    } catch (error) {
      throw this.#http.failure(method, error, signal);
    }
  }
}

/** One envelope per message: flag 0, length, JSON. */
export function encodeEnvelopes(messages: readonly Message[]): Uint8Array<ArrayBuffer> {
  const payloads = messages.map((message) => new TextEncoder().encode(JSON.stringify(message)));
  const all = new Uint8Array(payloads.reduce((sum, payload) => sum + headerBytes + payload.length, 0));
  const view = new DataView(all.buffer);
  let at = 0;
  for (const payload of payloads) {
    view.setUint32(at + 1, payload.length);
    all.set(payload, at + headerBytes);
    at += headerBytes + payload.length;
  }
  return all;
}

/**
 * The messages of a streaming answer, however the network cut it. Ends with the end-stream envelope.
 *
 * @throws the error that the end-stream envelope carries; internal_error for a compressed or oversized frame
 */
export async function* decodeEnvelopes(body: ReadableStream<Uint8Array>, token?: string): AsyncGenerator<Message, void, undefined> {
  const reader = body.getReader();
  const buffer = new ChunkBuffer();
  let isOver = false;
  try {
    for (;;) {
      for (let frame = nextFrame(buffer); frame; frame = nextFrame(buffer)) {
        const { isEnd, message } = frame;
        if (isEnd) {
          isOver = true;
          const { error, metadata } = message;
          if (isObject(error)) {
            throw errorForConnect(error as ConnectFailure, token, inTrailer(metadata, codeHeader), inTrailer(metadata, retryAfterHeader));
          }
          return;
        }
        yield message;
      }
      const { done, value } = await reader.read();
      // A body that just ends is told by the caller, who knows which last message is missing.
      if (done) return;
      buffer.push(value);
    }
  } finally {
    // Read to the end of the body: only then can the connection be used again. Whoever leaves after the last message that says anything leaves
    // before the end, which has mostly come with it.
    const atEnd = (isOver || isEndNext(buffer)) && (await reader.read().catch(() => ({ done: true }))).done;
    // Before the end of the body this closes the request.
    if (!atEnd) await reader.cancel().catch(() => undefined);
  }
}

/** The next message, when it is here in full. @throws internal_error */
function nextFrame(buffer: ChunkBuffer): { readonly isEnd: boolean; readonly message: Message } | undefined {
  const head = headOf(buffer);
  if (!head) return undefined;
  const { flags, length } = head;
  if (flags & flagCompressed) throw brokenStream("the server sent a compressed frame unasked");
  if (length > frameBytesMax) throw brokenStream(`the server sent a frame of ${length} bytes; ${frameBytesMax} are accepted`);
  if (buffer.length < headerBytes + length) return undefined;
  buffer.take(headerBytes);
  const message = parseJson(utf8.decode(buffer.take(length)));
  if (!isObject(message)) throw brokenStream("the server sent a frame that is not a JSON object");
  return { isEnd: (flags & flagEndOfStream) !== 0, message };
}

function isEndNext(buffer: ChunkBuffer): boolean {
  const head = headOf(buffer);
  return head !== undefined && (head.flags & flagEndOfStream) !== 0 && buffer.length >= headerBytes + head.length;
}

function headOf(buffer: ChunkBuffer): { readonly flags: number; readonly length: number } | undefined {
  if (buffer.length < headerBytes) return undefined;
  const header = buffer.peek(headerBytes);
  return { flags: header[0]!, length: new DataView(header.buffer, header.byteOffset).getUint32(1) };
}

/** Bytes that have arrived and not been used; joins pieces only where a frame spans them. */
class ChunkBuffer {
  #chunks: Uint8Array[] = [];
  length = 0;

  push(chunk: Uint8Array): void {
    if (chunk.length === 0) return;
    this.#chunks.push(chunk);
    this.length += chunk.length;
  }

  peek(count: number): Uint8Array {
    this.#join(count);
    return this.#chunks[0]!.subarray(0, count);
  }

  take(count: number): Uint8Array {
    if (count === 0) return new Uint8Array();
    this.#join(count);
    const first = this.#chunks[0]!;
    if (first.length === count) this.#chunks.shift();
    else this.#chunks[0] = first.subarray(count);
    this.length -= count;
    return first.subarray(0, count);
  }

  #join(count: number): void {
    if (this.#chunks[0]!.length >= count) return;
    const all = new Uint8Array(this.length);
    let at = 0;
    for (const chunk of this.#chunks) {
      all.set(chunk, at);
      at += chunk.length;
    }
    this.#chunks = [all];
  }
}

/** The trailer of a stream is a map from header name, in any case, to values. */
function inTrailer(metadata: unknown, wanted: string): string | undefined {
  if (!isObject(metadata)) return undefined;
  const values = Object.entries(metadata).find(([name]) => name.toLowerCase() === wanted)?.[1];
  return Array.isArray(values) && typeof values[0] === "string" ? values[0] : undefined;
}

function brokenStream(cause: string): AgentRunError {
  return new AgentRunError("the sandbox's answer cannot be read", {
    code: "internal_error",
    cause,
    remediation: "Call again; if it fails again, check that client and server are of matching versions.",
    status: 500,
  });
}
