/**
 * Requests on Node over plain HTTP. Its fetch takes twice the time of a short call, reads 64 KiB at a time into new memory, and copies each piece once
 * more; and bytes that it is to send it copies before it begins. Here one buffer is read into, and what has come is copied once. Reading, parsing and
 * connections are Node's own: `net` (its `onread`) and `http`.
 */

import { patientDispatcher } from "./patience.ts";

export interface NodeRequest {
  readonly method: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: string | Uint8Array | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** As fetch with `redirect: "error"`, and with no limit to an answer's silence. Rejects with what Node says, which differs from what fetch says. */
export type Ask = (url: string, request: NodeRequest) => Promise<Response>;

const readBytes = 256 * 1024;
/** Of one stream, beyond which nothing more is taken from its connection. */
const queuedBytesMax = readBytes;
const connectTimeoutMs = 10_000;
/** A connection that nobody uses is kept for so long, or less where the server says so. Longer ones may be gone without a word: a router has forgotten them. */
const idleMsDefault = 30_000;

/** Undefined where fetch has to do it: elsewhere than on Node, over TLS, and where a proxy or a mock stands in the place of Node's own connections. */
export function nodeHttp(baseUrl: string): Ask | undefined {
  if (!baseUrl.startsWith("http://") || !patientDispatcher() || !hasNodeFetch()) return undefined;
  shared ??= newNodeHttp();
  return shared;
}

let shared: Ask | undefined;

let looked: { readonly at: unknown; readonly own: boolean } | undefined;

/** Whether `fetch` is Node's own and nothing that was put in its place. Node gives it no mark: it is known by the module that it loads. */
function hasNodeFetch(): boolean {
  const { fetch } = globalThis;
  if (looked?.at !== fetch) looked = { at: fetch, own: typeof fetch === "function" && `${fetch}`.includes("internal/deps/undici/") };
  return looked.own;
}

/** With connections of its own. Undefined on a Node that is too old for it. */
export function newNodeHttp({ idleMs = idleMsDefault } = {}): Ask | undefined {
  const { process } = globalThis as { process?: { getBuiltinModule?: <N extends keyof NodeModules>(name: N) => NodeModules[N] } };
  if (!process?.getBuiltinModule) return undefined;
  const made = connections(process.getBuiltinModule("node:http"), process.getBuiltinModule("node:net"), idleMs);
  return (url, request) => ask(made, url, request);
}

/** As much of Node as is used here; the SDK is compiled without Node's types too. */
interface NodeModules {
  readonly "node:http": {
    Agent: new (options: { keepAlive: boolean; timeout: number }) => Agent;
    request(url: string, options: { agent: Agent } & Omit<NodeRequest, "body">): Outgoing;
  };
  readonly "node:net": { connect(options: object): Socket };
}

interface Agent {
  createConnection: (options: object) => Socket;
}

interface Emitter {
  on(event: string, listener: (argument: never) => void): this;
  once(event: string, listener: (argument: never) => void): this;
}

interface Socket extends Emitter {
  emit(event: "data", bytes: Uint8Array): boolean;
  destroy(error?: Error): void;
  setTimeout(ms: number, onTimeout?: () => void): void;
}

interface Outgoing extends Emitter {
  readonly reusedSocket: boolean;
  readonly writableFinished: boolean;
  end(body?: string | Uint8Array): void;
  destroy(): void;
}

interface Incoming extends Emitter {
  readonly statusCode: number;
  readonly statusMessage: string;
  readonly rawHeaders: readonly string[];
  pause(): void;
  resume(): void;
  destroy(error?: Error): void;
}

interface Connections {
  readonly http: NodeModules["node:http"];
  readonly agent: Agent;
  /** What all of them are read into. */
  readonly buffer: Uint8Array;
  /** Whether Node's parser copies what it hands on, as it does in all versions so far. Undefined before the first answer has shown it. */
  parserCopies: boolean | undefined;
  /** Memory that was given to the parser to find that out. */
  readonly given: WeakSet<ArrayBufferLike>;
}

function connections(http: NodeModules["node:http"], net: NodeModules["node:net"], idleMs: number): Connections {
  const agent = new http.Agent({ keepAlive: true, timeout: idleMs });
  const buffer = new Uint8Array(readBytes);
  const made: Connections = { http, agent, buffer, parserCopies: undefined, given: new WeakSet() };
  agent.createConnection = (options) => {
    // An event of the socket, as it has it itself without `onread`: whoever parses the answer listens to that.
    const callback = (count: number) => {
      socket.emit("data", lent(made, buffer.subarray(0, count)));
      return true;
    };
    const socket = net.connect({ ...options, onread: { buffer, callback } });
    const giveUp = () => socket.destroy(new Error(`no connection within ${connectTimeoutMs / 1000} s`));
    socket.setTimeout(connectTimeoutMs, giveUp);
    socket.once("connect", () => socket.setTimeout(0, giveUp));
    return socket;
  };
  return made;
}

/** The buffer itself is read into again as soon as the parser has returned. */
function lent({ parserCopies, given }: Connections, bytes: Uint8Array): Uint8Array {
  if (parserCopies) return bytes;
  const own = bytes.slice();
  given.add(own.buffer);
  return own;
}

/** Asks again when a connection that had been kept was closed at that moment, if asking twice is the same as asking once. */
function ask(connections: Connections, url: string, { body, ...asked }: NodeRequest): Promise<Response> {
  const { http, agent } = connections;
  return new Promise((resolve, reject) => {
    let answered = false;
    const request = http.request(url, { ...asked, headers: { Accept: "*/*", ...asked.headers, "Accept-Encoding": "identity" }, agent });
    request.on("response", (answer: Incoming) => {
      answered = true;
      // Answered before it was taken, nobody takes the rest of a body any more.
      answer.once("close", () => request.writableFinished || request.destroy());
      if (isRedirect(answer)) {
        answer.destroy();
        reject(new Error(`unexpected redirect (${answer.statusCode})`));
      } else {
        resolve(responseOf(answer, connections, asked.signal));
      }
    });
    request.on("error", (error: Error & { code?: string }) => {
      const isStale = !answered && request.reusedSocket && error.code === "ECONNRESET";
      if (isStale && asked.method === "GET") ask(connections, url, asked).then(resolve, reject);
      else reject(error);
    });
    request.end(body);
  });
}

function isRedirect({ statusCode }: Incoming): boolean {
  return statusCode >= 300 && statusCode < 400;
}

function responseOf(answer: Incoming, connections: Connections, signal?: AbortSignal): Response {
  const { statusCode: status, statusMessage: statusText, rawHeaders } = answer;
  const headers = new Headers();
  for (let at = 0; at < rawHeaders.length; at += 2) headers.append(rawHeaders[at]!, rawHeaders[at + 1]!);
  const body = bodyOf(answer, connections, signal);
  return new Response(status === 204 ? null : body, { status, statusText, headers });
}

function bodyOf(answer: Incoming, connections: Connections, signal?: AbortSignal): ReadableStream<Uint8Array> {
  const { buffer, given } = connections;
  let open = true;
  return new ReadableStream<Uint8Array>(
    {
      start(controller) {
        const abort = () => answer.destroy(signal?.reason as Error);
        signal?.addEventListener("abort", abort, { once: true });
        answer.on("data", (piece: Uint8Array<ArrayBuffer>) => {
          if (!open) return;
          connections.parserCopies ??= !given.has(piece.buffer);
          if (piece.buffer === buffer.buffer) {
            connections.parserCopies = false;
            answer.destroy(new Error("Node's parser has kept memory that was only lent to it"));
            return;
          }
          controller.enqueue(piece);
          if ((controller.desiredSize ?? 0) <= 0) answer.pause();
        });
        const settle = (how: () => void) => {
          if (open) how();
          open = false;
        };
        answer.once("end", () => settle(() => controller.close()));
        answer.on("error", (error: Error) => settle(() => controller.error(error)));
        answer.once("close", () => signal?.removeEventListener("abort", abort));
        answer.pause();
      },
      pull: () => answer.resume(),
      cancel: () => {
        open = false;
        answer.destroy();
      },
    },
    new ByteLengthQueuingStrategy({ highWaterMark: queuedBytesMax }),
  );
}
