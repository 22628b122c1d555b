import { isId } from "@mitos/protocol";
import { AgentRunError, isObject, parseJson } from "./errors.ts";

/** Where requests go and with which key. An empty string counts as not given. */
export interface Connection {
  apiKey?: string | undefined;
  baseUrl?: string | undefined;
}

/** The server of `mitos serve` on this machine: a key never travels to a host that nobody named. */
export const DEFAULT_BASE_URL = "http://127.0.0.1:8080";

/** Argument, then `MITOS_BASE_URL`, then the in-cluster gateway, then the local server. Without trailing slashes. */
export function resolveBaseUrl(baseUrl?: string): string {
  return toBaseUrl(baseUrl || environment("MITOS_BASE_URL") || gatewayUrl() || DEFAULT_BASE_URL);
}

/** Argument, then `MITOS_API_KEY`, then the token of the credentials file, then none. */
export function resolveToken(apiKey?: string): string | undefined {
  return apiKey || environment("MITOS_API_KEY") || tokenOfCredentialsFile();
}

/** `host:port` becomes `http://host:port`; a value with a scheme stays, without trailing slashes. */
export function toBaseUrl(endpoint: string): string {
  const url = /^[a-z][a-z0-9+.-]*:\/\//i.test(endpoint) ? endpoint : `http://${endpoint}`;
  return url.replace(/\/+$/, "");
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

/** A copy for an object that programs can look at: its key is used and never shown, neither as JSON nor by `console.log`. */
export function withHiddenKey<T extends Connection>(connection: T): T {
  return Object.defineProperty({ ...connection }, "apiKey", { value: connection.apiKey, enumerable: false });
}

/** 32 lower-case hexadecimal digits. */
export function newIdempotencyKey(): string {
  return crypto.randomUUID().replaceAll("-", "");
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
  if (!node?.versions?.node || !node.getBuiltinModule || "Deno" in globalThis) return undefined;
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
