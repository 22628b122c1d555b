import { isRegistryHost, MitosError, splitImageReference } from "@mitos/protocol";
import type { Digest } from "../layers/layer.ts";

/** Where one repository is: `registry.example:5000` and `team/tool`. */
export interface Repository {
  /** In lower case, `docker.io` for each of its names. */
  readonly host: string;
  readonly path: string;
}

/** An image's name with everything that may be left out put in. */
export interface Reference extends Repository {
  /** Null: named by its digest alone. */
  readonly tag: string | null;
  /** Of an index or of a manifest. What counts when both are there. */
  readonly digest: Digest | null;
}

export const dockerHub = "docker.io";
const dockerHubNames = new Set([dockerHub, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"]);

/**
 * `python:3.12-slim` → docker.io, library/python, 3.12-slim.
 *
 * @param registry - of references that name none
 * @throws invalid_input
 */
export function parseReference(text: string, registry: string): Reference {
  const parts = splitImageReference(text);
  if (!parts || !isReachable(parts.host ?? registry)) {
    throw new MitosError("invalid_input", {
      cause: `${JSON.stringify(text.slice(0, 255))} is not an image reference`,
      remediation: "Write it as [host/]path[:tag][@sha256:…], in lower case, such as python:3.12-slim or registry.example/team/tool:1.0.",
    });
  }
  const host = normalizeHost(parts.host ?? registry);
  const path = host === dockerHub && !parts.path.includes("/") ? `library/${parts.path}` : parts.path;
  const tag = parts.tag ?? (parts.digest === undefined ? "latest" : null);
  return { host, path, tag, digest: (parts.digest as Digest | undefined) ?? null };
}

export function formatReference({ tag, digest, ...repository }: Reference): string {
  return `${formatRepository(repository)}${tag === null ? "" : `:${tag}`}${digest === null ? "" : `@${digest}`}`;
}

export function formatRepository({ host, path }: Repository): string {
  return `${host}/${path}`;
}

/** The inverse of `formatRepository`; undefined for anything else. */
export function parseRepository(text: string): Repository | undefined {
  const parts = splitImageReference(text);
  return parts?.host === undefined ? undefined : { host: normalizeHost(parts.host), path: parts.path };
}

/** A registry's host as operators and Docker's configuration write it, for comparing. */
export function normalizeHost(host: string): string {
  const lower = host.toLowerCase();
  return dockerHubNames.has(lower) ? dockerHub : lower;
}

/** @throws invalid_input naming the option */
export function checkHost(host: string, option: string): string {
  if (!isRegistryHost(host) || !isReachable(host)) {
    throw new MitosError("invalid_input", {
      cause: `${option}: ${JSON.stringify(host.slice(0, 255))} is not the host of a registry`,
      remediation: "Write host or host:port, without scheme and path. A name without a dot needs a port.",
    });
  }
  return normalizeHost(host);
}

/** Well-formed as it may be, 999.999.999.999 is no address and 99999 no port. */
function isReachable(host: string): boolean {
  return URL.canParse(`https://${host}`);
}
