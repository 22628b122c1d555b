/** What an HTTP/2 session may cost, and which connections make room when there are too many. */

import type { Server as Http1Server } from "node:http";
import type { ServerHttp2Session, ServerOptions } from "node:http2";
import type { Server } from "node:net";
import type { Log } from "@mitos/engine";

/** As long as an idle HTTP/1.1 connection is kept. */
export const idleMs = 65_000;
/** How often a full server looks for idle connections, and says that it is full. */
const relieveEveryMs = 1_000;

export const http2Limits = {
  settings: { maxConcurrentStreams: 256, maxHeaderListSize: 64 * 1024 },
  /** MiB of all that one session holds: header tables, streams, what waits to be sent. */
  maxSessionMemory: 16,
  maxHeaderListPairs: 128,
  maxSettings: 32,
  maxOutstandingPings: 10,
  maxSessionInvalidFrames: 100,
  maxSessionRejectedStreams: 100,
  // A client may cancel many streams at once (its own end), but not go on so: "rapid reset".
  streamResetBurst: 512,
  streamResetRate: 32,
} satisfies ServerOptions & { streamResetBurst: number; streamResetRate: number };

/** Closes a session on which nothing has happened for a while and no request is open. */
export function closeWhenIdle(session: ServerHttp2Session, openStreams: () => number): void {
  session.setTimeout(idleMs, () => {
    if (openStreams() === 0) session.close();
  });
}

/** When the port refuses a connection since there are too many, those that do nothing are closed, so that the next one gets in. */
export function makeRoom(port: Server, http1: Http1Server, idleSessions: () => Iterable<ServerHttp2Session>, log: Log): void {
  let lastMs = Number.NEGATIVE_INFINITY;
  port.on("drop", () => {
    const now = performance.now();
    if (now - lastMs < relieveEveryMs) return;
    lastMs = now;
    log.warn({ connectionsMax: port.maxConnections }, "too many connections: one was refused, and idle ones are closed");
    http1.closeIdleConnections();
    for (const session of idleSessions()) session.close();
  });
}
