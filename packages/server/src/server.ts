/** Puts the routes, the Connect service and the WebSocket route on one port, and takes them down again. */

import { createServer as createHttp1 } from "node:http";
import { createServer as createHttp2, type ServerHttp2Session } from "node:http2";
import type { AddressInfo, Socket } from "node:net";
import type { Engine, Log } from "@mitos/engine";
import { limits, MitosError } from "@mitos/protocol";
import { createApp } from "./app.ts";
import { openAudit } from "./audit.ts";
import { createConnectHandler, servicePrefix } from "./connect/handler.ts";
import type { ServerContext } from "./context.ts";
import { toConnectError } from "./errors.ts";
import { closeWhenIdle, http2Limits, idleMs, makeRoom } from "./http/connections.ts";
import { type AnyRequest, isLoopback, refusal } from "./http/guard.ts";
import { type AnyResponse, sendConnectError, sendEnvelope } from "./http/plain.ts";
import { createSharedPort } from "./http/shared-port.ts";
import { createMetrics } from "./metrics.ts";
import { StreamCap } from "./stream/cap.ts";
import { createWebSocketExec, refuseUpgrade, webSocketPath } from "./websocket/exec.ts";

export interface ServerOptions {
  readonly engine: Engine;
  /** A loopback name or address: there are no keys yet. */
  readonly host: string;
  /** 0 = any that is free */
  readonly port: number;
  readonly log: Log;
  readonly version: string;
  /** 0 = unlimited */
  readonly maxStreamsPerSandbox?: number | undefined;
  /** 0 = no ceiling */
  readonly maxExecTimeoutSeconds?: number | undefined;
  /** A file path, or `-` / `stderr` */
  readonly auditLog?: string | undefined;
  /** A connection that sends nothing is closed after this. */
  readonly silenceMs?: number | undefined;
  /** Of all clients together; one more is closed at once. */
  readonly connectionsMax?: number | undefined;
}

export interface RunningServer {
  readonly url: string;
  /**
   * Takes no new work, lets what is under way finish for up to five seconds, then breaks it off. Programs in sandboxes run on. The engine
   * is the caller's.
   */
  close(): Promise<void>;
}

const closeGraceMs = 4500;
/** For the streams that are broken off to say why. */
const lastWordsMs = 500;
const silenceMsDefault = 10_000;
const connectionsMaxDefault = 4096;
const http1Timeouts = { headersTimeout: 20_000, keepAliveTimeout: idleMs, requestTimeout: 0 } as const;

/** @throws invalid_input for a host that is not loopback; the system's error when the address is taken */
export async function startServer(options: ServerOptions): Promise<RunningServer> {
  const { engine, host, log } = options;
  if (!isLoopback(host)) {
    throw new MitosError("invalid_input", {
      message: "the server has no keys, so it listens on loopback only",
      cause: `${host} is not a loopback address`,
      remediation: "Listen on 127.0.0.1, [::1] or localhost.",
    });
  }
  const boundHost = host.replace(/^\[(.*)\]$/, "$1");
  const shutdown = new AbortController();
  let closing = false;
  const streams = new StreamCap(options.maxStreamsPerSandbox ?? limits.streamsPerSandboxMax);
  const context: ServerContext = {
    engine,
    engineFor: () => engine,
    log,
    version: options.version,
    maxExecTimeoutSeconds: options.maxExecTimeoutSeconds ?? limits.timeoutSecondsMax,
    streams,
    audit: openAudit(options.auditLog),
    metrics: createMetrics(engine, streams),
    shutdown: shutdown.signal,
    isClosing: () => closing,
  };

  const app = await createApp(context);
  const connect = createConnectHandler(context);
  const webSocket = createWebSocketExec(context);
  const dispatch = (request: AnyRequest, response: AnyResponse) => {
    request.on("error", () => {}); // whoever reads the body sees it
    const isConnect = request.url?.startsWith(servicePrefix);
    const refused = refusal(request, boundHost);
    if (refused) return isConnect ? sendConnectError(response, toConnectError(refused)) : sendEnvelope(response, refused);
    if (isConnect) connect(request, response);
    else app.routing(request as never, response as never);
  };

  const isWebSocket = (request: AnyRequest) =>
    request.method === "GET" && request.headers.upgrade?.toLowerCase() === "websocket" && request.url?.split("?", 1)[0] === webSocketPath;
  // Other offers to upgrade (such as h2c) are ignored, as RFC 9110 allows.
  const http1 = createHttp1({ ...http1Timeouts, shouldUpgradeCallback: isWebSocket }, dispatch);
  http1.on("upgrade", (request, socket, head) => {
    const refused = refusal(request, boundHost);
    if (refused) refuseUpgrade(socket, refused);
    else webSocket.upgrade(request, socket, head);
  });
  /** And how many requests are open on each. */
  const sessions = new Map<ServerHttp2Session, number>();
  const http2 = createHttp2(http2Limits, dispatch);
  http2.on("session", (session) => {
    const openStreams = () => sessions.get(session) ?? 0;
    sessions.set(session, 0);
    session.on("stream", (stream) => {
      sessions.set(session, openStreams() + 1);
      stream.on("close", () => sessions.has(session) && sessions.set(session, openStreams() - 1));
    });
    closeWhenIdle(session, openStreams);
    session.on("close", () => sessions.delete(session));
    session.on("error", (error) => log.debug({ err: error }, "an HTTP/2 session failed"));
  });

  const { port, endSilent } = createSharedPort(http1, http2, {
    silenceMs: options.silenceMs ?? silenceMsDefault,
    connectionsMax: options.connectionsMax ?? connectionsMaxDefault,
  });
  const idleSessions = () => [...sessions].filter(([, open]) => open === 0).map(([session]) => session);
  makeRoom(port, http1, idleSessions, log);
  const sockets = new Set<Socket>();
  port.on("connection", (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });
  await new Promise<void>((resolve, reject) => {
    port.once("error", reject);
    port.listen({ host: boundHost, port: options.port }, () => {
      port.off("error", reject);
      resolve();
    });
  });
  const { port: boundPort } = port.address() as AddressInfo;
  const url = `http://${boundHost.includes(":") ? `[${boundHost}]` : boundHost}:${boundPort}`;
  log.info({ url, isolation: engine.isolation }, "the server listens");

  let closed: Promise<void> | undefined;
  const close = async () => {
    closing = true;
    const allGone = new Promise<void>((resolve) => port.close(() => resolve()));
    endSilent();
    http1.close();
    for (const session of sessions.keys()) session.close();
    // A connection that is busy now is idle later.
    const idle = setInterval(() => http1.closeIdleConnections(), 100);
    const cut = setTimeout(() => shutdown.abort(new MitosError("unavailable", { cause: "the server is going down" })), closeGraceMs);
    const end = setTimeout(() => {
      for (const socket of sockets) socket.destroy();
    }, closeGraceMs + lastWordsMs);
    await allGone;
    clearInterval(idle);
    clearTimeout(cut);
    clearTimeout(end);
    for (const session of sessions.keys()) session.destroy();
    webSocket.close();
    await app.close();
    await context.audit.close();
  };
  return { url, close: () => (closed ??= close()) };
}
