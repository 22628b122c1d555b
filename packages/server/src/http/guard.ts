/**
 * What keeps web pages away, above all from a server without keys: a page can make a browser send requests to this machine, under a name of its own
 * that resolves to it (DNS rebinding) or from its own origin. Both show in the headers `Host` and `Origin`.
 */

import type { IncomingMessage } from "node:http";
import type { Http2ServerRequest } from "node:http2";
import { isIP } from "node:net";
import { MitosError } from "@mitos/protocol";

export type AnyRequest = IncomingMessage | Http2ServerRequest;

/** `127.0.0.0/8`, `::1`, `localhost` and names below it. */
export function isLoopback(host: string): boolean {
  const name = host.toLowerCase().replace(/^\[(.*)\]$/, "$1");
  if (isIP(name) === 4) return name.startsWith("127.");
  if (isIP(name) === 6) return name === "::1";
  return name === "localhost" || name.endsWith(".localhost");
}

/** The authority that the client used: `:authority` on HTTP/2, `Host` on HTTP/1. */
export function authorityOf(request: AnyRequest): string | undefined {
  const authority = "authority" in request ? request.authority : undefined;
  return authority || request.headers.host || undefined;
}

/**
 * @param boundHost - the name that the server listens on, which `Host` must be; undefined = any, where requests bring a key
 * @returns why the request is refused, or undefined
 */
export function refusal(request: AnyRequest, boundHost: string | undefined): MitosError | undefined {
  const authority = authorityOf(request);
  const { origin } = request.headers;
  // HTTP/1.0 without Host: no browser does that.
  if (authority === undefined) return origin === undefined ? undefined : refused("a request with Origin needs Host");
  const host = parseAuthority(authority);
  if (!host) return refused("the Host header is malformed");
  if (!isOwnName(host.name, boundHost)) return refused(`the Host ${host.name} is not this server's`);
  if (origin !== undefined && !isSameOrigin(origin, host)) return refused("the Origin is not this server's");
  return undefined;
}

/** Names below `localhost` belong to previews, which reach no route of this server. */
function isOwnName(name: string, boundHost: string | undefined): boolean {
  if (name === boundHost?.toLowerCase()) return true;
  return !name.endsWith(".localhost") && (boundHost === undefined || isLoopback(name));
}

export interface Authority {
  readonly name: string;
  readonly port: string;
}

export function parseAuthority(authority: string): Authority | undefined {
  const match = /^(\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9._-]+)(?::(\d{1,5}))?$/.exec(authority);
  return match?.[1] ? { name: match[1].toLowerCase(), port: match[2] ?? "" } : undefined;
}

/** Whether a page of this origin asks its own host. */
export function isSameOrigin(origin: string, host: Authority): boolean {
  const match = /^(https?):\/\/(.+)$/.exec(origin);
  const parsed = match?.[2] ? parseAuthority(match[2]) : undefined;
  if (!match || !parsed) return false;
  const defaultPort = match[1] === "https" ? "443" : "80";
  return parsed.name === host.name && (parsed.port || defaultPort) === (host.port || defaultPort);
}

function refused(cause: string): MitosError {
  return new MitosError("forbidden", {
    cause,
    remediation: "Use the server's own address (a loopback name or address), and call it from a program rather than from a web page.",
  });
}
