import { METHODS } from "node:http";
import type { Runtime } from "@mitos/engine";
import { limits, MitosError, type SandboxId } from "@mitos/protocol";
import type { ServerContext } from "../context.ts";
import type { AnyRequest } from "../http/guard.ts";
import type { AnyResponse } from "../http/plain.ts";
import { exchange, exchangeUpgrade, type Question, type UpgradingClient } from "./exchange.ts";
import type { Header } from "./headers.ts";
import { Places } from "./places.ts";
import { openTunnelSocket } from "./tunnel-socket.ts";

/** A request with the place for its answer, or one that wants to become a WebSocket with its socket. */
export type Visit = OrdinaryVisit | UpgradeVisit;

export interface OrdinaryVisit {
  readonly kind: "request";
  readonly request: AnyRequest;
  readonly response: AnyResponse;
}

export interface UpgradeVisit extends UpgradingClient {
  readonly kind: "upgrade";
}

/** Where an answer that does not come from a sandbox is written. */
export function responseOf(visit: Visit): AnyResponse {
  return visit.kind === "request" ? visit.response : visit.respond();
}

/** Which port of which sandbox, and what its program is asked. */
export interface Destination extends Question {
  readonly sandbox: SandboxId;
  readonly runtime: Runtime;
  readonly port: number;
  readonly rewrite: (headers: Header[]) => Header[];
}

/** WebSockets of a sandbox, whichever way they came in. */
export function upgradedPlaces(): Places {
  return new Places({ what: "WebSockets to its ports", perSandboxMax: limits.upgradedSocketsPerSandboxMax });
}

/** Methods of HTTP/2 may be any text, which must not become as many counters. */
export function countVisit({ metrics }: ServerContext, route: "preview" | "expose", { request }: Visit, status: number): void {
  const { method = "" } = request;
  metrics.requests.inc({ method: METHODS.includes(method) ? method : "other", route, status });
}

/** A browser says on each request where it comes from, which no page can change; programs do not. */
export function isBrowser({ headers }: AnyRequest): boolean {
  return headers["sec-fetch-site"] !== undefined || headers["sec-fetch-dest"] !== undefined;
}

/** Makes a browser show an answer as a page of no origin, without scripts: it comes from the origin of the API, which it must not drive. */
export const sandboxed: Header = ["Content-Security-Policy", "sandbox"];

/**
 * Brings a visit to its port and back; resolves with the status of the answer when it is over. The client's leaving and the server's end close the tunnel.
 *
 * @throws while nothing of an answer has been sent: unavailable, too_many_streams, by the sandbox's state
 */
export async function visit(
  from: Visit,
  destination: Destination,
  places: { readonly requests: Places; readonly upgraded: Places },
  shutdown: AbortSignal,
): Promise<number> {
  const over = new AbortController();
  const stream = from.kind === "upgrade" ? from.socket : from.response;
  const onClose = () => over.abort(new MitosError("canceled", { cause: "the client went away" }));
  const onShutdown = () => over.abort(shutdown.reason);
  stream.once("close", onClose);
  shutdown.addEventListener("abort", onShutdown, { once: true });
  if (stream.destroyed) onClose();
  if (shutdown.aborted) onShutdown();
  try {
    using _place = await (from.kind === "upgrade" ? places.upgraded : places.requests).take(destination.sandbox, over.signal);
    const socket = await openTunnelSocket(destination.runtime, destination.port, over.signal).catch((error: unknown) => {
      throw unreachable(error, destination.port);
    });
    // A failure shows at whoever uses it; nobody may be doing so yet.
    socket.on("error", () => {});
    if (from.kind === "upgrade") return await exchangeUpgrade(socket, destination, from, destination.rewrite);
    return await exchange(socket, destination, from.request, from.response, destination.rewrite);
  } finally {
    stream.off("close", onClose);
    shutdown.removeEventListener("abort", onShutdown);
  }
}

function unreachable(error: unknown, port: number): unknown {
  if (!(error instanceof MitosError) || error.code !== "unavailable") return error;
  return new MitosError("unavailable", {
    message: `nothing answers on port ${port} of the sandbox`,
    cause: error.detail.cause,
    remediation: `Start a program in the sandbox that listens on port ${port} (0.0.0.0 or 127.0.0.1), then open this again.`,
    retryAfterMs: 1000,
    reason: error,
  });
}
