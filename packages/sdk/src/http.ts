import { type Connection, HOSTED_BASE_URL, hasEnvironment, resolveConnection, toBaseUrl, toToken } from "./config.ts";
import { AgentRunError, canceledError, parseJson, redact, transportError } from "./errors.ts";
import { nodeHttp } from "./node-http.ts";
import { patientDispatcher } from "./patience.ts";

/** What goes with one request beside its body. */
export interface RequestOptions {
  headers?: Readonly<Record<string, string>> | undefined;
  signal?: AbortSignal | undefined;
}

/** Streams are sent as they come and never held in memory. Bytes must not change until the request has ended. */
export type RequestBody = string | Uint8Array<ArrayBuffer> | Blob | ReadableStream<Uint8Array>;

/** Fewer bytes are copied sooner than a stream is set up. */
const streamedBytesMin = 1024 * 1024;
const pieceBytes = 1024 * 1024;

let readToken: (http: HttpClient) => string | undefined;

/** For the sibling clients of the same sandbox. Not a member of HttpClient: whatever a caller does with one shows no key. */
export function tokenOf(http: HttpClient): string | undefined {
  return readToken(http);
}

/** The `/v1` routes of one server with one key. Answers are parsed, failures are AgentRunErrors, and the key is in none of them. */
export class HttpClient {
  readonly baseUrl: string;
  readonly #token: string | undefined;

  static {
    readToken = (http) => http.#token;
  }

  static fromAuth(connection: Connection = {}): HttpClient {
    const { baseUrl, token } = resolveConnection(connection);
    return new HttpClient(baseUrl, token);
  }

  /** @throws invalid_base_url, invalid_api_key */
  constructor(baseUrl: string, token?: string) {
    this.baseUrl = toBaseUrl(baseUrl);
    this.#token = toToken(token);
  }

  async get(path: string, options: RequestOptions = {}): Promise<unknown> {
    return this.json(path, await this.send("GET", path, undefined, options));
  }

  async post(path: string, body: unknown, extraHeaders?: Readonly<Record<string, string>>, signal?: AbortSignal): Promise<unknown> {
    const headers = { "Content-Type": "application/json", ...extraHeaders };
    return this.json(path, await this.send("POST", path, JSON.stringify(body), { headers, signal }));
  }

  async postStream(path: string, body: unknown, options: RequestOptions = {}): Promise<ReadableStream<Uint8Array>> {
    const headers = { "Content-Type": "application/json", ...options.headers };
    return bodyOf(await this.send("POST", path, JSON.stringify(body), { ...options, headers }));
  }

  async getStream(path: string, options: RequestOptions = {}): Promise<ReadableStream<Uint8Array>> {
    return bodyOf(await this.send("GET", path, undefined, options));
  }

  async put(path: string, body: RequestBody, options: RequestOptions = {}): Promise<unknown> {
    return this.json(path, await this.send("PUT", path, body, options));
  }

  async del(path: string, options: RequestOptions = {}): Promise<unknown> {
    return this.json(path, await this.send("DELETE", path, undefined, options));
  }

  /** Any 2xx answer as it is. @throws the answer's error otherwise, transport_error without an answer, canceled */
  async send(method: string, path: string, body: RequestBody | undefined, options: RequestOptions = {}): Promise<Response> {
    const response = await this.fetch(method, path, body, options);
    if (response.ok) return response;
    const text = await this.#text(method, path, response, options.signal);
    throw AgentRunError.fromResponse(response.status, text, this.#token, response.headers.get("Retry-After"));
  }

  /** Any answer, whatever its status. */
  async fetch(method: string, path: string, body: RequestBody | undefined, options: RequestOptions = {}): Promise<Response> {
    const { signal } = options;
    const url = `${this.baseUrl}${path}`;
    const headers: Record<string, string> = { ...options.headers };
    if (this.#token) headers.Authorization = `Bearer ${this.#token}`;
    try {
      if (body === undefined || typeof body === "string" || body instanceof Uint8Array) {
        const ask = nodeHttp(this.baseUrl);
        if (ask) return await ask(url, { method, headers, body, signal });
      }
      return await fetchPatiently(url, { method, headers, redirect: "error", ...(signal ? { signal } : {}) }, body);
    } catch (error) {
      throw this.failure(`${method} ${path.split("?")[0]}`, error, signal);
    }
  }

  /** The error for a request or a body that broke off. */
  failure(what: string, reason: unknown, signal?: AbortSignal): AgentRunError {
    if (reason instanceof AgentRunError) return reason;
    if (signal?.aborted) return canceledError(what, signal);
    return transportError(what, this.baseUrl, reason, this.#token);
  }

  async #text(method: string, path: string, response: Response, signal?: AbortSignal): Promise<string> {
    try {
      return await response.text();
    } catch (error) {
      throw this.failure(`${method} ${path.split("?")[0]}`, error, signal);
    }
  }

  /** The body of an answer for whoever asked for a stream: it fails as a request does, and nothing is read ahead. */
  stream(what: string, response: Response, signal?: AbortSignal): ReadableStream<Uint8Array> {
    const reader = bodyOf(response).getReader();
    return new ReadableStream<Uint8Array>(
      {
        pull: async (controller) => {
          const { done, value } = await reader.read().catch((error: unknown) => {
            throw this.failure(what, error, signal);
          });
          if (done) controller.close();
          else controller.enqueue(value);
        },
        cancel: (reason) => reader.cancel(reason),
      },
      { highWaterMark: 0 },
    );
  }

  /** The whole body of an answer. @throws transport_error when it breaks off */
  async bytes(path: string, response: Response): Promise<Uint8Array<ArrayBuffer>> {
    try {
      return new Uint8Array(await response.arrayBuffer());
    } catch (error) {
      throw this.failure(`reading ${path}`, error);
    }
  }

  /** @throws invalid_response when the body is something else, such as a web page */
  async json(path: string, response: Response): Promise<unknown> {
    const text = await this.#text("reading", path, response);
    if (text.trim() === "") return {};
    const value = parseJson(text);
    if (value !== undefined) return value;
    throw new AgentRunError("the answer is not JSON", {
      code: "invalid_response",
      cause: `${path.split("?")[0]} answered: ${redact(text.trim(), this.#token).slice(0, 200)}`,
      remediation: notTheApi(this.baseUrl),
    });
  }
}

async function fetchPatiently(url: string, init: RequestInit & { duplex?: "half" }, body: RequestBody | undefined): Promise<Response> {
  const dispatcher = patientDispatcher();
  if (dispatcher) Object.assign(init, { dispatcher });
  if (body !== undefined) init.body = (await sendable(body)) as NonNullable<RequestInit["body"]>;
  if (init.body instanceof ReadableStream) init.duplex = "half";
  return await fetch(url, init);
}

/**
 * A browser sends a stream over HTTP/2 only; there it is gathered first, into a Blob, which a browser keeps on disk when it is large. Elsewhere many
 * bytes become a stream: given as they are, fetch copies them all before it sends the first one.
 */
async function sendable(body: RequestBody): Promise<RequestBody> {
  if (!hasEnvironment()) return body instanceof ReadableStream ? new Response(body).blob() : body;
  return body instanceof Uint8Array && body.byteLength > streamedBytesMin ? streamOf(body) : body;
}

function streamOf(bytes: Uint8Array): ReadableStream<Uint8Array> {
  let at = 0;
  return new ReadableStream(
    {
      pull(controller) {
        controller.enqueue(bytes.subarray(at, at + pieceBytes));
        at += pieceBytes;
        if (at >= bytes.byteLength) controller.close();
      },
    },
    { highWaterMark: 0 },
  );
}

function notTheApi(baseUrl: string): string {
  if (baseUrl === HOSTED_BASE_URL)
    return "Set MITOS_BASE_URL to https://api.mitos.run, the API of the hosted service; this is the address of its pages.";
  return `Check that ${baseUrl} is the address of the API (baseUrl or MITOS_BASE_URL), not of a web page.`;
}

function bodyOf(response: Response): ReadableStream<Uint8Array> {
  return response.body ?? new ReadableStream({ start: (controller) => controller.close() });
}
