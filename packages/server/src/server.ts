/** Puts the routes, the Connect service and the WebSocket route on one port, and takes them down again. */

import { createServer as createHttp1 } from "node:http";
import { createServer as createHttp2 } from "node:http2";
import type { AddressInfo, Socket } from "node:net";
import type { Engine, Log } from "@mitos/engine";
import { limits, MitosError } from "@mitos/protocol";
import { createApp } from "./app.ts";
import { auditOf, note, openAudit } from "./audit.ts";
import { Auth } from "./auth/auth.ts";
import { Refusals } from "./auth/refusals.ts";
import { BuildSlots } from "./build-slots.ts";
import { createConnectHandler } from "./connect/handler.ts";
import type { ServerContext } from "./context.ts";
import { createDoor } from "./door.ts";
import { Http2Sessions, http2Limits, idleMs, makeRoom } from "./http/connections.ts";
import { isLoopback } from "./http/guard.ts";
import { HeldBodies } from "./http/held-bodies.ts";
import { createSharedPort } from "./http/shared-port.ts";
import { createMetrics } from "./metrics.ts";
import { createPreviewProxy } from "./preview/proxy.ts";
import { PreviewSigner } from "./preview/token.ts";
import { createExpose } from "./proxy/expose.ts";
import { Forwards } from "./proxy/forwards.ts";
import { upgradedPlaces } from "./proxy/ports.ts";
import { gateSelfForks } from "./self-forks.ts";
import { StreamCap } from "./stream/cap.ts";
import { execFraming } from "./websocket/exec.ts";
import { ptyFraming } from "./websocket/pty.ts";
import { createSessions } from "./websocket/session.ts";

export interface ServerOptions {
  readonly engine: Engine;
  /** A loopback name or address; with `auth` any. */
  readonly host: string;
  /** 0 = any that is free */
  readonly port: number;
  readonly log: Log;
  readonly version: string;
  /** Every request but the probes needs a key of the engine's store. Default: keys are ignored. */
  readonly auth?: boolean | undefined;
  /** 0 = unlimited */
  readonly maxStreamsPerSandbox?: number | undefined;
  /** 0 = no ceiling */
  readonly maxExecTimeoutSeconds?: number | undefined;
  /** A file path, or `-` / `stderr` */
  readonly auditLog?: string | undefined;
  /** False switches previews off: asking for one is 501 then. Default: on. */
  readonly previews?: boolean | undefined;
  /** Previews are `https://<label>.<domain>/`; something in front ends TLS. Default: below `localhost` and below this server's address. */
  readonly previewDomain?: string | undefined;
  readonly previewTtlSeconds?: number | undefined;
  /** At least 16 bytes. Default: random, kept in the data directory. */
  readonly previewSecret?: Uint8Array | undefined;
  /** A connection that sends nothing is closed after this. */
  readonly silenceMs?: number | undefined;
  /** A call that waits for so long for the next byte of its request is given up. Default 60 s. Not for input to what runs already. */
  readonly bodySilenceMs?: number | undefined;
  /** A stream of events in which none has come for so long says that it is alive. Default 15 s. */
  readonly eventSilenceMs?: number | undefined;
  /** Of all clients together; one more is closed at once. */
  readonly connectionsMax?: number | undefined;
  /** Of request bodies that are not answered yet. Default: as in the limits of the protocol. */
  readonly heldBodyBytesMax?: { readonly perOwner: number; readonly server: number } | undefined;
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
const bodySilenceMsDefault = 60_000;
/** Proxies take a connection for dead after 30 s of silence at the earliest. */
const eventSilenceMsDefault = 15_000;
const connectionsMaxDefault = 4096;
const http1Timeouts = { headersTimeout: 20_000, keepAliveTimeout: idleMs, requestTimeout: 0 } as const;
const previewSecretBytes = 32;

/** @throws invalid_input for a host that is not loopback on a server without keys; the system's error when the address is taken */
export async function startServer(options: ServerOptions): Promise<RunningServer> {
  const { engine, host, log } = options;
  if (!options.auth && !isLoopback(host)) {
    throw new MitosError("invalid_input", {
      message: "a server without keys listens on loopback only",
      cause: `${host} is not a loopback address`,
      remediation: "Listen on 127.0.0.1, [::1] or localhost, or switch keys on.",
    });
  }
  const signer =
    options.previews === false ? undefined : new PreviewSigner(options.previewSecret ?? engine.storedSecret("preview", previewSecretBytes));
  const domain = options.previewDomain === undefined ? undefined : parseDomain(options.previewDomain);
  const boundHost = host.replace(/^\[(.*)\]$/, "$1");
  const shutdown = new AbortController();
  let closing = false;
  const streams = new StreamCap(options.maxStreamsPerSandbox ?? limits.streamsPerSandboxMax);
  const bodies = new HeldBodies(options.heldBodyBytesMax);
  const audit = openAudit(options.auditLog);
  const metrics = createMetrics(engine, streams, options.version);
  const auth = options.auth ? new Auth(engine, log, new Refusals(audit, metrics.refusals, log)) : undefined;
  const noDenials = engine.onEgressDenied(({ id, to, leftOut }) => {
    const detail = `to=${to}${leftOut > 0 ? ` left_out=${leftOut}` : ""}`;
    note(audit, log, { sandbox_id: id, op: "egress_denied", detail, ok: false });
  });
  const noSelfForks = gateSelfForks({ engine, auth, audit, metrics, log });
  const context: ServerContext = {
    engine,
    auth,
    engineFor: (request) => auth?.engineFor(request) ?? engine,
    log,
    version: options.version,
    maxExecTimeoutSeconds: options.maxExecTimeoutSeconds ?? limits.timeoutSecondsMax,
    streams,
    builds: new BuildSlots(),
    holdBody: (request, op) => bodies.hold(op, () => auth?.callerOf(request)),
    audit,
    auditFor: (request) => (auth ? auditOf(audit, auth.callerOf(request)) : audit),
    metrics,
    shutdown: shutdown.signal,
    isClosing: () => closing,
    bodySilenceMs: options.bodySilenceMs ?? bodySilenceMsDefault,
    eventSilenceMs: options.eventSilenceMs ?? eventSilenceMsDefault,
  };

  const upgraded = upgradedPlaces();
  const previews = createPreviewProxy(context, { signer, domain }, upgraded);
  const expose = createExpose(context, upgraded);
  const forwards = new Forwards(engine, log);
  const ttlSeconds = options.previewTtlSeconds ?? limits.previewTtlSecondsDefault;

  const app = await createApp(context, { signer, domain, ttlSeconds, terms: engine.previews, forwards });
  const connect = createConnectHandler(context);
  const webSockets = [execFraming, ptyFraming].map((framing) => createSessions(context, framing));
  const door = createDoor(context, { boundHost, app, connect, webSockets, previews, expose });
  // Other offers to upgrade (such as h2c) are ignored, as RFC 9110 allows.
  const http1 = createHttp1({ ...http1Timeouts, shouldUpgradeCallback: door.takesUpgrade }, door.serve);
  http1.on("checkContinue", door.serve);
  http1.on("upgrade", door.upgrade);
  const http2 = createHttp2(http2Limits, door.serve);
  http2.on("checkContinue", door.serve);
  const sessions = new Http2Sessions(http2, log);

  const { port, endSilent } = createSharedPort(http1, http2, {
    silenceMs: options.silenceMs ?? silenceMsDefault,
    connectionsMax: options.connectionsMax ?? connectionsMaxDefault,
  });
  makeRoom(port, http1, sessions, log);
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
    forwards.close();
    http1.close();
    sessions.close();
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
    sessions.destroy();
    for (const webSocket of webSockets) webSocket.close();
    await app.close();
    noDenials();
    noSelfForks();
    await context.audit.close();
  };
  return { url, close: () => (closed ??= close()) };
}

/** @throws invalid_input */
function parseDomain(text: string): string {
  const domain = text.toLowerCase();
  const label = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?";
  if (new RegExp(`^${label}(?:\\.${label})*$`).test(domain) && domain !== "localhost" && domain.length <= 189) return domain;
  throw new MitosError("invalid_input", {
    cause: `${text} is not a domain for previews`,
    remediation: "Give a DNS name whose subdomains lead to this server, for example preview.example.com.",
  });
}
