/**
 * The DNS labels of previews: `p8080-sb-1` is port 8080 of sandbox `sb-1`, an origin of its own in a browser; `sb-1` alone is whichever
 * port the token opens.
 */

import { createHash } from "node:crypto";
import type { SandboxId } from "@mitos/protocol";

export interface PreviewLabel {
  readonly name: string;
  /** Undefined = the token's. */
  readonly port: number | undefined;
}

const labelPattern = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;
const withPort = /^p([1-9]\d{0,4})-(.+)$/;
const hashed = /^h-[0-9a-f]{32}$/;
/** 63 without `p65535-`. */
const nameCharactersMax = 56;
/** Names that a domain's owner uses for something else. */
const reserved = new Set("www app api console gateway admin auth login account mail static assets cdn status".split(" "));

/** The sandbox's id where it is a label, else a hash of it: ids may have capitals and underscores, and be longer. */
export function nameOf(sandbox: SandboxId): string {
  const usable =
    sandbox.length <= nameCharactersMax &&
    labelPattern.test(sandbox) &&
    !withPort.test(sandbox) &&
    !hashed.test(sandbox) &&
    // Punycode, which browsers show as something else.
    !sandbox.startsWith("xn--") &&
    !reserved.has(sandbox);
  return usable ? sandbox : `h-${createHash("sha256").update(sandbox).digest("hex").slice(0, 32)}`;
}

export function labelOf(sandbox: SandboxId, port: number): string {
  return `p${port}-${nameOf(sandbox)}`;
}

/** Case does not count, as in DNS. @returns undefined for what is no label of a preview */
export function parseLabel(text: string): PreviewLabel | undefined {
  const label = text.toLowerCase();
  if (!labelPattern.test(label)) return undefined;
  const match = withPort.exec(label);
  if (!match?.[2]) return { name: label, port: undefined };
  const port = Number(match[1]);
  return port <= 65_535 ? { name: match[2], port } : undefined;
}
