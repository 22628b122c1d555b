/**
 * A program whose input and output travel over a WebSocket. How messages are written is the framing's; the rest is the same for all: one
 * process, killed when the client leaves, its exit in the last message.
 */

import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import { create } from "@bufbuild/protobuf";
import type { Attachment, Runtime } from "@mitos/engine";
import { isId, limits, MitosError, type SandboxId } from "@mitos/protocol";
import { sandbox as pb } from "@mitos/protocol/proto";
import { type RawData, type WebSocket, WebSocketServer } from "ws";
import type { Audit } from "../audit.ts";
import { notOpen } from "../connect/call.ts";
import { execFrames, toProcessStart } from "../connect/exec.ts";
import type { ServerContext } from "../context.ts";
import { isOurFault, retryAfterSeconds, toMitosError } from "../errors.ts";
import { describeRequest } from "../http/tracing.ts";
import type { EndSignals } from "../stream/follow.ts";

/** How the clients of one generation write the messages of a session. */
export interface Framing {
  readonly path: string;
  readonly subprotocol: string;
  /** The opening that the upgrade request itself holds; undefined where it is the client's first message. */
  opening?(query: URLSearchParams): pb.ExecOpen;
  /** @returns undefined for what is ignored. @throws what ends the session */
  decode(data: RawData, isBinary: boolean): pb.ExecRequest | undefined;
  encode(response: pb.ExecResponse): string | Uint8Array;
}

export interface Sessions {
  readonly path: string;
  /** Takes over the socket of an upgrade request. */
  upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void;
  /** Ends every session. */
  close(): void;
}

const openTimeoutMsMax = 30_000;
const closeReasonBytesMax = 123;
/** With more than this unread, a client gets no answer to its pings. */
const pongBytesMax = 64 * 1024;

const closeCode = { done: 1000, notOpen: 1003, tooManyStreams: 1008, failed: 1011 } as const;

export function createSessions(context: ServerContext, framing: Framing): Sessions {
  const { path, subprotocol } = framing;
  const server = new WebSocketServer({
    noServer: true,
    maxPayload: limits.webSocketMessageBytesMax,
    perMessageDeflate: false,
    autoPong: false, // answers would pile up for a client that sends pings and reads nothing
    handleProtocols: (offered) => (offered.has(subprotocol) ? subprotocol : false),
  });
  return {
    path,
    upgrade(request, socket, head) {
      let session: Session;
      try {
        const query = new URL(request.url ?? "/", "http://localhost").searchParams;
        const sandbox = sandboxOf(query);
        describeRequest(request, { route: path, sandbox });
        const runtime = context.engineFor(request).runtime(sandbox);
        const opening = framing.opening?.(query);
        // Where the session begins with the upgrade, the upgrade is what the cap refuses.
        const place = opening && context.streams.take(sandbox);
        socket.once("close", () => place?.[Symbol.dispose]());
        session = { context, audit: context.auditFor(request), framing, sandbox, runtime, opening, place };
      } catch (error) {
        refuseUpgrade(socket, toMitosError(error));
        return;
      }
      server.handleUpgrade(request, socket, head, (webSocket) => {
        run(session, webSocket).catch((error: unknown) => {
          context.log.error({ err: error, sandbox: session.sandbox }, "a WebSocket session failed");
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

function sandboxOf(query: URLSearchParams): SandboxId {
  const id = query.get("sandbox");
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
      ...(error.entry.status === 401 ? ["WWW-Authenticate: Bearer"] : []),
      ...(retryAfter ? [`Retry-After: ${retryAfter}`] : []),
      "Connection: close",
      "",
      body,
    ].join("\r\n"),
  );
}

interface Session {
  readonly context: ServerContext;
  readonly audit: Pick<Audit, "record">;
  readonly framing: Framing;
  readonly sandbox: SandboxId;
  readonly runtime: Runtime;
  readonly opening: pb.ExecOpen | undefined;
  readonly place: Disposable | undefined;
}

async function run({ context, audit, framing, sandbox, runtime, opening, place }: Session, webSocket: WebSocket): Promise<void> {
  const gone = new AbortController();
  const signals: EndSignals = { client: gone.signal, shutdown: context.shutdown };
  webSocket.on("close", () => {
    if (!context.shutdown.aborted) gone.abort(new MitosError("canceled", { cause: "the client closed the socket" }));
  });
  webSocket.on("error", () => {}); // "close" follows
  webSocket.on("ping", (data) => {
    if (webSocket.readyState === webSocket.OPEN && webSocket.bufferedAmount < pongBytesMax) webSocket.pong(data);
  });

  const input = new Input(webSocket, framing, opening);
  let pty = false;
  let ok = false;
  try {
    const open = await input.open(Math.min(openTimeoutMsMax, context.bodySilenceMs));
    pty = open.pty !== undefined;
    const start = {
      ...toProcessStart({ ...open, command: open.command || "/bin/sh" }, context.maxExecTimeoutSeconds, sandbox),
      stdin: true,
    };
    using _place = place ?? context.streams.take(sandbox);
    const attachment = runtime.exec(start, signals.client);
    input.deliver(attachment, (error) => gone.abort(error));
    for await (const frame of execFrames(attachment, signals, context.metrics)) {
      await send(webSocket, framing.encode(frame));
      if (frame.msg.case === "exit") break;
    }
    ok = true;
    webSocket.close(closeCode.done);
  } catch (error) {
    await fail(context, webSocket, framing, gone.signal.aborted ? gone.signal.reason : error);
  } finally {
    audit.record({ sandbox_id: sandbox, op: "exec_ws", detail: `pty=${pty}`, ok });
  }
}

type Deliver = (request: pb.ExecRequest) => Promise<void>;

/** The client's messages, one at a time: the socket is not read while one is being delivered. */
class Input {
  readonly #webSocket: WebSocket;
  readonly #framing: Framing;
  readonly #opened = Promise.withResolvers<pb.ExecOpen>();
  readonly #ready = Promise.withResolvers<Deliver>();
  #isOpen = false;
  #onError: (error: MitosError) => void = (error) => this.#opened.reject(error);
  #last: Promise<void> = Promise.resolve();

  /** @param opening - undefined: the first message is it */
  constructor(webSocket: WebSocket, framing: Framing, opening: pb.ExecOpen | undefined) {
    this.#webSocket = webSocket;
    this.#framing = framing;
    this.#opened.promise.catch(() => {});
    this.#ready.promise.catch(() => {});
    if (opening) this.#open(opening);
    webSocket.on("message", (data, isBinary) => {
      webSocket.pause();
      this.#last = this.#last.then(() => this.#take(data, isBinary)).then(() => webSocket.resume());
    });
    webSocket.on("close", () => this.#stop(new MitosError("canceled", { cause: "the client closed the socket" })));
  }

  /** What to run. @throws NotOpenError when the first message is something else or does not come */
  async open(timeoutMs: number): Promise<pb.ExecOpen> {
    const silence = setTimeout(() => this.#opened.reject(new NotOpenError("no open message came")), timeoutMs);
    try {
      return await this.#opened.promise;
    } finally {
      clearTimeout(silence);
    }
  }

  /** `stdinClose` and another `open` mean nothing here, as published: the input ends with the socket. */
  deliver(attachment: Attachment, onError: (error: MitosError) => void): void {
    this.#onError = onError;
    this.#ready.resolve(async ({ msg }) => {
      // What a process no longer reads is not the client's fault.
      if (msg.case === "stdin") await attachment.writeStdin(msg.value).catch(() => {});
      else if (msg.case === "resize") await attachment.resize(msg.value.cols || 80, msg.value.rows || 24).catch(() => {});
    });
  }

  #open(opening: pb.ExecOpen): void {
    this.#isOpen = true;
    this.#opened.resolve(opening);
  }

  async #take(data: RawData, isBinary: boolean): Promise<void> {
    try {
      const request = this.#framing.decode(data, isBinary);
      if (!request) return;
      if (this.#isOpen) {
        // Messages that come right behind the opening wait until the process is there.
        const deliver = await this.#ready.promise;
        return await deliver(request);
      }
      if (request.msg.case !== "open") throw notOpen();
      this.#open(request.msg.value);
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

/** Resolves when the message has left for the client, so that a slow one holds up the process and not our memory. */
function send(webSocket: WebSocket, message: string | Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => webSocket.send(message, (error) => (error ? reject(error) : resolve())));
}

async function fail(context: ServerContext, webSocket: WebSocket, framing: Framing, error: unknown): Promise<void> {
  if (webSocket.readyState !== webSocket.OPEN) return;
  const mitos = toMitosError(error);
  if (isOurFault(mitos)) context.log.error({ err: mitos.detail.reason ?? mitos }, "a WebSocket session failed");
  const exit = create(pb.ExecExitSchema, { exitCode: 1, error: mitos.message });
  const frame = create(pb.ExecResponseSchema, { msg: { case: "exit", value: exit } });
  await send(webSocket, framing.encode(frame)).catch(() => {});
  const code =
    mitos instanceof NotOpenError ? closeCode.notOpen : mitos.code === "too_many_streams" ? closeCode.tooManyStreams : closeCode.failed;
  webSocket.close(code, truncate(mitos.message));
}

function truncate(text: string): string {
  const bytes = Buffer.from(text);
  if (bytes.length <= closeReasonBytesMax) return text;
  return new TextDecoder().decode(bytes.subarray(0, closeReasonBytesMax), { stream: true });
}
