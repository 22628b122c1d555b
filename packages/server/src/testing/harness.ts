import { request as httpRequest, type IncomingHttpHeaders } from "node:http";
import type { KeyRequest } from "@mitos/engine";
import { afterEach, beforeEach, expect } from "vitest";
import { envelope as envelopeOf } from "../envelope.ts";
import { type RunningServer, type ServerOptions, startServer } from "../index.ts";
import { FakeEngine, type FakeRuntime } from "./fake-engine.ts";

export interface Harness {
  engine: FakeEngine;
  server: RunningServer;
  url: string;
  logLines: string[];
  /** A running sandbox `sb-1` of the template `python`. */
  runtime: FakeRuntime;
  /** With `auth`: the headers of an admin's key, by which `python` and `sb-1` were made. Empty otherwise. */
  admin: Record<string, string>;
}

/** A server on a free port around a fresh engine for every test; afterwards it must leave no socket behind. */
export function useServer(options: Partial<ServerOptions> = {}): Harness {
  const harness = {} as Harness;
  let before: string[];
  beforeEach(async () => {
    before = openSockets();
    harness.engine = new FakeEngine();
    harness.logLines = [];
    const write = (fields: object, message: string) => harness.logLines.push(`${message} ${JSON.stringify(fields)}`);
    const log = { debug: write, info: write, warn: write, error: write };
    harness.server = await startServer({ engine: harness.engine.asEngine(), host: "127.0.0.1", port: 0, log, version: "test", ...options });
    harness.url = harness.server.url;
    harness.admin = options.auth ? bearer(makeKey(harness, { owner: "root", scopes: ["admin"] })) : {};
    await post(harness, "/v1/templates", { id: "python" }, harness.admin);
    await post(harness, "/v1/fork", { id: "sb-1", template: "python" }, harness.admin);
    harness.runtime = harness.engine.runtimes.get("sb-1")!;
  });
  afterEach(async () => {
    await harness.server.close();
    harness.engine[Symbol.dispose]();
    await expect.poll(openSockets, { timeout: 3000 }).toEqual(before);
  });
  return harness;
}

/** A key with all scopes but admin, unless said otherwise. */
export function makeKey({ engine }: Pick<Harness, "engine">, request: Partial<KeyRequest> = {}): string {
  const all = { name: "test", owner: "alice", organisation: "acme", scopes: ["read", "execute", "lifecycle"], ttlSeconds: 0, limits: {} };
  return engine.keys.create({ ...(all as KeyRequest), ...request }).key;
}

/** The head of a request to become a WebSocket, for a socket of one's own. */
export function webSocketHead(path: string, host: string): string {
  const upgrade = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="];
  return [`GET ${path} HTTP/1.1`, `Host: ${host}`, ...upgrade, "", ""].join("\r\n");
}

export function bearer(key: string): Record<string, string> {
  return { Authorization: `Bearer ${key}` };
}

/** Listening and accepted sockets and open pipes; what `fetch` keeps to itself does not survive the server. */
function openSockets(): string[] {
  return process.getActiveResourcesInfo().filter((name) => /TCP|Pipe(Connect|Server)|HTTP2/i.test(name));
}

export interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  text: string;
  // biome-ignore lint/suspicious/noExplicitAny: tests read any shape
  json: any;
}

/** One request on a connection of its own, with every header under the test's control. */
export function send(
  { url }: { url: string },
  method: string,
  path: string,
  body?: string | Uint8Array,
  headers: Record<string, string> = {},
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const request = httpRequest(`${url}${path}`, { method, headers, agent: false }, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.on("error", reject);
      response.on("end", () => {
        const text = Buffer.concat(chunks).toString();
        let json: unknown;
        try {
          json = JSON.parse(text);
        } catch {
          json = undefined;
        }
        resolve({ status: response.statusCode ?? 0, headers: response.headers, text, json });
      });
    });
    request.on("error", reject);
    request.end(body);
  });
}

export function post(at: { url: string }, path: string, body: unknown, headers: Record<string, string> = {}): Promise<Answer> {
  return send(at, "POST", path, JSON.stringify(body), headers);
}

export function get(at: { url: string }, path: string, headers: Record<string, string> = {}): Promise<Answer> {
  return send(at, "GET", path, undefined, headers);
}

export interface LineStream {
  status: number;
  headers: Headers;
  // biome-ignore lint/suspicious/noExplicitAny: tests read any shape
  lines: AsyncGenerator<any>;
}

/** A request that asks for events, and its lines as they come. */
export async function events(
  at: { url: string },
  path: string,
  options: { body?: unknown; headers?: Record<string, string>; signal?: AbortSignal } = {},
): Promise<LineStream> {
  const { body, headers, signal } = options;
  const response = await fetch(`${at.url}${path}`, {
    method: body === undefined ? "GET" : "POST",
    headers: { Accept: "application/x-ndjson", Connection: "close", ...headers },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    ...(signal ? { signal } : {}),
  });
  return {
    status: response.status,
    headers: response.headers,
    lines: (async function* () {
      let rest = "";
      for await (const chunk of response.body?.pipeThrough(new TextDecoderStream()) ?? []) {
        const lines = (rest + chunk).split("\n");
        rest = lines.pop() ?? "";
        yield* lines.map((line) => JSON.parse(line));
      }
      if (rest) yield JSON.parse(rest);
    })(),
  };
}

/** @param message - bytes and text as they are, anything else as JSON */
export function envelope(message: unknown, flags = 0): Buffer {
  if (message instanceof Uint8Array) return envelopeOf(message, flags);
  return envelopeOf(Buffer.from(typeof message === "string" ? message : JSON.stringify(message)), flags);
}

export interface Frame {
  flags: number;
  // biome-ignore lint/suspicious/noExplicitAny: tests read any shape
  message: any;
}

export function parseFrames(body: Buffer): { frames: Frame[]; rest: Buffer } {
  const frames: Frame[] = [];
  let at = 0;
  while (body.length - at >= 5) {
    const end = at + 5 + body.readUInt32BE(at + 1);
    if (end > body.length) break;
    frames.push({ flags: body[at]!, message: JSON.parse(body.subarray(at + 5, end).toString()) });
    at = end;
  }
  return { frames, rest: body.subarray(at) };
}

/** A streaming RPC as the published clients send it: one buffered body of plain envelopes. */
export async function stream(
  at: { url: string },
  method: string,
  messages: unknown[],
  options: { headers?: Record<string, string>; signal?: AbortSignal } = {},
): Promise<{ status: number; headers: Headers; frames: AsyncGenerator<Frame> }> {
  const response = await fetch(`${at.url}/sandbox.v1.Sandbox/${method}`, {
    method: "POST",
    headers: { "Content-Type": "application/connect+json", "X-Sandbox-Id": "sb-1", Connection: "close", ...options.headers },
    body: Buffer.concat(messages.map((message) => envelope(message))),
    ...(options.signal ? { signal: options.signal } : {}),
  });
  return {
    status: response.status,
    headers: response.headers,
    frames: (async function* () {
      let rest = Buffer.alloc(0);
      for await (const chunk of response.body ?? []) {
        const parsed = parseFrames(Buffer.concat([rest, chunk as Uint8Array]));
        rest = Buffer.from(parsed.rest);
        yield* parsed.frames;
      }
    })(),
  };
}

export async function streamAll(
  at: { url: string },
  method: string,
  messages: unknown[],
  headers: Record<string, string> = {},
): Promise<Frame[]> {
  const { frames } = await stream(at, method, messages, { headers });
  return collect(frames);
}

export function unary(at: { url: string }, method: string, message: unknown, headers: Record<string, string> = {}): Promise<Answer> {
  return post(at, `/sandbox.v1.Sandbox/${method}`, message, { "Content-Type": "application/json", "X-Sandbox-Id": "sb-1", ...headers });
}

export const b64 = (text: string) => Buffer.from(text).toString("base64");
export const text = (frames: Frame[], member: "stdout" | "stderr") =>
  frames.map(({ message }) => Buffer.from(message[member] ?? "", "base64").toString()).join("");

export async function collect<T, U = T>(items: AsyncIterable<T>, map: (item: T) => U = (item) => item as unknown as U): Promise<U[]> {
  const all: U[] = [];
  for await (const item of items) all.push(map(item));
  return all;
}
