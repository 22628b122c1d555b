/** IP addresses as numbers, and what kind of place each of them is. No I/O. */

import { isIPv4, isIPv6 } from "node:net";

export interface IpAddress {
  readonly family: 4 | 6;
  readonly value: bigint;
}

/** All addresses of one family that begin with the same bits. */
export interface AddressRange extends IpAddress {
  readonly bits: number;
}

/**
 * - `never`: of this host, of its link, of the cloud's metadata service, or no single machine at all. No policy opens it.
 * - `special`: of a private or reserved network. Only a rule that names it opens it.
 * - `public`: anything else.
 */
export type AddressKind =
  | { readonly kind: "never" | "special"; readonly what: string; readonly range: AddressRange }
  | { readonly kind: "public" };

/** An address without zone, port or prefix; undefined for anything else. */
export function parseAddress(text: string): IpAddress | undefined {
  if (isIPv4(text)) return { family: 4, value: v4Value(text) };
  if (!isIPv6(text) || text.includes("%")) return undefined;
  const mapped = /^(.*:)(\d+\.\d+\.\d+\.\d+)$/.exec(text);
  const tail = mapped?.[2] === undefined ? undefined : v4Value(mapped[2]);
  const hex = tail === undefined ? text : `${mapped?.[1]}${(tail >> 16n).toString(16)}:${(tail & 0xffffn).toString(16)}`;
  const [head = "", rest] = hex.split("::");
  const groups = (part: string) => (part === "" ? [] : part.split(":"));
  const before = groups(head);
  const after = rest === undefined ? [] : groups(rest);
  const zeros = Array.from({ length: 8 - before.length - after.length }, () => "0");
  let value = 0n;
  for (const group of [...before, ...(rest === undefined ? [] : zeros), ...after]) value = (value << 16n) | BigInt(`0x${group}`);
  return { family: 6, value };
}

/** `10.0.0.0/8`; bits below the prefix are ignored. Undefined for anything else. */
export function parseRange(text: string): AddressRange | undefined {
  const [base, bitsText, ...more] = text.split("/");
  const address = parseAddress(base ?? "");
  if (!address || more.length > 0 || !/^\d{1,3}$/.test(bitsText ?? "")) return undefined;
  const bits = Number(bitsText);
  return bits <= width(address) ? unwrapRange({ ...address, bits }) : undefined;
}

export function exactRange(address: IpAddress): AddressRange {
  return { ...address, bits: width(address) };
}

export function isIn({ family, value }: IpAddress, range: AddressRange): boolean {
  const shift = BigInt(width(range) - range.bits);
  return family === range.family && value >> shift === range.value >> shift;
}

/** Whether all of `inner` lies in `outer`. */
export function isWithin(inner: AddressRange, outer: AddressRange): boolean {
  return inner.bits >= outer.bits && isIn(inner, outer);
}

/**
 * The IPv4 address that a connection to `address` really goes to: mapped (::ffff:0:0/96), compatible (::/96), NAT64 (64:ff9b::/96) and
 * 6to4 (2002::/16) forms carry one. Other addresses are given back as they are.
 */
export function unwrap(address: IpAddress): IpAddress {
  // :: and ::1 are themselves, not 0.0.0.0 and 0.0.0.1 in compatible form.
  if (address.family === 4 || address.value <= 1n) return address;
  for (const { range, shift } of embeddings) {
    if (isIn(address, range)) return { family: 4, value: (address.value >> shift) & 0xffff_ffffn };
  }
  return address;
}

/** @param address - unwrapped */
export function kindOf(address: IpAddress): AddressKind {
  for (const [what, range] of neverRanges) if (isIn(address, range)) return { kind: "never", what, range };
  for (const [what, range] of specialRanges) if (isIn(address, range)) return { kind: "special", what, range };
  return { kind: "public" };
}

export function formatAddress({ family, value }: IpAddress): string {
  if (family === 4) return [24n, 16n, 8n, 0n].map((shift) => String((value >> shift) & 0xffn)).join(".");
  const groups = Array.from({ length: 8 }, (_, index) => ((value >> BigInt(112 - 16 * index)) & 0xffffn).toString(16));
  // The URL parser shortens as RFC 5952 asks.
  return new URL(`http://[${groups.join(":")}]/`).hostname.slice(1, -1);
}

function width({ family }: IpAddress): number {
  return family === 4 ? 32 : 128;
}

function v4Value(text: string): bigint {
  return text.split(".").reduce((value, part) => (value << 8n) | BigInt(part), 0n);
}

/** ::ffff:10.0.0.0/104 is written for 10.0.0.0/8, since addresses are unwrapped before they are compared. */
function unwrapRange(range: AddressRange): AddressRange {
  const inner = unwrap(range);
  if (inner.family === range.family) return range;
  return range.bits >= 96 && !isIn(range, sixToFour) ? { ...inner, bits: range.bits - 96 } : range;
}

function range(text: string): AddressRange {
  const [base = "", bits] = text.split("/");
  const address = parseAddress(base);
  if (!address) throw new Error(`${text} is not a range`);
  return { ...address, bits: Number(bits) };
}

const sixToFour = range("2002::/16");
const embeddings: readonly { readonly range: AddressRange; readonly shift: bigint }[] = [
  { range: range("::ffff:0:0/96"), shift: 0n },
  { range: range("::/96"), shift: 0n },
  { range: range("64:ff9b::/96"), shift: 0n },
  { range: sixToFour, shift: 80n },
];

const named = (what: string, ...ranges: string[]) => ranges.map((text) => [what, range(text)] as const);

const neverRanges: readonly (readonly [string, AddressRange])[] = [
  ...named("a cloud's metadata service", "169.254.169.254/32", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32"),
  ...named("a cloud's metadata service", "fd00:ec2::/32", "fd20:ce::254/128"),
  ...named("a loopback address", "127.0.0.0/8", "::1/128"),
  ...named("a link-local address", "169.254.0.0/16", "fe80::/10"),
  ...named("an unspecified address", "0.0.0.0/8", "::/128"),
  ...named("a multicast address", "224.0.0.0/4", "ff00::/8"),
  ...named("the broadcast address", "255.255.255.255/32"),
  ...named("an address of a tunnel", "2001::/32", "64:ff9b:1::/48"),
];

const specialRanges: readonly (readonly [string, AddressRange])[] = [
  ...named("a private address", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fec0::/10"),
  ...named("a reserved address", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
  ...named("a reserved address", "240.0.0.0/4", "100::/64", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16"),
];
