import { type Connection, resolveBaseUrl, resolveToken } from "./config.ts";
import { AgentRunError, canceledError, parseJson, redact, transportError } from "./errors.ts";
import { patientDispatcher } from "./patience.ts";

/** What goes with one request beside its body. */
export interface RequestOptions {
  headers?: Readonly<Record<string, string>> | undefined;
  signal?: AbortSignal | undefined;
}

/** Streams are sent as they come and never held in memory. */
export type RequestBody = string | Uint8Array<ArrayBuffer> | ReadableStream<Uint8Array>;

/** The `/v1` routes of one server with one key. Answers are parsed, failures are AgentRunErrors, and the key is in none of them. */
export class HttpClient {
  readonly baseUrl: string;
  readonly #token: string | undefined;

  static fromAuth({ baseUrl, apiKey }: Connection = {}): HttpClient {
    return new HttpClient(resolveBaseUrl(baseUrl), resolveToken(apiKey));
  }

  constructor(baseUrl: string, token?: string) {
    this.baseUrl = baseUrl.replace(/\/+$/, "");
    this.#token = token || undefined;
  }

  /** For the sibling clients of the same sandbox only; it is not enumerable and never printed. */
  get token(): string | undefined {
    return this.#token;
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
    const headers: Record<string, string> = { ...options.headers };
    if (this.#token) headers.Authorization = `Bearer ${this.#token}`;
    const init: RequestInit & { duplex?: "half" } = { method, headers, redirect: "error" };
    if (body !== undefined) init.body = body as NonNullable<RequestInit["body"]>;
    if (body instanceof ReadableStream) init.duplex = "half";
    if (options.signal) init.signal = options.signal;
    const dispatcher = patientDispatcher();
    if (dispatcher) Object.assign(init, { dispatcher });
    try {
      return await fetch(`${this.baseUrl}${path}`, init);
    } catch (error) {
      throw this.failure(`${method} ${path.split("?")[0]}`, error, options.signal);
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

  /** @throws invalid_response when the body is something else, such as a web page */
  async json(path: string, response: Response): Promise<unknown> {
    const text = await this.#text("reading", path, response);
    if (text.trim() === "") return {};
    const value = parseJson(text);
    if (value !== undefined) return value;
    throw new AgentRunError("the answer is not JSON", {
      code: "invalid_response",
      cause: redact(`${path.split("?")[0]} answered: ${text.trim().slice(0, 200)}`, this.#token),
      remediation: `Check that ${this.baseUrl} is the address of the API (baseUrl or MITOS_BASE_URL), not of a web page.`,
    });
  }
}

function bodyOf(response: Response): ReadableStream<Uint8Array> {
  return response.body ?? new ReadableStream({ start: (controller) => controller.close() });
}
