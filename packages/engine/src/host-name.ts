import { createHash } from "node:crypto";
import { isId } from "@mitos/protocol";

/**
 * The host name of a machine: the id of what runs on it as far as a host may be named so. A host name has no underscore, and an image
 * reference would be none at all.
 */
export function hostNameOf(id: string): string {
  if (isId(id)) return id.replaceAll("_", "-");
  return `template-${createHash("sha256").update(id).digest("hex").slice(0, 16)}`;
}
