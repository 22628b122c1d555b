/** E2B's options, and what becomes of each: read, ignored because nothing here depends on it, or refused because something would. */

import { isImageReference } from "@mitos/protocol";
import { type Connection, toBaseUrl } from "../config.ts";
import type { Network } from "../types.ts";
import { InvalidArgumentError } from "./errors.ts";
import type { RequestOpts } from "./request.ts";

/** What E2B's `logger` is; it is ignored. */
export interface Logger {
  debug?: ((...args: never[]) => void) | undefined;
  info?: ((...args: never[]) => void) | undefined;
  warn?: ((...args: never[]) => void) | undefined;
  error?: ((...args: never[]) => void) | undefined;
}

/** The server, the key, and how long to wait for it: options of every call that makes a handle. */
export interface ConnectionOpts extends RequestOpts {
  /** A key of the Mitos server. Default: `MITOS_API_KEY`, then the credentials file. `E2B_API_KEY` is not read: it belongs to another host. */
  apiKey?: string | undefined;
  /** The server's host; `https` unless it is a loopback address. Default: `MITOS_BASE_URL`, then `http://127.0.0.1:8080`. */
  domain?: string | undefined;
  /** The server's URL; counts before `domain`. */
  apiUrl?: string | undefined;
  /** Ignored: sandboxes are behind the same address. */
  sandboxUrl?: string | undefined;
  /** Ignored. */
  validateApiKey?: boolean | undefined;
  /** Ignored. */
  debug?: boolean | undefined;
  /** Ignored: a RateLimitError is thrown at once, its `cause.context.retry_after_ms` says when to try again. */
  retries?: number | undefined;
  /** Ignored. */
  logger?: Logger | undefined;
  /** Refused unless empty. */
  headers?: Record<string, string> | undefined;
  /** Refused unless empty. */
  apiHeaders?: Record<string, string> | undefined;
  /** Refused: set the proxy where the runtime looks for it (Node: `NODE_USE_ENV_PROXY=1` and `HTTPS_PROXY`). */
  proxy?: string | undefined;
}

/** E2B's other name for ConnectionOpts. */
export type ConnectionConfigOpts = ConnectionOpts;
/** Options of the static methods. */
export type SandboxApiOpts = ConnectionOpts;
/** Of a user in the sandbox. */
export type Username = string;

/** What a function that lists addresses is given. */
export interface SandboxNetworkSelectorContext {
  allTraffic: typeof ALL_TRAFFIC;
  /** Always empty: there are no rules here. */
  rules: Map<string, never>;
}

/** Names, addresses and CIDRs, or a function that lists them. */
export type SandboxNetworkSelector = string[] | ((context: SandboxNetworkSelectorContext) => string[]);

/** What a sandbox may reach. */
export interface SandboxNetworkOpts {
  /** Names and CIDRs. When given, nothing else is allowed. */
  allowOut?: SandboxNetworkSelector | undefined;
  /** `[ALL_TRAFFIC]` or nothing: rules here say what is allowed, never what is not. */
  denyOut?: SandboxNetworkSelector | undefined;
  /** Ignored: a preview's URL always carries a token. */
  allowPublicTraffic?: boolean | undefined;
  /** Refused unless empty. */
  rules?: object | undefined;
  /** Refused. */
  egressProxy?: object | undefined;
  /** Refused. */
  maskRequestHost?: string | undefined;
  /** Refused unless empty. */
  httpsPorts?: number[] | undefined;
}

/** What happens at the time-out: `kill`; `pause` is refused. */
export type SandboxOnTimeout = "pause" | "kill" | { action: "pause"; keepMemory?: boolean | undefined } | { action: "kill" };

/** What happens at the time-out, in the form that `create` takes. */
export interface SandboxLifecycle {
  /** `kill`; pausing at the time-out is refused. */
  onTimeout: SandboxOnTimeout;
  /** Refused when true. */
  autoResume?: boolean | undefined;
}

/** Options of `create`. */
export interface SandboxOpts extends ConnectionOpts {
  /** Counts where `create` is given no template of its own. */
  template?: string | undefined;
  metadata?: Record<string, string> | undefined;
  envs?: Record<string, string> | undefined;
  /** Default: 300,000. Whole seconds, rounded up; at most a day. */
  timeoutMs?: number | undefined;
  /** Ignored: every sandbox is reached through the server, with the server's key. */
  secure?: boolean | undefined;
  /** Default: true, as in E2B; public addresses only. */
  allowInternetAccess?: boolean | undefined;
  network?: SandboxNetworkOpts | undefined;
  lifecycle?: SandboxLifecycle | undefined;
  /** Refused. */
  mcp?: object | undefined;
  /** Refused unless it has no tokens. */
  iam?: object | undefined;
  /** Refused unless empty. */
  volumeMounts?: object | undefined;
}

/** Options of `connect`. */
export type SandboxConnectOpts = ConnectionOpts & {
  /** Default: 300,000. Never shortens what the sandbox has left. */
  timeoutMs?: number | undefined;
  /** `restore`; `reboot` is refused. */
  onResume?: SandboxOnResume | undefined;
};

/** How a paused sandbox comes back; `reboot` is refused. */
export type SandboxOnResume = "restore" | "reboot";

/** Options of `pause`. */
export interface SandboxPauseOpts extends SandboxApiOpts {
  /** Refused when false: memory is always kept. */
  keepMemory?: boolean | undefined;
}

/** Options of `fork`. */
export interface SandboxForkOpts extends ConnectionOpts {
  /** Default: 1. */
  count?: number | undefined;
  /** Of the children. Default: 300,000. */
  timeoutMs?: number | undefined;
}

/** Every address, for `denyOut` and `allowOut`. */
export const ALL_TRAFFIC = "0.0.0.0/0";
export const sandboxTimeoutMsDefault = 300_000;

/** E2B's own service: a program that still names it would not reach Mitos. */
const e2bDomains = ["e2b.app", "e2b.dev", "e2b.pro", "e2b-staging.dev"];

/** @throws InvalidArgumentError for what cannot be honoured */
export function connectionOf(opts: ConnectionOpts): Connection {
  refuse("proxy", opts.proxy !== undefined, "set the proxy where the runtime looks for it (Node: NODE_USE_ENV_PROXY=1 and HTTPS_PROXY)");
  for (const name of ["headers", "apiHeaders"] as const) {
    refuse(name, hasEntries(opts[name]), "let a proxy in front of the server add them");
  }
  return { apiKey: opts.apiKey, baseUrl: opts.apiUrl ? requireOtherHost(toBaseUrl(opts.apiUrl)) : baseUrlOfDomain(opts.domain) };
}

function baseUrlOfDomain(domain: string | undefined): string | undefined {
  if (!domain) return undefined;
  if (domain.includes("://")) return requireOtherHost(toBaseUrl(domain));
  const { hostname } = new URL(`http://${domain}`);
  const isLoopback = hostname === "localhost" || hostname === "[::1]" || hostname.startsWith("127.");
  return requireOtherHost(`${isLoopback ? "http" : "https"}://${domain}`);
}

function requireOtherHost(url: string): string {
  const { hostname } = new URL(url);
  const isE2B = e2bDomains.some((domain) => hostname === domain || hostname.endsWith(`.${domain}`));
  refuse(`the host ${hostname}`, isE2B, "name the Mitos server, or nothing for MITOS_BASE_URL or the local one");
  return url;
}

/** Names that E2B's sandboxes are usually made of. */
const templateAliases = new Map([
  ["code-interpreter", "python"],
  ["code-interpreter-beta", "python"],
  ["code-interpreter-v1", "python"],
]);
/** What the server makes when it does not have it. Another name must have been made before, as in E2B. */
const madeOnDemand = new Set(["python", "node", "base"]);

export function templateOf(name: string | undefined): { template: string; onDemand: boolean } {
  const template = templateAliases.get(name ?? "") ?? (name || "python");
  return { template, onDemand: madeOnDemand.has(template) || isImageReference(template) };
}

/** @throws InvalidArgumentError for what cannot be honoured */
export function requireHonoured({ mcp, iam, volumeMounts, lifecycle, network }: SandboxOpts): void {
  refuse("mcp", mcp !== undefined, "run the MCP server on your side, or as a command in the sandbox");
  refuse("iam", iam !== undefined && hasEntries((iam as { tokens?: object }).tokens), "pass a token in envs");
  refuse("volumeMounts", hasEntries(volumeMounts), "write the files with files.write, or keep the sandbox paused");
  const onTimeout = typeof lifecycle?.onTimeout === "object" ? lifecycle.onTimeout.action : lifecycle?.onTimeout;
  refuse("lifecycle.onTimeout: pause", onTimeout === "pause", "call pause before the time-out, or give it a longer one");
  if (onTimeout !== undefined && onTimeout !== "pause" && onTimeout !== "kill") {
    throw new InvalidArgumentError(`lifecycle.onTimeout must be "kill", not ${JSON.stringify(onTimeout)}`);
  }
  refuse("lifecycle.autoResume", lifecycle?.autoResume === true, "call Sandbox.connect, which resumes");
  refuse("network.rules", hasEntries(network?.rules), "let the program in the sandbox add the headers");
  refuse("network.egressProxy", network?.egressProxy !== undefined, "set a proxy inside the sandbox, and allow its address in allowOut");
  refuse("network.maskRequestHost", network?.maskRequestHost !== undefined, "read X-Forwarded-Host in the program");
  refuse("network.httpsPorts", hasEntries(network?.httpsPorts), "serve plain HTTP inside the sandbox");
}

/** @throws InvalidArgumentError for a list of what is denied */
export function networkOf({ allowInternetAccess = true, network = {} }: Pick<SandboxOpts, "allowInternetAccess" | "network">): Network {
  const allowed = network.allowOut === undefined ? undefined : select(network.allowOut);
  const denied = network.denyOut === undefined ? [] : select(network.denyOut);
  const deniesAll = denied.includes(ALL_TRAFFIC);
  refuse("network.denyOut with single addresses", denied.length > 0 && !deniesAll, "deny all traffic and list what is allowed in allowOut");
  if (allowed === undefined || allowed.includes(ALL_TRAFFIC)) return { egress: allowInternetAccess && !deniesAll ? "allow" : "deny" };
  const isAddress = (text: string) => /^[\d.]+(\/\d+)?$/.test(text) || text.includes("::") || /^[\da-f:]+\/\d+$/i.test(text);
  return {
    egress: "deny",
    allowDomains: allowed.filter((text) => !isAddress(text)),
    allowCidrs: allowed.filter(isAddress).map((text) => (text.includes("/") ? text : `${text}/${text.includes(":") ? 128 : 32}`)),
  };
}

function select(selector: SandboxNetworkSelector): string[] {
  return typeof selector === "function" ? selector({ allTraffic: ALL_TRAFFIC, rules: new Map<string, never>() }) : selector;
}

/** E2B's milliseconds in the server's whole seconds. @throws InvalidArgumentError unless it is a number of at least 0 */
export function toSeconds(timeoutMs: number, name = "timeoutMs"): number {
  if (Number.isFinite(timeoutMs) && timeoutMs >= 0) return Math.ceil(timeoutMs / 1000);
  throw new InvalidArgumentError(`${name} must be a number of milliseconds, not ${timeoutMs}`);
}

export function refuse(what: string, given: boolean, instead: string): void {
  if (given) throw new InvalidArgumentError(`${what} cannot be honoured here: ${instead}`);
}

function hasEntries(value: object | undefined): boolean {
  if (value === undefined || value === null) return false;
  return value instanceof Map ? value.size > 0 : Object.keys(value).length > 0;
}
