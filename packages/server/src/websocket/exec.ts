/**
 * Exec over a WebSocket: every message is binary and holds one envelope (flag byte, big-endian length, proto-JSON). The last one from here
 * carries the exit and the end-stream flag.
 */

import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import { fromJson, type JsonValue, toJson } from "@bufbuild/protobuf";
import type { Attachment, Runtime } from "@mitos/engine";
import { isId, limits, MitosError, type SandboxId } from "@mitos/protocol";
import { sandbox as pb } from "@mitos/protocol/proto";
import { type RawData, type WebSocket, WebSocketServer } from "ws";
import { notOpen } from "../connect/call.ts";
import { execFrames, toProcessStart } from "../connect/exec.ts";
import type { ServerContext } from "../context.ts";
import { isOurFault, retryAfterSeconds, toMitosError } from "../errors.ts";
import type { EndSignals } from "../stream/follow.ts";

export const webSocketPath = `/${pb.Sandbox.typeName}/Exec`;

const subprotocol = "connect.sandbox.v1";
const envelopeHeaderBytes = 5;
const endStreamFlag = 0x02;
const openTimeoutMs = 30_000;
const closeReasonBytesMax = 123;
/** With more than this unread, a client gets no answer to its pings. */
const pongBytesMax = 64 * 1024;

const closeCode = { done: 1000, notOpen: 1003, tooManyStreams: 1008, failed: 1011 } as const;

export interface WebSocketExec {
  /** Takes over the socket of an upgrade request. */
  upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void;
  /** Ends every session. */
  close(): void;
}

export function createWebSocketExec(context: ServerContext): WebSocketExec {
  const server = new WebSocketServer({
    noServer: true,
    maxPayload: limits.webSocketMessageBytesMax,
    perMessageDeflate: false,
    autoPong: false, // answers would pile up for a client that sends pings and reads nothing
    handleProtocols: (offered) => (offered.has(subprotocol) ? subprotocol : false),
  });
  return {
    upgrade(request, socket, head) {
      let sandbox: SandboxId;
      let runtime: Runtime;
      try {
        sandbox = sandboxOf(request);
        runtime = context.engine.runtime(sandbox);
      } catch (error) {
        refuseUpgrade(socket, toMitosError(error));
        return;
      }
      server.handleUpgrade(request, socket, head, (webSocket) => {
        session(context, webSocket, sandbox, runtime).catch((error: unknown) => {
          context.log.error({ err: error, sandbox }, "a WebSocket session failed");
          webSocket.terminate();
        });
      });
    },
    close() {
      for (const webSocket of server.clients) webSocket.terminate();
      server.close();
    },
  };
}

function sandboxOf(request: IncomingMessage): SandboxId {
  const id = new URL(request.url ?? "/", "http://localhost").searchParams.get("sandbox");
  if (!isId(id))
    throw new MitosError("invalid_input", {
      cause: id ? "the query parameter sandbox is malformed" : "the query parameter sandbox is missing",
    });
  return id as SandboxId;
}

/** An answer on the raw socket, before it becomes a WebSocket. */
export function refuseUpgrade(socket: Duplex, error: MitosError): void {
  const body = `${JSON.stringify(error.toEnvelope())}\n`;
  const retryAfter = retryAfterSeconds(error);
  socket.on("error", () => {});
  socket.end(
    [
      `HTTP/1.1 ${error.entry.status} ${error.code}`,
      "Content-Type: application/json",
      `Content-Length: ${Buffer.byteLength(body)}`,
      ...(retryAfter ? [`Retry-After: ${retryAfter}`] : []),
      "Connection: close",
      "",
      body,
    ].join("\r\n"),
  );
}

async function session(context: ServerContext, webSocket: WebSocket, sandbox: SandboxId, runtime: Runtime): Promise<void> {
  const gone = new AbortController();
  const signals: EndSignals = { client: gone.signal, shutdown: context.shutdown };
  webSocket.on("close", () => {
    if (!context.shutdown.aborted) gone.abort(new MitosError("canceled", { cause: "the client closed the socket" }));
  });
  webSocket.on("error", () => {}); // "close" follows
  webSocket.on("ping", (data) => {
    if (webSocket.readyState === webSocket.OPEN && webSocket.bufferedAmount < pongBytesMax) webSocket.pong(data);
  });

  const input = new Input(webSocket);
  let pty = false;
  let ok = false;
  try {
    const open = await input.open();
    pty = open.pty !== undefined;
    const start = {
      ...toProcessStart({ ...open, command: open.command || "/bin/sh" }, context.maxExecTimeoutSeconds, sandbox),
      stdin: true,
    };
    using _place = context.streams.take(sandbox);
    const attachment = runtime.exec(start, signals.client);
    input.deliver(attachment, pty, (error) => gone.abort(error));
    for await (const frame of execFrames(attachment, signals)) {
      const isLast = frame.msg.case === "exit";
      await send(webSocket, isLast ? endStreamFlag : 0, frame);
      if (isLast) break;
    }
    ok = true;
    webSocket.close(closeCode.done);
  } catch (error) {
    await fail(context, webSocket, gone.signal.aborted ? gone.signal.reason : error);
  } finally {
    context.audit.record({ sandbox_id: sandbox, op: "exec_ws", detail: `pty=${pty}`, ok });
  }
}

type Deliver = (request: pb.ExecRequest) => Promise<void>;

/** The client's messages, one at a time: the socket is not read while one is being delivered. */
class Input {
  readonly #webSocket: WebSocket;
  readonly #opened = Promise.withResolvers<pb.ExecOpen>();
  readonly #ready = Promise.withResolvers<Deliver>();
  #isOpen = false;
  #onError: (error: MitosError) => void = (error) => this.#opened.reject(error);
  #last: Promise<void> = Promise.resolve();

  constructor(webSocket: WebSocket) {
    this.#webSocket = webSocket;
    this.#opened.promise.catch(() => {});
    this.#ready.promise.catch(() => {});
    webSocket.on("message", (data, isBinary) => {
      webSocket.pause();
      this.#last = this.#last.then(() => this.#take(data, isBinary)).then(() => webSocket.resume());
    });
    webSocket.on("close", () => this.#stop(new MitosError("canceled", { cause: "the client closed the socket" })));
  }

  /** The first message. @throws NotOpenError when it is something else or does not come */
  async open(): Promise<pb.ExecOpen> {
    const silence = setTimeout(() => this.#opened.reject(new NotOpenError("no open message came")), openTimeoutMs);
    try {
      return await this.#opened.promise;
    } finally {
      clearTimeout(silence);
    }
  }

  deliver(attachment: Attachment, pty: boolean, onError: (error: MitosError) => void): void {
    this.#onError = onError;
    this.#ready.resolve(async ({ msg }) => {
      // What a process no longer reads is not the client's fault.
      if (msg.case === "stdin") await attachment.writeStdin(msg.value).catch(() => {});
      else if (msg.case === "resize") await attachment.resize(msg.value.cols || 80, msg.value.rows || 24).catch(() => {});
      // On a terminal the end of input is a key, not a message.
      else if (msg.case === "stdinClose" && msg.value && !pty) await attachment.closeStdin().catch(() => {});
    });
  }

  async #take(data: RawData, isBinary: boolean): Promise<void> {
    try {
      const request = decode(data, isBinary);
      if (this.#isOpen) {
        // Messages that come right behind `open` wait until the process is there.
        const deliver = await this.#ready.promise;
        return await deliver(request);
      }
      if (request.msg.case !== "open") throw notOpen();
      this.#isOpen = true;
      this.#opened.resolve(request.msg.value);
    } catch (error) {
      const mitos = toMitosError(error);
      this.#stop(this.#isOpen ? mitos : new NotOpenError(mitos.detail.cause ?? mitos.message));
    }
  }

  #stop(error: MitosError): void {
    this.#webSocket.removeAllListeners("message");
    this.#ready.reject(error);
    this.#onError(error);
  }
}

/** The session did not begin as it must: close code 1003. */
class NotOpenError extends MitosError {
  constructor(cause: string) {
    super("invalid_input", { cause });
  }
}

/** @throws when it is not one whole envelope with known fields */
function decode(data: RawData, isBinary: boolean): pb.ExecRequest {
  const malformed = (cause: string) => new MitosError("invalid_input", { cause });
  if (!isBinary) throw malformed("messages must be binary");
  const message = Array.isArray(data) ? Buffer.concat(data) : Buffer.from(data as Buffer);
  if (message.length < envelopeHeaderBytes) throw malformed("a message is shorter than an envelope");
  if (message[0] !== 0) throw malformed("the flags of an envelope must be 0");
  if (message.readUInt32BE(1) !== message.length - envelopeHeaderBytes)
    throw malformed("the length of an envelope is not that of its message");
  try {
    const json = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(message.subarray(envelopeHeaderBytes))) as JsonValue;
    return fromJson(pb.ExecRequestSchema, json, { ignoreUnknownFields: false });
  } catch {
    // The decoder's message may quote what the client typed.
    throw malformed("a message is not an ExecRequest");
  }
}

/** Resolves when the message has left for the client, so that a slow one holds up the process and not our memory. */
function send(webSocket: WebSocket, flags: number, response: pb.ExecResponse): Promise<void> {
  const payload = Buffer.from(JSON.stringify(toJson(pb.ExecResponseSchema, response)));
  const message = Buffer.allocUnsafe(envelopeHeaderBytes + payload.length);
  message[0] = flags;
  message.writeUInt32BE(payload.length, 1);
  payload.copy(message, envelopeHeaderBytes);
  return new Promise((resolve, reject) => webSocket.send(message, { binary: true }, (error) => (error ? reject(error) : resolve())));
}

async function fail(context: ServerContext, webSocket: WebSocket, error: unknown): Promise<void> {
  if (webSocket.readyState !== webSocket.OPEN) return;
  const mitos = toMitosError(error);
  if (isOurFault(mitos)) context.log.error({ err: mitos.detail.reason ?? mitos }, "a WebSocket session failed");
  const frame = fromJson(pb.ExecResponseSchema, { exit: { exitCode: 1, error: mitos.message } });
  await send(webSocket, endStreamFlag, frame).catch(() => {});
  const code =
    mitos instanceof NotOpenError ? closeCode.notOpen : mitos.code === "too_many_streams" ? closeCode.tooManyStreams : closeCode.failed;
  webSocket.close(code, truncate(mitos.message));
}

function truncate(text: string): string {
  const bytes = Buffer.from(text);
  if (bytes.length <= closeReasonBytesMax) return text;
  return new TextDecoder().decode(bytes.subarray(0, closeReasonBytesMax), { stream: true });
}
