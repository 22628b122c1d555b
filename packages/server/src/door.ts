/** The first steps of every request: whether it may come in at all, who sends it, and which part of the server it is for. */

import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import type { MitosError } from "@mitos/protocol";
import type { FastifyInstance } from "fastify";
import { withKnownMethod } from "./app.ts";
import { webSocketAccess } from "./auth/access.ts";
import { refuseRpc, servicePrefix } from "./connect/handler.ts";
import type { ServerContext } from "./context.ts";
import { toConnectError } from "./errors.ts";
import { type AnyRequest, refusal } from "./http/guard.ts";
import { type AnyResponse, endLateBody, sendConnectError, sendEnvelope } from "./http/plain.ts";
import { traceRequest } from "./http/tracing.ts";
import type { PreviewProxy } from "./preview/proxy.ts";
import { breakOff, upgradingClient } from "./proxy/exchange.ts";
import type { Expose } from "./proxy/expose.ts";
import type { UpgradeVisit, Visit } from "./proxy/ports.ts";
import { refuseUpgrade, type Sessions } from "./websocket/session.ts";

/** What requests are for. */
export interface Rooms {
  /** The name or address that the server listens on. */
  readonly boundHost: string;
  readonly app: FastifyInstance;
  readonly connect: (request: AnyRequest, response: AnyResponse) => void;
  readonly webSockets: readonly Sessions[];
  readonly previews: PreviewProxy;
  readonly expose: Expose;
}

export interface Door {
  serve(request: AnyRequest, response: AnyResponse): void;
  /** Whether a request that offers to become a WebSocket is taken at its word. */
  takesUpgrade(request: IncomingMessage): boolean;
  upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void;
}

/**
 * The order is what keeps pages and strangers out. A preview's host reaches only the preview, whatever it asks for; every other name must be
 * this server's own. A preview's path has its token, everything else needs a key where the server has keys.
 */
export function createDoor(context: ServerContext, { boundHost, app, connect, webSockets, previews, expose }: Rooms): Door {
  const { auth } = context;
  // A key travels in a header that no web page can set across origins, so with keys any name of the server will do.
  const guard = (request: AnyRequest) => refusal(request, auth ? undefined : boundHost);
  const sessionsFor = (request: AnyRequest) => webSockets.find(({ path }) => path === request.url?.split("?", 1)[0]);

  /** Whatever goes wrong with one ends its own connection, and nothing else. */
  const bring = (visit: Visit, served: Promise<void>): void => {
    served.catch((error: unknown) => {
      context.log.error({ err: error }, "a request to a port was broken off");
      if (visit.kind === "upgrade") visit.socket.destroy();
      else breakOff(visit.response);
    });
  };

  const serve = (request: AnyRequest, response: AnyResponse) => {
    const visit: Visit = { kind: "request", request, response };
    if (previews.isPreviewHost(request)) return bring(visit, previews.serve(visit));
    const isConnect = request.url?.startsWith(servicePrefix);
    const refused = guard(request);
    if (refused) return isConnect ? sendConnectError(response, toConnectError(refused)) : sendEnvelope(response, refused);
    if (previews.isPreviewPath(request)) return bring(visit, previews.serve(visit));
    const denied = auth?.authenticate(request);
    if (expose.accepts(request)) return bring(visit, expose.serve(visit, denied));
    if (denied) {
      endLateBody(request);
      return isConnect ? refuseRpc(request, response, denied) : sendEnvelope(response, denied);
    }
    if (request.headers.expect) response.writeContinue();
    if (isConnect) connect(request, response);
    else app.routing(withKnownMethod(request) as never, response as never);
  };

  /** @returns why it is refused where that is decided here */
  const upgrade = (visit: UpgradeVisit): MitosError | undefined => {
    const { request, socket, head } = visit;
    if (previews.isPreviewHost(request)) return void bring(visit, previews.serve(visit));
    const refused = guard(request);
    if (!refused && previews.isPreviewPath(request)) return void bring(visit, previews.serve(visit));
    const denied = refused ?? auth?.authenticate(request);
    if (!refused && expose.accepts(request)) return void bring(visit, expose.serve(visit, denied));
    const forbidden = denied ?? auth?.authorise(request, socket, webSocketAccess, "a program over a WebSocket");
    if (forbidden) refuseUpgrade(socket, forbidden);
    else sessionsFor(request)?.upgrade(request, socket, head);
    return forbidden;
  };

  /** By connection of HTTP/1: answers that are not complete. */
  const answering = new WeakMap<Duplex, number>();
  const countAnswers = (request: AnyRequest, change: 1 | -1) => {
    if ("stream" in request) return; // of HTTP/2
    answering.set(request.socket, (answering.get(request.socket) ?? 0) + change);
  };

  return {
    serve(request, response) {
      request.on("error", () => {}); // whoever reads the body sees it
      countAnswers(request, 1);
      const done = traceRequest(request, () => serve(request, response));
      response.once("close", () => {
        countAnswers(request, -1);
        done(response.statusCode);
      });
    },
    takesUpgrade: (request) =>
      request.method === "GET" &&
      request.headers.upgrade?.toLowerCase() === "websocket" &&
      (previews.isPreviewHost(request) || previews.isPreviewPath(request) || expose.accepts(request) || sessionsFor(request) !== undefined),
    upgrade(request, socket, head) {
      socket.on("error", () => {}); // "close" follows
      // Node hands the connection over while an earlier answer is still being written to it: whoever does not wait for that gets neither.
      if (answering.get(socket)) {
        socket.destroy();
        return;
      }
      let refused: MitosError | undefined;
      const done = traceRequest(request, () => {
        refused = upgrade({ kind: "upgrade", ...upgradingClient(request, socket, head) });
      });
      socket.once("close", () => done(refused?.entry.status ?? 101));
    },
  };
}
