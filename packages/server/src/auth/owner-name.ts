import type { Owner } from "@mitos/engine";

/** One text for each owner, to count by; empty for whoever asks a server without keys. */
export function ownerName(owner: Owner | undefined): string {
  return owner ? JSON.stringify([owner.organisation, owner.owner]) : "";
}
