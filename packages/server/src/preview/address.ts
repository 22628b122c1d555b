/** Where a preview is: on a host of its own, or below the server's own address. */

import { isLoopback, parseAuthority } from "../http/guard.ts";
import { type PreviewLabel, parseLabel } from "./label.ts";

/** In front of the label in the path form. */
export const previewPathPrefix = "/v1/preview/";

export interface PreviewAddress {
  readonly form: "host" | "path";
  /** Undefined = malformed: no such preview. */
  readonly label: PreviewLabel | undefined;
  /** As the client wrote it. */
  readonly labelText: string;
  /** What the program in the sandbox is asked for, with the query; begins with `/`. */
  readonly target: string;
  /** What stands before `target` in the client's path; empty in the host form. */
  readonly prefix: string;
}

/**
 * A host is a preview's only as one label below the configured domain, or below `localhost` with this server's own port: a page that
 * points a name of its own at this machine is neither.
 */
export function addressOfHost(
  authority: string | undefined,
  url: string,
  ownPort: number | undefined,
  domain: string | undefined,
): PreviewAddress | undefined {
  const host = authority === undefined ? undefined : parseAuthority(authority);
  if (!host) return undefined;
  const labelText = labelBelow(host.name, domain) ?? (Number(host.port || 80) === ownPort ? labelBelow(host.name, "localhost") : undefined);
  if (labelText === undefined) return undefined;
  return { form: "host", label: parseLabel(labelText), labelText, target: withSlash(url), prefix: "" };
}

export function addressOfPath(url: string): PreviewAddress | undefined {
  if (!url.startsWith(previewPathPrefix)) return undefined;
  const end = url.slice(previewPathPrefix.length).search(/[/?#]/);
  const labelText = end < 0 ? url.slice(previewPathPrefix.length) : url.slice(previewPathPrefix.length, previewPathPrefix.length + end);
  const prefix = `${previewPathPrefix}${labelText}`;
  return { form: "path", label: parseLabel(labelText), labelText, target: withSlash(url.slice(prefix.length)), prefix };
}

/** The host form's authority for a client that reached this server as `authority`. */
export function hostFor(
  label: string,
  authority: string | undefined,
  domain: string | undefined,
): { scheme: string; host: string } | undefined {
  if (domain !== undefined) return { scheme: "https", host: `${label}.${domain}` };
  const own = authority === undefined ? undefined : parseAuthority(authority);
  // Below `localhost` a browser asks its own machine: right only where the server is there.
  if (!own || !isLoopback(own.name)) return undefined;
  return { scheme: "http", host: `${label}.localhost${own.port ? `:${own.port}` : ""}` };
}

function labelBelow(name: string, domain: string | undefined): string | undefined {
  if (domain === undefined || !name.endsWith(`.${domain}`)) return undefined;
  const label = name.slice(0, -domain.length - 1);
  return label.includes(".") ? undefined : label;
}

function withSlash(rest: string): string {
  return rest.startsWith("/") ? rest : `/${rest}`;
}
