/** Header fields on their way through a proxy. */

import type { IncomingMessage } from "node:http";
import { type AnyRequest, authorityOf } from "../http/guard.ts";

export type Header = readonly [name: string, value: string];

/** Between two neighbours only (RFC 9110, 7.6.1). */
const hopByHop = new Set([
  "connection",
  "keep-alive",
  "proxy-authenticate",
  "proxy-authorization",
  "proxy-connection",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
  "http2-settings",
]);

/** As they were sent, in their order and spelling; without HTTP/2's pseudo headers. */
export function headersOf({ rawHeaders }: AnyRequest | IncomingMessage): Header[] {
  const headers: Header[] = [];
  for (let at = 0; at + 1 < rawHeaders.length; at += 2) {
    const [name, value] = [rawHeaders[at]!, rawHeaders[at + 1]!];
    if (!name.startsWith(":")) headers.push([name, value]);
  }
  return headers;
}

export function endToEnd(headers: readonly Header[]): Header[] {
  const named = headers
    .filter(([name]) => name.toLowerCase() === "connection")
    .flatMap(([, value]) => value.split(",").map((option) => option.trim().toLowerCase()));
  return headers.filter(([name]) => !hopByHop.has(name.toLowerCase()) && !named.includes(name.toLowerCase()));
}

/** With what a program behind a proxy wants to know, where nobody in front of this server has said it. */
export function withForwarded(
  headers: readonly Header[],
  request: AnyRequest,
  { prefix, scheme }: { prefix: string; scheme: string },
): Header[] {
  const authority = authorityOf(request);
  const has = (wanted: string) => headers.some(([name]) => name.toLowerCase() === wanted);
  const added: Header[] = [];
  const add = (name: string, value: string | undefined) => {
    if (value && !has(name.toLowerCase())) added.push([name, value]);
  };
  // HTTP/1.0 may go without; HTTP/1.1, which the program is spoken to in, may not.
  add("Host", authority ?? "localhost");
  add("X-Forwarded-Host", authority);
  add("X-Forwarded-Proto", scheme);
  add("X-Forwarded-Prefix", prefix);
  return [...headers, ...added];
}

/** For `writeHead`: several fields of one name become a list. */
export function toRecord(headers: readonly Header[]): Record<string, string | string[]> {
  const record: Record<string, string | string[]> = Object.create(null);
  const spelling = new Map<string, string>();
  for (const [name, value] of headers) {
    const key = spelling.get(name.toLowerCase()) ?? name;
    spelling.set(name.toLowerCase(), key);
    const earlier = record[key];
    record[key] = earlier === undefined ? value : [earlier, value].flat();
  }
  return record;
}
