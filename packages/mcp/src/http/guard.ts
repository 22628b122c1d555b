import { createHash, timingSafeEqual } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { isIP } from "node:net";

/** Why a request may not come in. */
export interface Denial {
  readonly status: 401 | 403;
  readonly message: string;
}

/**
 * Keeps web pages and strangers out. A page can make a browser send requests to this machine, under a name of its own that resolves to it
 * (DNS rebinding) or from its own origin; both show in `Host` and `Origin`. With a token any `Host` will do, since no page can set
 * `Authorization` across origins and reverse proxies have names of their own.
 *
 * @param token - what clients must bring; undefined = nothing
 */
export function guardWith(token: string | undefined): (request: IncomingMessage) => Denial | undefined {
  const wanted = token === undefined ? undefined : digest(token);
  return ({ headers: { host, origin, authorization } }) => {
    if (host === undefined) return { status: 403, message: "The Host header is missing" };
    const name = nameOf(`http://${host}`);
    if (name === undefined) return { status: 403, message: "The Host header is malformed" };
    if (wanted === undefined && !isLoopback(name)) {
      return { status: 403, message: "The Host is not this server's: use a loopback name or address, or start it with a token" };
    }
    if (origin !== undefined && !isOwnOrigin(origin, host)) return { status: 403, message: "The Origin is not this server's" };
    if (wanted !== undefined && !timingSafeEqual(digest(bearerOf(authorization)), wanted)) {
      return { status: 401, message: "The bearer token is missing or wrong: send Authorization: Bearer <MITOS_MCP_TOKEN>" };
    }
    return undefined;
  };
}

/** `127.0.0.0/8`, `::1` and `localhost`, with or without the brackets of a URL. Names below `localhost` are pages of sandboxes. */
export function isLoopback(host: string): boolean {
  const name = host.toLowerCase().replace(/^\[(.*)\]$/, "$1");
  return isIP(name) === 4 ? name.startsWith("127.") : name === "::1" || name === "localhost";
}

/** A page of this very address, whatever loopback name it goes by: other ports of this machine may show what a sandbox serves. */
function isOwnOrigin(origin: string, host: string): boolean {
  if (nameOf(origin) === undefined) return false;
  const [page, own] = [URL.parse(origin)!, URL.parse(`http://${host}`)!];
  return page.host === own.host || (page.port === own.port && isLoopback(page.hostname) && isLoopback(own.hostname));
}

function nameOf(url: string): string | undefined {
  const parsed = URL.parse(url);
  // Anything beyond an authority is a URL that was smuggled in.
  const plain = parsed && parsed.pathname === "/" && !parsed.username && !parsed.search && !parsed.hash;
  return plain && /^https?:$/.test(parsed.protocol) ? parsed.hostname : undefined;
}

function bearerOf(authorization: string | undefined): string {
  return /^Bearer +(\S+)$/i.exec(authorization ?? "")?.[1] ?? "";
}

/** Of equal length whatever was presented, so that the comparison tells nothing. */
function digest(token: string): Buffer {
  return createHash("sha256").update(token).digest();
}
