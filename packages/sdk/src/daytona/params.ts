/**
 * Daytona's parameters of a new sandbox as ours. What we cannot honour is refused with what to use instead: a parameter that silently did
 * nothing would show late.
 */

import { validSandboxId } from "../config.ts";
import type { CreateOptions } from "../create.ts";
import type { Network } from "../types.ts";
import { invalidArgument } from "./errors.ts";
import { CodeLanguage } from "./process.ts";

/** What one sandbox may use. */
export interface Resources {
  /** Cores. */
  cpu?: number;
  /** GiB. */
  memory?: number;
}

/** A new sandbox, whatever it is made from. */
export type CreateSandboxBaseParams = {
  /** Becomes the sandbox's id. Default: a new one. */
  name?: string;
  /** `python` (default), `javascript` or `typescript`. */
  language?: CodeLanguage | string;
  envVars?: Record<string, string>;
  /** Kept as the sandbox's metadata. */
  labels?: Record<string, string>;
  /** Its previews need the token that is in their URL, always. */
  public?: false;
  /** Minutes without activity after which an ephemeral sandbox ends; others are never stopped by themselves: 0. */
  autoStopInterval?: number;
  /** Sandboxes are not paused by themselves. */
  autoPauseInterval?: 0;
  /** Nothing is archived: a stopped sandbox stays on the server's disk. */
  autoArchiveInterval?: number;
  /** 0 is the same as `ephemeral`; below 0, and not given: it stays until it is deleted. */
  autoDeleteInterval?: number;
  /** Minutes from now, 0 for no limit (default). */
  ttlMinutes?: number;
  networkBlockAll?: boolean;
  /** Comma-separated CIDRs. */
  networkAllowList?: string;
  /** Comma-separated names. */
  domainAllowList?: string;
  /** It ends when it is stopped. */
  ephemeral?: boolean;
};

/** A new sandbox from a snapshot, which is a template here. */
export type CreateSandboxFromSnapshotParams = CreateSandboxBaseParams & {
  /** A template of ours. Default: by the language. */
  snapshot?: string;
};

/** A new sandbox from an image, which is a template here, with resources of its own. */
export type CreateSandboxFromImageParams = CreateSandboxBaseParams & {
  /** A template of ours. */
  image: string;
  resources?: Resources;
};

/** What `create` takes. */
export type CreateSandboxParams = CreateSandboxFromSnapshotParams | CreateSandboxFromImageParams;

/** Where Daytona's SDK keeps a sandbox's language, too. */
export const languageLabel = "code-toolbox-language";
/** On sandboxes that end when they are stopped; no label of the user. */
export const ephemeralLabel = "mitos-daytona-ephemeral";

const templates: Readonly<Record<CodeLanguage, string>> = { python: "python", javascript: "node", typescript: "node" };

/** @throws DaytonaInvalidArgumentError for what is wrong, and for what has no equivalent */
export function toCreateOptions(params: CreateSandboxParams = {}): CreateOptions {
  refuseOthers(params, known, "create");
  const { name, envVars, labels, ttlMinutes = 0, autoStopInterval = 0, autoDeleteInterval = -1 } = params;
  const language = toLanguage(params.language);
  if (name !== undefined && !validSandboxId(name)) {
    throw invalidArgument(
      `${JSON.stringify(name)} is not a name`,
      "Use 1 to 64 letters, digits, `_` and `-`, beginning with a letter or digit.",
    );
  }
  for (const [key, value] of Object.entries({ ttlMinutes, autoStopInterval })) {
    if (!Number.isInteger(value) || value < 0) throw invalidArgument(`${key} is ${value}`, "Pass a whole number of minutes, 0 or more.");
  }
  const ephemeral = params.ephemeral === true || autoDeleteInterval === 0;
  if (autoDeleteInterval > 0) throw unsupported("autoDeleteInterval", "Use ephemeral: true, ttlMinutes, or delete the sandbox yourself.");
  if (autoStopInterval > 0 && !ephemeral)
    throw unsupported("autoStopInterval", "Use ttlMinutes, ephemeral: true, or call stop() yourself.");
  if (params.autoPauseInterval) throw unsupported("autoPauseInterval", "Call stop() yourself: it saves the running state.");
  if (params.public) throw unsupported("public", "Hand out the URL of getPreviewLink: the token in it opens the port.");
  return {
    template: templateOf(params) ?? templates[language],
    id: name,
    env: envVars,
    metadata: { ...labels, [languageLabel]: language, ...(ephemeral ? { [ephemeralLabel]: "true" } : {}) },
    resources: resourcesOf(params),
    network: networkOf(params),
    ...(ttlMinutes > 0 ? { timeoutSeconds: ttlMinutes * 60 } : {}),
    ...(autoStopInterval > 0 ? { idleTimeoutSeconds: autoStopInterval * 60 } : {}),
  };
}

export function toLanguage(language: string | undefined): CodeLanguage {
  const languages: readonly string[] = Object.values(CodeLanguage);
  if (language === undefined) return CodeLanguage.PYTHON;
  if (languages.includes(language)) return language as CodeLanguage;
  throw invalidArgument(`${JSON.stringify(language)} is not a language`, `Use one of ${languages.join(", ")}.`);
}

/** @throws DaytonaInvalidArgumentError for the first key that has a value and is not one of ours */
export function refuseOthers(options: object, keys: readonly string[], what: string): void {
  for (const [key, value] of Object.entries(options)) {
    if (keys.includes(key) || value === undefined || value === null || value === false) continue;
    throw unsupported(key, instead[key] ?? `Leave it out: ${what} takes ${keys.join(", ")}.`);
  }
}

const known = [
  ...["name", "language", "envVars", "labels", "snapshot", "image", "resources"],
  ...["public", "autoStopInterval", "autoPauseInterval", "autoArchiveInterval", "autoDeleteInterval", "ttlMinutes", "ephemeral"],
  ...["networkBlockAll", "networkAllowList", "domainAllowList"],
];

/** What to use in place of what we have no equivalent for. */
const instead: Readonly<Record<string, string>> = {
  volumes: "Upload what the sandbox needs, or fork a sandbox that has it.",
  secrets: "Use create({ secrets }) of @mitos/sdk, which takes the values.",
  user: "Pass the user to sandbox.sandbox.exec for each program.",
  outboundProxyUrl: "Use domainAllowList: allowed traffic leaves through the server's own gate.",
  gpu: "Sandboxes have no GPU.",
  gpuType: "Sandboxes have no GPU.",
  disk: "Files of a sandbox lie in its memory: raise memory.",
  jwtToken: "Use an apiKey of the server.",
  organizationId: "The key says whose sandboxes they are.",
  requestTimeoutMs: "Pass a time-out to the calls that should have one.",
};

function unsupported(key: string, remedy: string) {
  return invalidArgument(`\`${key}\` is not supported`, remedy);
}

function templateOf(params: CreateSandboxParams): string | undefined {
  const image = "image" in params ? params.image : undefined;
  if (image !== undefined && typeof image !== "string") {
    throw invalidArgument("images that are built from a description are not supported", "Pass the name of a template as `image`.");
  }
  return image || ("snapshot" in params ? params.snapshot : undefined) || undefined;
}

function resourcesOf(params: CreateSandboxParams): CreateOptions["resources"] {
  const resources = "resources" in params ? params.resources : undefined;
  if (!resources) return undefined;
  refuseOthers(resources, ["cpu", "memory"], "resources");
  const { cpu, memory } = resources;
  return { vcpuCount: cpu, memSizeMiB: memory === undefined ? undefined : Math.round(memory * 1024) };
}

function networkOf({ networkBlockAll, networkAllowList, domainAllowList }: CreateSandboxBaseParams): Network | undefined {
  if (networkBlockAll) return { block: true };
  if (!networkAllowList && !domainAllowList) return undefined;
  return { allowCidrs: parts(networkAllowList), allowDomains: parts(domainAllowList) };
}

function parts(list = ""): string[] {
  return list
    .split(",")
    .map((part) => part.trim())
    .filter(Boolean);
}
