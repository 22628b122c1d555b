/** The token of a request: where it may stand, and how it is taken out before the request goes on to the sandbox. */

import type { AnyRequest } from "../http/guard.ts";
import type { Header } from "../proxy/headers.ts";
import { looksLikeToken } from "./token.ts";

export const tokenHeader = "mitos-preview-token";

export interface Candidate {
  readonly token: string;
  readonly from: "header" | "bearer" | "query" | "cookie";
}

/** In the order in which they count: what a request says itself before what a browser adds. */
export function candidatesOf(request: AnyRequest, target: string, cookieName: string): Candidate[] {
  const { authorization } = request.headers;
  const header = request.headers[tokenHeader];
  const bearer = /^Bearer +(\S+)$/i.exec(authorization ?? "")?.[1];
  return [
    ...(typeof header === "string" ? [{ token: header, from: "header" as const }] : []),
    ...(bearer === undefined ? [] : [{ token: bearer, from: "bearer" as const }]),
    ...parametersOf(target).flatMap((parameter) => {
      const token = tokenOfParameter(parameter);
      return token ? [{ token, from: "query" as const }] : [];
    }),
    ...cookiesOf(request.headers.cookie).flatMap(([name, value]) =>
      name === cookieName ? [{ token: value, from: "cookie" as const }] : [],
    ),
  ];
}

/** Parameters named `token` that hold something else are the program's own. */
export function withoutToken(target: string): string {
  const at = target.indexOf("?");
  if (at < 0) return target;
  const parameters = parametersOf(target);
  const kept = parameters.filter((parameter) => !looksLikeToken(tokenOfParameter(parameter) ?? ""));
  if (kept.length === parameters.length) return target;
  return kept.length === 0 ? target.slice(0, at) : `${target.slice(0, at)}?${kept.join("&")}`;
}

export function withToken(target: string, token: string): string {
  const [beforeHash, hash] = splitOnce(target, "#");
  return `${beforeHash}${beforeHash.includes("?") ? "&" : "?"}token=${token}${hash === undefined ? "" : `#${hash}`}`;
}

/**
 * What the sandbox may see. `Authorization` goes on only for a page that came in by its cookie: then it is the page's own. From a program
 * it may be a key that was meant for this server.
 */
export function withoutCredentials(headers: readonly Header[], cookieName: string, from: Candidate["from"]): Header[] {
  return headers.flatMap(([name, value]): Header[] => {
    switch (name.toLowerCase()) {
      case tokenHeader:
        return [];
      case "authorization":
        return from === "cookie" && !looksLikeToken(value.replace(/^\S+ +/, "")) ? [[name, value]] : [];
      case "cookie": {
        const kept = value
          .split(";")
          .map((cookie) => cookie.trim())
          .filter((cookie) => cookie !== "" && cookie.split("=", 1)[0]?.trim() !== cookieName);
        return kept.length > 0 ? [[name, kept.join("; ")]] : [];
      }
      case "referer":
        return [[name, withoutToken(value)]];
      default:
        return [[name, value]];
    }
  });
}

function parametersOf(target: string): string[] {
  const at = target.indexOf("?");
  return at < 0 ? [] : target.slice(at + 1).split("&");
}

function tokenOfParameter(parameter: string): string | undefined {
  const [name, value = ""] = splitOnce(parameter, "=");
  if (name !== "token") return undefined;
  try {
    return decodeURIComponent(value);
  } catch {
    return undefined;
  }
}

function cookiesOf(header: string | undefined): [string, string][] {
  return (header ?? "").split(";").map((cookie) => {
    const [name, value = ""] = splitOnce(cookie.trim(), "=");
    return [name, value];
  });
}

function splitOnce(text: string, separator: string): [string, string | undefined] {
  const at = text.indexOf(separator);
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + 1)];
}
