import { type LookupAddress, type LookupOptions, lookup } from "node:dns";
import http, { type ClientRequest, type IncomingHttpHeaders, type IncomingMessage } from "node:http";
import https from "node:https";
import { pipeline } from "node:stream/promises";
import { createSecureContext, getCACertificates } from "node:tls";
import { MitosError } from "@mitos/protocol";
import type { Clock } from "../clock.ts";
import { isLoopback, isNeverRegistry } from "./loopback.ts";

/** A connection that could not be made, broke, or fell silent: another try may succeed. Holds no header and no query of its request. */
export class ConnectionLost extends Error {
  override readonly name = "ConnectionLost";
}

/** An address that is never connected to. */
export class ForbiddenAddress extends Error {
  override readonly name = "ForbiddenAddress";
}

export interface HttpRequest {
  readonly method: "GET" | "HEAD" | "POST" | "PUT" | "PATCH";
  readonly url: URL;
  readonly headers?: Readonly<Record<string, string>> | undefined;
  readonly body?: Uint8Array | Upload | undefined;
  readonly signal?: AbortSignal | undefined;
  /** How long the other side may take nothing and say nothing. Default: 30 seconds. */
  readonly silenceMsMax?: number | undefined;
}

export interface Upload {
  readonly chunks: AsyncIterable<Uint8Array>;
  readonly bytes: number;
}

/** An answer whose body has not been read yet: it is read to its end, or dropped. */
export interface HttpResponse {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  /** @throws ConnectionLost when it ends early; the reason of the signal */
  readonly chunks: AsyncIterable<Uint8Array>;
  /** Gives the body up; with it the connection, unless there is little to come. */
  drop(): void;
}

export const silenceMsMax = 30_000;
/** After this an unused connection is closed. */
const unusedMsMax = 15_000;
const droppedBytesMax = 64 * 1024;

/**
 * HTTP as registries need it: streams both ways, no redirects of its own accord, no limit on time but one on silence. Honours HTTPS_PROXY,
 * HTTP_PROXY and NO_PROXY, except for loopback addresses. Trusts the certificates of Node and of the system.
 */
export class HttpClient {
  readonly #clock: Clock;
  readonly #local = new http.Agent({ keepAlive: true, timeout: unusedMsMax });
  readonly #plain = new http.Agent({ keepAlive: true, timeout: unusedMsMax, proxyEnv: process.env, lookup: lookUp });
  #secure: https.Agent | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Resolves with the headers. @throws ConnectionLost, ForbiddenAddress; the reason of the signal */
  async send({ method, url, headers, body, signal, silenceMsMax: msMax = silenceMsMax }: HttpRequest): Promise<HttpResponse> {
    signal?.throwIfAborted();
    if (isNeverRegistry(url.hostname)) throw new ForbiddenAddress(`${url.hostname} is no address of a registry`);
    const request = (url.protocol === "https:" ? https : http).request(url, {
      method,
      agent: this.#agentFor(url),
      headers: { "user-agent": "mitos", ...headers, ...(body === undefined ? {} : { "content-length": lengthOf(body) }) },
    });
    const silence = new Silence(this.#clock, msMax, () =>
      request.destroy(new ConnectionLost(`${url.host} said nothing for ${msMax / 1000} seconds`)),
    );
    const asFailure = (error: unknown) => (signal?.aborted ? signal.reason : asConnectionLost(error, url.host));
    const abort = () => request.destroy(new ConnectionLost("given up"));
    signal?.addEventListener("abort", abort, { once: true });
    request.once("close", () => {
      silence.end();
      signal?.removeEventListener("abort", abort);
    });
    const answered = new Promise<IncomingMessage>((resolve, reject) => {
      request.once("response", resolve);
      request.on("error", (error) => reject(asFailure(error)));
    });
    // The answer, such as a refusal, may come before all of the body is sent.
    send(request, body, silence).catch((error: Error) => request.destroy(error));
    const response = await answered;
    silence.resume();
    // Kept for whoever reads the body; nobody may.
    response.on("error", () => {});
    return {
      status: response.statusCode ?? 0,
      headers: response.headers,
      chunks: read(response, silence, asFailure),
      drop: () => {
        if (request.writableFinished && isShort(method, response)) response.resume();
        else request.destroy();
      },
    };
  }

  #agentFor(url: URL): http.Agent {
    if (url.protocol === "http:") return isLoopback(url.hostname) ? this.#local : this.#plain;
    this.#secure ??= new https.Agent({
      keepAlive: true,
      timeout: unusedMsMax,
      proxyEnv: process.env,
      lookup: lookUp,
      // Made once: there are hundreds of certificates to read.
      secureContext: createSecureContext({ ca: [...new Set([...getCACertificates("default"), ...getCACertificates("system")])] }),
    });
    return this.#secure;
  }
}

/** The whole body; undefined when it is longer. */
export async function readAll(response: HttpResponse, bytesMax: number): Promise<Buffer | undefined> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of response.chunks) {
    bytes += chunk.length;
    if (bytes > bytesMax) return undefined;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

async function send(request: ClientRequest, body: HttpRequest["body"], silence: Silence): Promise<void> {
  if (body === undefined || body instanceof Uint8Array) {
    request.end(body);
    return;
  }
  const { chunks } = body;
  await pipeline(async function* () {
    silence.pause();
    for await (const chunk of chunks) {
      silence.resume();
      yield chunk;
      silence.pause();
    }
    silence.resume();
  }, request);
}

async function* read(response: IncomingMessage, silence: Silence, asFailure: (error: unknown) => unknown): AsyncGenerator<Uint8Array> {
  try {
    for await (const chunk of response) {
      silence.pause();
      yield chunk as Uint8Array;
      silence.resume();
    }
  } catch (error) {
    throw asFailure(error);
  } finally {
    silence.end();
  }
}

/** Worth reading to its end for the sake of the connection. */
function isShort(method: HttpRequest["method"], { headers }: IncomingMessage): boolean {
  return method === "HEAD" || Number(headers["content-length"] ?? Number.POSITIVE_INFINITY) <= droppedBytesMax;
}

function lengthOf(body: Uint8Array | Upload): number {
  return body instanceof Uint8Array ? body.length : body.bytes;
}

/** Failures of what is sent stay what they are. */
function asConnectionLost(error: unknown, host: string): unknown {
  if (error instanceof ConnectionLost || error instanceof ForbiddenAddress || error instanceof MitosError) return error;
  const { code, message } = error as { code?: string; message?: string };
  // Of a failed way through a proxy the message may hold the proxy's own credentials.
  const why =
    code === "ERR_PROXY_TUNNEL" ? "the proxy refuses the connection" : code === "ECONNRESET" ? "the connection broke" : (message ?? code);
  return new ConnectionLost(`${host}: ${why}`);
}

/** Tells when the other side has been waited for too long at a stretch. */
class Silence {
  readonly #clock: Clock;
  readonly #msMax: number;
  readonly #tell: () => void;
  #cancel: (() => void) | undefined;
  #isOver = false;

  constructor(clock: Clock, msMax: number, tell: () => void) {
    this.#clock = clock;
    this.#msMax = msMax;
    this.#tell = tell;
    this.resume();
  }

  /** It is our turn. */
  pause(): void {
    this.#cancel?.();
    this.#cancel = undefined;
  }

  resume(): void {
    this.pause();
    if (this.#isOver) return;
    this.#cancel = this.#clock.after(this.#msMax, this.#tell);
  }

  end(): void {
    this.#isOver = true;
    this.pause();
  }
}

/** As Node looks names up, without the addresses at which no registry is. */
function lookUp(
  hostname: string,
  options: LookupOptions,
  done: (error: NodeJS.ErrnoException | null, address: string | LookupAddress[], family?: number) => void,
): void {
  lookup(hostname, { ...options, all: true }, (error, addresses) => {
    if (error) return done(error, []);
    const left = addresses.filter(({ address }) => !isNeverRegistry(address));
    const [first] = left;
    if (!first) return done(new ForbiddenAddress(`${hostname} has no address of a registry`), []);
    if (options.all) done(null, left);
    else done(null, first.address, first.family);
  });
}
