/**
 * Previews: a port of a sandbox under a URL with a token in it.
 *
 * Where: `p8080-sb-1.localhost:<our port>` (or below the configured domain), an origin of its own; and `/v1/preview/p8080-sb-1/` on our own
 * address, for programs whose resolver knows no `*.localhost`. A browser is led from the second to the first, since a page under our own
 * address could drive the API.
 *
 * In order: label (404), token (401), token for this sandbox and port (403), the sandbox's state (404, 409, 410), a place (429), the port (503).
 */

import { limits, MitosError } from "@mitos/protocol";
import type { ServerContext } from "../context.ts";
import { isOurFault, toMitosError } from "../errors.ts";
import { type AnyRequest, authorityOf, isSameOrigin, parseAuthority } from "../http/guard.ts";
import { type AnyResponse, sendEnvelope } from "../http/plain.ts";
import { endToEnd, type Header, headersOf, withForwarded } from "../proxy/headers.ts";
import { Places } from "../proxy/places.ts";
import { countVisit, isBrowser, responseOf, sandboxed, type Visit, visit } from "../proxy/ports.ts";
import { addressOfHost, addressOfPath, hostFor, type PreviewAddress } from "./address.ts";
import { type Candidate, candidatesOf, withoutCredentials, withoutToken, withToken } from "./credentials.ts";
import { labelOf, nameOf } from "./label.ts";
import { sendWaitingPage, wantsPage } from "./page.ts";
import type { PreviewGrant, PreviewSigner } from "./token.ts";

export interface PreviewOptions {
  /** Undefined = previews are off. */
  readonly signer: PreviewSigner | undefined;
  /** Undefined = `localhost`. */
  readonly domain: string | undefined;
}

export interface PreviewProxy {
  /** Such a request must reach nothing else of this server. */
  isPreviewHost(request: AnyRequest): boolean;
  /** In the path form, which is checked like every other route first. */
  isPreviewPath(request: AnyRequest): boolean;
  serve(from: Visit): Promise<void>;
}

interface Access {
  readonly grant: PreviewGrant;
  readonly from: Candidate["from"];
  readonly token: string;
}

export function createPreviewProxy(context: ServerContext, { signer, domain }: PreviewOptions, upgraded: Places): PreviewProxy {
  const requests = new Places({
    what: "requests to its previews",
    perSandboxMax: limits.previewRequestsPerSandboxMax,
    waitingMax: limits.previewRequestsWaitingMax,
    waitMsMax: 30_000,
  });
  // Nothing but this server can set a cookie of this prefix where there is TLS: no other preview below the domain.
  const cookieName = domain === undefined ? "mitos_preview" : "__Host-mitos_preview";
  const scheme = domain === undefined ? "http" : "https";

  const hostAddress = (request: AnyRequest) =>
    signer && addressOfHost(authorityOf(request), request.url ?? "/", request.socket.localPort, domain);
  return {
    isPreviewHost: (request) => hostAddress(request) !== undefined,
    isPreviewPath: (request) => addressOfPath(request.url ?? "/") !== undefined,
    async serve(from) {
      const { request } = from;
      const address = hostAddress(request) ?? addressOfPath(request.url ?? "/");
      const status = await pass(from, address).catch((error: unknown) => fail(from, address, toMitosError(error)));
      countVisit(context, "preview", from, status);
      context.log.debug({ route: "preview", form: address?.form, label: address?.labelText, method: request.method, status }, "answered");
    },
  };

  /** @returns the status that was answered */
  async function pass(from: Visit, address: PreviewAddress | undefined): Promise<number> {
    const { request } = from;
    if (!signer) throw previewsOff();
    if (!address?.label) throw new MitosError("not_found", { cause: "there is no such preview", remediation: mintAnother });
    const access = authorize(signer, request, address);
    const { sandbox, port } = access.grant;
    const label = labelOf(sandbox, port);
    const isOrigin = address.form === "host" && address.label.port !== undefined;
    if (!isOrigin && isBrowser(request)) return leadToOrigin(from, address, access, label);
    if (isOrigin && access.from === "query" && isNavigation(request)) return leadToCookie(from, address, access);

    const runtime = context.engine.runtime(sandbox);
    const target = withoutToken(address.target);
    const headers = withoutCredentials(endToEnd(headersOf(request)), cookieName, access.from);
    const cookie = access.from === "query" && address.label.port !== undefined ? [cookieOf(access, address)] : [];
    return visit(
      from,
      {
        sandbox,
        runtime,
        port,
        method: request.method ?? "GET",
        target,
        headers: withForwarded(headers, request, { prefix: address.prefix, scheme }),
        rewrite: (answer) => [
          ...answer.flatMap((header) => ownHeader(header, request, address, access)),
          ...cookie,
          ...(address.form === "path" ? [sandboxed] : []),
        ],
      },
      { requests, upgraded },
      context.shutdown,
    );
  }

  function authorize(signer: PreviewSigner, request: AnyRequest, address: PreviewAddress): Access {
    const nowUnix = Math.floor(Date.now() / 1000);
    let refusal = new MitosError("unauthorized", {
      message: "the preview needs a token",
      cause: "the request has none",
      remediation: mintAnother,
    });
    for (const { token, from } of candidatesOf(request, address.target, cookieName)) {
      const verdict = signer.verify(token, nowUnix);
      if (!("grant" in verdict)) {
        const cause = "expired" in verdict ? "the token has expired" : "the token is not one of this server's";
        if (refusal.code === "unauthorized")
          refusal = new MitosError("unauthorized", { message: "the preview's token is not valid", cause, remediation: mintAnother });
        continue;
      }
      const { sandbox, port } = verdict.grant;
      if (context.engine.previews.isOfEarlier(sandbox, verdict.grant.expiresUnix)) {
        const cause = "the token is for an earlier sandbox of this id";
        refusal = new MitosError("unauthorized", { message: "the preview's token is not valid", cause, remediation: mintAnother });
        continue;
      }
      const isFor = nameOf(sandbox) === address.label?.name && (address.label.port ?? port) === port;
      if (isFor && (from !== "cookie" || isOwnPage(request))) return { grant: verdict.grant, from, token };
      refusal = new MitosError("forbidden", {
        message: "the preview's token does not open this",
        cause: isFor ? "another site's page sent the request" : "the token is for another sandbox or port",
        remediation: mintAnother,
      });
    }
    throw refusal;
  }

  /** The cookie is sent by the browser, whoever's page asks: only the preview's own pages, and the user's own steps, may use it. */
  function isOwnPage(request: AnyRequest): boolean {
    const { origin, "sec-fetch-site": site } = request.headers;
    const host = parseAuthority(authorityOf(request) ?? "");
    if (origin !== undefined && !(host && isSameOrigin(origin, { ...host, port: host.port || (scheme === "https" ? "443" : "80") })))
      return false;
    return site === undefined || site === "same-origin" || site === "none" || (isNavigation(request) && origin === undefined);
  }

  function leadToOrigin(from: Visit, address: PreviewAddress, access: Access, label: string): number {
    const { request } = from;
    const host = hostFor(label, authorityOf(request), domain);
    if (!host || !isNavigation(request)) {
      throw new MitosError("forbidden", {
        cause: "a page from a sandbox must not share the address of the API",
        remediation: host
          ? `Open it in the browser's address line, or under ${host.scheme}://${host.host}/.`
          : "Start the server with --preview-domain, so that each preview has an address of its own.",
      });
    }
    return redirect(from, `${host.scheme}://${host.host}${withToken(withoutToken(address.target), access.token)}`);
  }

  /** The token leaves the address line, the history, and what the page tells others of where it came from. */
  function leadToCookie(from: Visit, address: PreviewAddress, access: Access): number {
    return redirect(from, `${scheme}://${authorityOf(from.request)}${withoutToken(address.target)}`, [cookieOf(access, address)]);
  }

  function redirect(from: Visit, location: string, headers: Header[] = []): number {
    const response = responseOf(from);
    for (const [name, value] of headers) response.setHeader(name, value);
    response.setHeader("Location", location);
    response.setHeader("Referrer-Policy", "no-referrer");
    response.setHeader("Cache-Control", "no-store");
    response.setHeader("Content-Length", "0");
    response.statusCode = 302;
    response.end();
    return 302;
  }

  function cookieOf({ token, grant }: Access, address: PreviewAddress): Header {
    const seconds = Math.max(0, grant.expiresUnix - Math.floor(Date.now() / 1000));
    const attributes = ["HttpOnly", "SameSite=Lax", `Max-Age=${seconds}`, ...(domain === undefined ? [] : ["Secure"])];
    return ["Set-Cookie", [`${cookieName}=${token}`, `Path=${address.prefix}/`, ...attributes].join("; ")];
  }

  /** A header of the program's answer, as it must be where the program is shown. */
  function ownHeader([name, value]: Header, request: AnyRequest, address: PreviewAddress, access: Access): Header[] {
    switch (name.toLowerCase()) {
      case "set-cookie": {
        const [pair = "", ...attributes] = value.split(";").map((part) => part.trim());
        // Nobody but us gives a preview's cookie, and no program gives cookies to its neighbours.
        if (pair.split("=", 1)[0]?.trim() === cookieName) return [];
        const kept = attributes
          .filter((attribute) => !/^domain\s*=/i.test(attribute))
          .map((attribute) => attribute.replace(/^(path\s*=\s*)(\/)/i, `$1${address.prefix}$2`));
        return [[name, [pair, ...kept].join("; ")]];
      }
      case "location":
        return [[name, ownLocation(value, request, address, access)]];
      default:
        return [[name, value]];
    }
  }

  /** A redirect within the preview stays in it, and keeps the token for a client that has nothing else to remember it by. */
  function ownLocation(location: string, request: AnyRequest, address: PreviewAddress, access: Access): string {
    const [, authority, rest = ""] = /^(?:https?:)?\/\/([^/?#]*)(.*)$/is.exec(location) ?? [];
    if (authority !== undefined && authority.toLowerCase() !== authorityOf(request)?.toLowerCase()) return location;
    const path = authority === undefined ? location : rest.startsWith("/") ? rest : `/${rest}`;
    if (/^[a-z][a-z0-9+.-]*:/i.test(path)) return location;
    const kept = path.startsWith("/") && !path.startsWith(`${address.prefix}/`) ? `${address.prefix}${path}` : path;
    return access.from === "query" ? withToken(kept, access.token) : kept;
  }

  function fail(from: Visit, address: PreviewAddress | undefined, error: MitosError): number {
    const { request } = from;
    if (isOurFault(error)) context.log.error({ label: address?.labelText, err: error.detail.reason ?? error }, "a preview failed");
    const response: AnyResponse = responseOf(from);
    if (response.headersSent) return error.entry.status;
    response.setHeader("Cache-Control", "no-store");
    if (address?.form === "host" && wantsPage(request, error)) sendWaitingPage(response, error, request.method === "HEAD");
    else sendEnvelope(response, error);
    return error.entry.status;
  }
}

const mintAnother = "Ask for a URL with POST /v1/preview (get_host in the SDKs), and open that.";

export function previewsOff(): MitosError {
  return new MitosError("not_supported", {
    message: "previews are switched off on this server",
    remediation: "Start the server without --no-previews.",
  });
}

/** The user opens a page, by the address line, a link or a frame. */
function isNavigation({ headers, method }: AnyRequest): boolean {
  return (method === "GET" || method === "HEAD") && headers["sec-fetch-mode"] === "navigate";
}
