import type { Connection } from "@mitos/sdk";
import type { Command } from "commander";
import { savedConfig } from "./config.ts";
import { CommandError, exitCodes, UsageError } from "./exit.ts";

/** What every command takes, before and after the verb. */
export const globalFlags = [
  {
    flags: "--server <url>",
    description:
      "address of the server (default: MITOS_BASE_URL, else the one of `mitos init`, else this machine's; https://mitos.run with a key of that service)",
  },
  { flags: "--api-key <key>", description: "key for the server (default: MITOS_API_KEY, else the saved one)" },
  { flags: "--pool <name>", description: "template or image that sandboxes are created from, such as python:3.12-slim (default: python)" },
  { flags: "-n, --namespace <name>", description: "accepted for scripts of clusters; a server has no namespaces" },
  { flags: "--kubeconfig <file>", description: "refused: this version talks to servers, not to clusters" },
] as const;

interface GlobalOptions {
  server?: string;
  apiKey?: string;
  pool?: string;
  kubeconfig?: string;
}

/**
 * Where the server is and which key it gets, as far as somebody said so; the rest is the SDK's to decide.
 *
 * @throws CommandError (exit code 2) where a cluster is meant
 */
export function connectionOf(command: Command): Connection {
  const { server, apiKey, kubeconfig } = globalOptions(command);
  const saved = savedConfig();
  const named = server || process.env.MITOS_BASE_URL;
  const baseUrl = named || saved?.endpoint;
  if (!baseUrl) refuseCluster(kubeconfig);
  // The saved key belongs to the saved server: it goes to no other.
  const savedKey = !named || sameServer(named, saved?.endpoint) ? saved?.api_key : undefined;
  return { baseUrl, apiKey: apiKey || process.env.MITOS_API_KEY || savedKey };
}

/** @throws UsageError */
export async function poolOf(command: Command): Promise<string> {
  const pool = globalOptions(command).pool || "python";
  const { isId, livePrefix } = await import("@mitos/protocol");
  // The handle of a running sandbox, which makes it a fork.
  return pool.startsWith(livePrefix) && isId(pool.slice(livePrefix.length)) ? pool : await templateName(pool);
}

/** @throws UsageError */
export async function templateName(text: string): Promise<string> {
  const { isTemplateId } = await import("@mitos/protocol");
  if (isTemplateId(text)) return text;
  throw new UsageError(
    `${JSON.stringify(text)} cannot be the name of a template`,
    "Give 1 to 64 letters, digits, '_' and '-' that begin with a letter or digit, or an image such as python:3.12-slim.",
  );
}

/** @throws UsageError */
export async function imageReference(text: string): Promise<string> {
  const { isImageReference } = await import("@mitos/protocol");
  if (isImageReference(text) || isImageReference(`${text}:latest`)) return text;
  throw new UsageError(
    `${JSON.stringify(text)} cannot be an image`,
    "Give a reference such as python:3.12-slim or registry.example/team/tool:1.",
  );
}

/** The innermost command on whose part of the line a flag stands wins. */
function globalOptions(command: Command): GlobalOptions {
  const own = command.opts<GlobalOptions>();
  if (!command.parent) return own;
  const outer = globalOptions(command.parent);
  return { ...outer, ...Object.fromEntries(Object.entries(own).filter(([, value]) => value !== undefined)) };
}

function sameServer(one: string, other: string | undefined): boolean {
  const bare = (url: string) => url.replace(/^http:\/\//, "").replace(/\/+$/, "");
  return other !== undefined && bare(one) === bare(other);
}

function refuseCluster(kubeconfig: string | undefined): void {
  const inCluster = Boolean(process.env.KUBERNETES_SERVICE_HOST) && !process.env.MITOS_GATEWAY_SERVICE_HOST;
  if (kubeconfig === undefined && !inCluster) return;
  const detail =
    kubeconfig === undefined
      ? "this runs inside a cluster (KUBERNETES_SERVICE_HOST), and neither a server nor a gateway (MITOS_GATEWAY_SERVICE_HOST) is named"
      : "--kubeconfig names a cluster";
  throw new CommandError(
    "this version does not talk to clusters",
    detail,
    "Start a server with `mitos serve` and name it with --server or MITOS_BASE_URL.",
    exitCodes.usage,
  );
}

/** One word is a line for the shell, several are a program and its arguments. */
export function toCommand(words: readonly string[]): string | readonly string[] {
  if (words.length === 0) throw new UsageError("the command is missing", "Name the program to run, for example: mitos run echo hello");
  return words.length === 1 ? words[0]! : words;
}

export function positiveInteger(flag: string): (text: string) => number {
  return wholeNumber(flag, 1);
}

/**
 * @param min - the least that is accepted
 * @param max - the most; default: any
 */
export function wholeNumber(flag: string, min: number, max = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\d+$/.test(text) && Number.isSafeInteger(value) && value >= min && value <= max) return value;
    const range = max === Number.MAX_SAFE_INTEGER ? `from ${min} on` : `from ${min} to ${max}`;
    throw new UsageError(`${flag} ${text} is not valid`, `Give a whole number ${range}.`);
  };
}

/** For sizes such as 512MiB, 1.5GiB, or a number of bytes. */
export function byteCount(flag: string): (text: string) => number {
  return (text) => {
    const [, count, unit = ""] = /^(\d+(?:\.\d+)?)(B|KiB|MiB|GiB|TiB)?$/.exec(text) ?? [];
    const bytes = Math.round(Number(count) * 1024 ** Math.max(0, ["B", "KiB", "MiB", "GiB", "TiB"].indexOf(unit)));
    if (Number.isSafeInteger(bytes)) return bytes;
    throw new UsageError(`${flag} ${text} is not valid`, "Give a size such as 512MiB or 20GiB.");
  };
}

/** For `--env NAME=value`, which may be given several times. */
export function environmentEntry(text: string, sofar: Readonly<Record<string, string>> = {}): Record<string, string> {
  return namedValue("--env", text, sofar);
}

export function buildArgument(text: string, sofar: Readonly<Record<string, string>> = {}): Record<string, string> {
  return namedValue("--build-arg", text, sofar);
}

function namedValue(flag: string, text: string, sofar: Readonly<Record<string, string>>): Record<string, string> {
  const match = /^([A-Za-z_][A-Za-z0-9_]*)=([\s\S]*)$/.exec(text);
  if (!match)
    throw new UsageError(`${flag} needs a name and a value`, "Give NAME=value; a name has letters, digits and `_`, and no digit first.");
  return { ...sofar, [match[1]!]: match[2]! };
}

const unitSeconds: Readonly<Record<string, number>> = { d: 86_400, h: 3600, m: 60, s: 1 };

/** Go's durations and days, in whole seconds. */
export function duration(flag: string): (text: string) => number {
  return (text) => {
    if (text === "0") return 0;
    const parts = [...text.matchAll(/(\d+)([dhms])/g)];
    if (parts.length === 0 || parts.map(([part]) => part).join("") !== text) {
      throw new UsageError(`${flag} ${text} is not valid`, "Give days, hours, minutes and seconds, such as 7d, 720h or 1h30m, or 0.");
    }
    return parts.reduce((sum, [, count, unit]) => sum + Number(count) * unitSeconds[unit!]!, 0);
  };
}
