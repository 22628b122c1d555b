/** What an HTTP/2 session may cost, and which connections make room when there are too many. */

import type { Server as Http1Server } from "node:http";
import type { Http2Server, ServerHttp2Session, ServerOptions } from "node:http2";
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

/** The HTTP/2 sessions of a server, and how many requests are open on each. */
export class Http2Sessions {
  readonly #open = new Map<ServerHttp2Session, number>();

  constructor(server: Http2Server, log: Log) {
    server.on("session", (session) => {
      this.#watch(session);
      session.on("error", (error) => log.debug({ err: error }, "an HTTP/2 session failed"));
    });
  }

  closeIdle(): void {
    for (const [session, requests] of this.#open) if (requests === 0) session.close();
  }

  /** Takes no new requests; those that are open may finish. */
  close(): void {
    for (const session of this.#open.keys()) session.close();
  }

  destroy(): void {
    for (const session of this.#open.keys()) session.destroy();
  }

  #watch(session: ServerHttp2Session): void {
    const requests = () => this.#open.get(session) ?? 0;
    this.#open.set(session, 0);
    session.on("close", () => this.#open.delete(session));
    session.on("stream", (stream) => {
      this.#open.set(session, requests() + 1);
      stream.on("close", () => this.#open.has(session) && this.#open.set(session, requests() - 1));
    });
    session.setTimeout(idleMs, () => {
      if (requests() === 0) session.close();
    });
  }
}

/** When the port refuses a connection since there are too many, those that do nothing are closed, so that the next one gets in. */
export function makeRoom(port: Server, http1: Http1Server, http2: Http2Sessions, log: Log): void {
  let lastMs = Number.NEGATIVE_INFINITY;
  port.on("drop", () => {
    const now = performance.now();
    if (now - lastMs < relieveEveryMs) return;
    lastMs = now;
    log.warn({ connectionsMax: port.maxConnections }, "too many connections: one was refused, and idle ones are closed");
    http1.closeIdleConnections();
    http2.closeIdle();
  });
}
