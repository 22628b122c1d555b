import { SandboxError } from "./errors.ts";

/** What names a preview by itself: other ids are named by a hash, which only the server makes. */
const plainId = /^(?!p[1-9]\d*-|h-[0-9a-f]{32}$|xn--)[a-z0-9](?:[a-z0-9-]{0,54}[a-z0-9])?$/;

/**
 * A port's address below the server's own, without the scheme: `127.0.0.1:8080/v1/preview/p3000-<id>`. A path may follow; a request needs the
 * preview's token.
 *
 * @throws SandboxError for an id that is not part of an address as it is
 */
export function hostOf(baseUrl: string, sandboxId: string, port: number): string {
  if (!plainId.test(sandboxId)) {
    throw new SandboxError(`the id ${sandboxId} is not part of an address as it is; use await sandbox.getUrl(${port})`);
  }
  return `${baseUrl.replace(/^[a-z]+:\/\//i, "")}/v1/preview/p${port}-${sandboxId}`;
}

/** A preview's URL with another path, and its token. */
export function withPath(previewUrl: string, path: string): string {
  const preview = new URL(previewUrl);
  const [before, hash] = path.split("#", 2) as [string, string | undefined];
  const [pathname, query] = before.split("?", 2) as [string, string | undefined];
  const at = `${preview.pathname.replace(/\/$/, "")}/${pathname.replace(/^\//, "")}`;
  return `${preview.origin}${at}?${query ? `${query}&` : ""}${preview.search.slice(1)}${hash === undefined ? "" : `#${hash}`}`;
}
