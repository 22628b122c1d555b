import { kindOf, parseAddress, unwrap } from "../egress/addresses.ts";

/** `localhost`, 127.0.0.0/8 and ::1. Names are not looked up. @param hostname - as a URL has it, an IPv6 address in brackets */
export function isLoopback(hostname: string): boolean {
  if (hostname === "localhost") return true;
  const address = parseAddress(hostname.replace(/^\[|\]$/g, ""));
  return address !== undefined && isLoopbackAddress(kindOf(unwrap(address)));
}

/** Addresses at which no registry is: of the host's own link, of a cloud's metadata service, of no single machine. */
export function isNeverRegistry(text: string): boolean {
  const address = parseAddress(text.replace(/^\[|\]$/g, ""));
  if (address === undefined) return false;
  const kind = kindOf(unwrap(address));
  return kind.kind === "never" && !isLoopbackAddress(kind);
}

function isLoopbackAddress(kind: ReturnType<typeof kindOf>): boolean {
  return kind.kind === "never" && kind.what === "a loopback address";
}
