import { isId } from "@mitos/protocol";
import { AgentRunError, isObject, parseJson } from "./errors.ts";

/** Where requests go and with which key. An empty string counts as not given. */
export interface Connection {
  apiKey?: string | undefined;
  baseUrl?: string | undefined;
}

/** The server of `mitos serve` on this machine. */
export const DEFAULT_BASE_URL = "http://127.0.0.1:8080";
/** Where a key is for that no self-hosted server has made. */
export const HOSTED_BASE_URL = "https://mitos.run";
/** How every key of a self-hosted server begins: it never travels to a host that nobody named. */
const selfHostedKeyPrefix = "mitos_sk_";

/** The address and the key that hold for these arguments. @throws missing_base_url, invalid_base_url */
export function resolveConnection({ baseUrl, apiKey }: Connection = {}): { baseUrl: string; token: string | undefined } {
  const token = resolveToken(apiKey);
  return { baseUrl: resolveBaseUrl(baseUrl, token), token };
}

/**
 * Argument, then `MITOS_BASE_URL`, then the in-cluster gateway, then the hosted service for a key that is one of its own, else the local
 * server. Without trailing slashes.
 *
 * @throws missing_base_url in a browser, where none of these but the argument exists; invalid_base_url
 */
export function resolveBaseUrl(baseUrl?: string, token?: string): string {
  const named = baseUrl || environment("MITOS_BASE_URL") || gatewayUrl();
  if (named) return toBaseUrl(named);
  if (!hasEnvironment()) throw missingBaseUrl();
  return token && !token.startsWith(selfHostedKeyPrefix) ? HOSTED_BASE_URL : DEFAULT_BASE_URL;
}

/** Argument, then `MITOS_API_KEY`, then the token of the credentials file, then none. */
export function resolveToken(apiKey?: string): string | undefined {
  return apiKey || environment("MITOS_API_KEY") || tokenOfCredentialsFile();
}

/** `host:port` becomes `http://host:port`; a value with a scheme stays, without trailing slashes. @throws invalid_base_url */
export function toBaseUrl(endpoint: string): string {
  const url = (/^[a-z][a-z0-9+.-]*:\/\//i.test(endpoint) ? endpoint : `http://${endpoint}`).replace(/\/+$/, "");
  const wrong = whatIsWrongWith(url);
  if (!wrong) return url;
  // Without the value itself: it may hold a password.
  throw new AgentRunError("the base URL is not valid", {
    code: "invalid_base_url",
    cause: wrong,
    remediation: "Use http:// or https://, a host, and a port or path if needed, for example http://127.0.0.1:8080.",
  });
}

function whatIsWrongWith(url: string): string | undefined {
  if (!/^https?:\/\/[^/]/i.test(url) || !URL.canParse(url)) return "it is not an http or https URL";
  const { username, password, search, hash } = new URL(url);
  if (username || password) return "it holds a user name or a password, which no request may carry; a key belongs into apiKey";
  if (search || hash) return "it has a query or a fragment";
  return undefined;
}

/** Whether the server would accept it: 1 to 64 characters, a letter or digit, then letters, digits, `_` and `-`. */
export function validSandboxId(id: unknown): id is string {
  return isId(id);
}

/** @throws invalid_sandbox_id before the id becomes part of a path */
export function requireSandboxId(id: string): void {
  if (validSandboxId(id)) return;
  throw new AgentRunError("the sandbox id is not valid", {
    code: "invalid_sandbox_id",
    cause: `${JSON.stringify(String(id).slice(0, 80))} does not match ^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`,
    remediation: "Use 1 to 64 letters, digits, `_` and `-`, beginning with a letter or digit.",
  });
}

/**
 * The key as a header can carry it. White space around it, as files end with, is not part of it.
 *
 * @throws invalid_api_key, which does not show it
 */
export function toToken(apiKey: string | undefined): string | undefined {
  const token = apiKey?.trim();
  if (!token) return undefined;
  if (/^[\x21-\x7e]+$/.test(token)) return token;
  throw new AgentRunError("the API key is not valid", {
    code: "invalid_api_key",
    cause: "it has white space, control or non-ASCII characters in it, which no Authorization header can carry",
    remediation: "Copy the key again, as one line and without quotes or placeholders, into apiKey or MITOS_API_KEY.",
  });
}

/** A copy for an object that programs can look at: its key is used and never shown, neither as JSON nor by `console.log`. */
export function withHiddenKey<T extends Connection>(connection: T): T {
  return Object.defineProperty({ ...connection }, "apiKey", { value: connection.apiKey, enumerable: false });
}

/** 32 lower-case hexadecimal digits. */
export function newIdempotencyKey(): string {
  return crypto.randomUUID().replaceAll("-", "");
}

function missingBaseUrl(): AgentRunError {
  return new AgentRunError("no base URL was given", {
    code: "missing_base_url",
    cause: "this runtime has no environment variables, and a page's server cannot be guessed",
    remediation: "Pass baseUrl: the address of the Mitos server, or location.origin where the page's own host forwards to it.",
  });
}

function gatewayUrl(): string | undefined {
  const host = environment("MITOS_GATEWAY_SERVICE_HOST");
  if (!host) return undefined;
  return `http://${host}:${environment("MITOS_GATEWAY_SERVICE_PORT") || "80"}`;
}

interface NodeProcess {
  env?: Record<string, string | undefined>;
  versions?: { node?: string };
  getBuiltinModule?: (name: string) => unknown;
}

function nodeProcess(): NodeProcess | undefined {
  return (globalThis as { process?: NodeProcess }).process;
}

/** Node, Deno and Bun have one; what a bundler puts in its place in a browser names no version. */
export function hasEnvironment(): boolean {
  return typeof nodeProcess()?.versions?.node === "string";
}

function environment(name: string): string | undefined {
  try {
    return nodeProcess()?.env?.[name];
  } catch {
    return undefined; // Deno without permission for this variable
  }
}

/** Whatever is wrong with the file, the answer is "no token": it is a convenience, not a requirement. */
function tokenOfCredentialsFile(): string | undefined {
  const node = nodeProcess();
  if (!hasEnvironment() || !node?.getBuiltinModule || "Deno" in globalThis) return undefined;
  try {
    const fs = node.getBuiltinModule("node:fs") as { readFileSync(path: string, encoding: "utf8"): string };
    const os = node.getBuiltinModule("node:os") as { homedir(): string };
    const dir = environment("MITOS_CONFIG_DIR") || `${os.homedir()}/.config/mitos`;
    const file = parseJson(fs.readFileSync(`${dir}/credentials.json`, "utf8"));
    return isObject(file) && typeof file.token === "string" && file.token ? file.token : undefined;
  } catch {
    return undefined;
  }
}
