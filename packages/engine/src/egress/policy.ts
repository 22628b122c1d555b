/** What a sandbox may connect to: the rules of its `network`, read once, and the decision for each connection. No I/O. */

import { MitosError } from "@mitos/protocol";
import type { NetworkPolicy } from "../actions.ts";
import {
  type AddressRange,
  exactRange,
  formatAddress,
  type IpAddress,
  isIn,
  isWithin,
  kindOf,
  parseAddress,
  parseRange,
  unwrap,
} from "./addresses.ts";

/** What a rule without a port means. */
export const defaultPorts: readonly number[] = [80, 443];
const nameCharactersMax = 253;

interface NameRule {
  /** Lower case, without a dot at its end; for `*.example.com` what follows the star. */
  readonly name: string;
  readonly wildcard: boolean;
  readonly ports: readonly number[];
}

interface AddressRule {
  readonly range: AddressRange;
  readonly ports: readonly number[];
}

export interface EgressPolicy {
  /** Nothing at all is allowed, whatever the rules say. */
  readonly blocked: boolean;
  readonly allowPublic: boolean;
  readonly names: readonly NameRule[];
  readonly addresses: readonly AddressRule[];
  readonly ranges: readonly AddressRange[];
}

/** Where a program wants to go. Exactly one of the two is set. */
export type Target =
  | { readonly name: string; readonly address?: undefined; readonly port: number }
  | { readonly name?: undefined; readonly address: IpAddress; readonly port: number };

/** Why not, and what would allow it. */
export interface Denial {
  readonly reason: string;
  /** Undefined when nothing would. */
  readonly remedy?: string | undefined;
}

/**
 * @throws invalid_input for a rule that is not of the grammar: `name:port`, `*.domain:port`, `IP:port`, each also without a port, and
 *   `IP/bits` in `allowCidrs`
 */
export function parsePolicy({ block, egress, allowDomains, allowCidrs }: NetworkPolicy): EgressPolicy {
  const names: NameRule[] = [];
  const addresses: AddressRule[] = [];
  for (const text of allowDomains) {
    const rule = parseRule(text);
    if ("name" in rule) names.push(rule);
    else addresses.push(rule);
  }
  const ranges = allowCidrs.map((text) => {
    const range = parseRange(text);
    if (!range) throw invalid(`${quoted(text)} is not a CIDR such as 10.0.0.0/8`);
    return range;
  });
  return { blocked: block, allowPublic: egress === "allow", names, addresses, ranges };
}

function parseRule(text: string): NameRule | AddressRule {
  const [, v6, host = "", portText] = /^(?:\[([^\]]*)\]|([^:]*))(?::([^:]*))?$/.exec(text) ?? [];
  const bare = parseAddress(text)?.family === 6 ? text : undefined;
  if (v6 === undefined && host === "" && !bare) throw invalid(`${quoted(text)} is not a rule such as "example.com:443"`);
  const ports = portText === undefined ? defaultPorts : [parsePort(portText, text)];

  const address = parseAddress(v6 ?? bare ?? host);
  if (address) return { range: exactRange(unwrap(address)), ports };
  if (v6 !== undefined) throw invalid(`${quoted(text)} does not hold an IPv6 address in its brackets`);
  if (host.includes("/")) throw invalid(`${quoted(text)} looks like a CIDR: those belong to allow_cidrs`);

  const wildcard = host.startsWith("*.");
  const name = parseName(wildcard ? host.slice(2) : host);
  if (!name) {
    const hint = host.includes("*") ? "a wildcard is one leading label, as in *.example.com" : "it is not a DNS name";
    throw invalid(`${quoted(text)}: ${hint}`);
  }
  return { name, wildcard, ports };
}

function parsePort(text: string, rule: string): number {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : 0;
  if (port < 1 || port > 65_535) throw invalid(`${quoted(rule)}: the port must be 1 to 65535`);
  return port;
}

/** Lower case, without a dot at its end. Undefined for what is no DNS name, also for what some resolvers take for an address (0x7f.1). */
export function parseName(text: string): string | undefined {
  const name = text.toLowerCase().replace(/\.$/, "");
  if (name.length > nameCharactersMax || !/^[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*$/.test(name)) return undefined;
  const labels = name.split(".");
  if (labels.some((label) => label.length > 63 || label.endsWith("-"))) return undefined;
  return /^(\d+|0x[0-9a-f]*)$/.test(labels.at(-1) ?? "") ? undefined : name;
}

/** @throws invalid_input when the guest names no place */
export function parseTarget(host: string, port: number): Target {
  if (!Number.isInteger(port) || port < 1 || port > 65_535) throw new MitosError("invalid_input", { cause: `${port} is not a port` });
  const address = parseAddress(host.replace(/^\[(.*)\]$/, "$1"));
  if (address) return { address: unwrap(address), port };
  const name = parseName(host);
  if (!name) throw new MitosError("invalid_input", { cause: `${quoted(host)} is neither a DNS name nor an address` });
  return { name, port };
}

// ---------------------------------------------------------------------------------------------------- decisions

/**
 * Whether the target itself is allowed. A name that is must still be resolved and each of its addresses given to `checkResolved`; an address
 * that is may be connected to.
 */
export function checkTarget(policy: EgressPolicy, target: Target): Denial | undefined {
  if (policy.blocked) return blocked;
  if (target.address) return checkAddress(policy, target.address, target.port);
  return policy.allowPublic || nameRules(policy, target.name).some(({ ports }) => ports.includes(target.port)) ? undefined : noRule(target);
}

/**
 * Whether an address that an allowed name has resolved to may be connected to.
 * @param address - unwrapped
 */
export function checkResolved(policy: EgressPolicy, { port }: Target, address: IpAddress): Denial | undefined {
  const place = kindOf(address);
  if (place.kind === "never") return never(address, place.what);
  if (place.kind === "public" || isNamed(policy, address, port)) return undefined;
  return special(address, place.what);
}

/** The ports that a look-up of `name` opens for programs that know no proxy. */
export function portsOfName(policy: EgressPolicy, name: string): { readonly ports: readonly number[]; readonly any: boolean } | Denial {
  if (policy.blocked) return blocked;
  if (policy.allowPublic) return { ports: [], any: true };
  const ports = new Set(nameRules(policy, name).flatMap((rule) => rule.ports));
  return ports.size > 0 ? { ports: [...ports], any: false } : noRule({ name, port: 0 });
}

function checkAddress(policy: EgressPolicy, address: IpAddress, port: number): Denial | undefined {
  const place = kindOf(address);
  if (place.kind === "never") return never(address, place.what);
  if (isNamed(policy, address, port)) return undefined;
  if (place.kind === "special") return special(address, place.what);
  if (policy.allowPublic || policy.ranges.some((range) => isIn(address, range))) return undefined;
  return noRule({ address, port });
}

function nameRules({ names }: EgressPolicy, name: string): NameRule[] {
  return names.filter((rule) => (rule.wildcard ? name.endsWith(`.${rule.name}`) : name === rule.name));
}

/** A rule for this very address, or a range: for a special address one that lies within its network, so that 0.0.0.0/0 does not open it. */
function isNamed({ addresses, ranges }: EgressPolicy, address: IpAddress, port: number): boolean {
  if (addresses.some((rule) => isIn(address, rule.range) && rule.ports.includes(port))) return true;
  const place = kindOf(address);
  return ranges.some((range) => isIn(address, range) && (place.kind === "public" || isWithin(range, place.range)));
}

const blocked: Denial = { reason: "network.block is set", remedy: "leave network.block out" };

function never(address: IpAddress, what: string): Denial {
  return { reason: `${formatAddress(address)} is ${what}, which no rule can allow` };
}

function special(address: IpAddress, what: string): Denial {
  const text = formatAddress(address);
  return {
    reason: `${text} is ${what} and no rule names it`,
    remedy: `add "${text}/${address.family === 4 ? 32 : 128}" to network.allow_cidrs`,
  };
}

function noRule(target: Target): Denial {
  const place = describeTarget(target);
  return { reason: "no rule allows it", remedy: `add ${quoted(place)} to network.allow_domains` };
}

/** As in a rule. */
export function describeTarget({ name, address, port }: Target): string {
  const text = address ? formatAddress(address) : name;
  const host = address?.family === 6 ? `[${text}]` : text;
  return port === 0 ? `${host}` : `${host}:${port}`;
}

function quoted(text: string): string {
  return JSON.stringify(text.slice(0, 300));
}

function invalid(cause: string): MitosError {
  return new MitosError("invalid_input", { cause });
}
