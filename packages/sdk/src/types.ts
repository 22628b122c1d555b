import type { PreviewJson, ResourcesJson, SandboxDetailJson, TemplateJson, Unchecked } from "@mitos/protocol";
import { isObject } from "./errors.ts";

/** What a sandbox may reach and be reached by. Default: nothing. */
export interface Network {
  block?: boolean;
  egress?: "deny" | "allow";
  /** `name:port`, `*.domain:port` or `address:port`; without a port, 80 and 443. */
  allowDomains?: readonly string[];
  /** Addresses for every port, and the private ones that allowed names may resolve to. */
  allowCidrs?: readonly string[];
  inbound?: "deny" | "allow";
  inboundCidrs?: readonly string[];
}

/** Limits of one sandbox. What is not given is the template's: 1 processor, 512 MiB and 1,024 processes unless it says otherwise. */
export interface Resources {
  vcpuCount?: number | undefined;
  memSizeMiB?: number | undefined;
  /** Processes and threads; never more than one for each MiB of memory. */
  processesMax?: number | undefined;
}

/** When a template's program is ready to be saved: a port answers a GET request, a port is listened on, or a line for the shell ends with 0. */
export type ReadyCheck = {
  /** Default: 120. */
  timeoutSeconds?: number;
} & (
  | {
      kind?: "http";
      port: number;
      /** Default: `/`. */
      path?: string;
      /** The status. Default: 200. */
      expect?: number;
    }
  | { kind: "port"; port: number }
  | { kind: "command"; command: string }
);

/** A program that is started while the template is built, so that every sandbox wakes with it running. */
export interface Workload {
  /** May be left out with `entrypoint`. */
  command?: readonly string[];
  /** What the image itself says (its ENTRYPOINT and CMD), in place of a command. */
  entrypoint?: boolean;
  env?: Readonly<Record<string, string>>;
  ready?: ReadyCheck;
}

/** What a template's files are made of. */
export interface TemplateSource {
  /** `host`: the server's own root (on gVisor the host's files, on microVMs a Debian). `image`: those of an image. `build`: those of an image, or of another template, and of build steps. */
  kind: "host" | "image" | "build";
  /** The image in full, as in `docker.io/library/python:3.12-slim`; empty for the server's own root. */
  reference: string;
  /** Of the image's manifest; null for the server's own root. */
  digest: string | null;
  layers: number;
  /** Of all its files, also of those that it shares with other templates. 0 for the own root. */
  rootBytes: number;
}

/** A template as the server lists it. (`Template` describes one that is to be built.) */
export interface TemplateInfo {
  id: string;
  ready: boolean;
  createdAt: string;
  creationTimeMs: number;
  /** What it is made of. Undefined where an older server does not tell. */
  source?: TemplateSource | undefined;
  /** Of its saved machine. */
  snapshotBytes?: number | undefined;
  /** What the user should know, such as that the name was not known and the server's own root was taken. */
  warnings?: readonly string[] | undefined;
}

/** What stands between programs and the host. `mock` runs nothing. */
export type Isolation = "microvm-kvm" | "microvm-tcg" | "microvm-firecracker" | "gvisor" | "mock";

/** What the server says of itself. */
export interface Health {
  status: string;
  /** True on a server that runs nothing: its sandboxes have a life cycle only. */
  mock: boolean;
  templates: number;
  sandboxes: number;
  isolation?: string;
  version?: string;
}

/** A sandbox as the server lists it. What an older server does not tell is undefined. */
export interface ServerSandbox {
  id: string;
  templateId: string;
  endpoint: string;
  createdAt: string;
  forkTimeMs: number;
  state?: string | undefined;
  /** Why it failed or ended. */
  endReason?: string | null | undefined;
  isolation?: string | undefined;
  /** Null when it was made from a template. */
  parentId?: string | null | undefined;
  children?: readonly string[] | undefined;
  /** When it ends by itself; null = never. */
  deadlineUnix?: number | null | undefined;
  metadata?: Readonly<Record<string, string>> | undefined;
  resources?: Resources | undefined;
  /** How many children it may make of itself from inside, and has made. */
  forkBudget?: number | undefined;
  forksUsed?: number | undefined;
}

/** A sandbox with what was forked from it, and so on. */
export interface SandboxTree extends Omit<ServerSandbox, "children"> {
  children: SandboxTree[];
}

/** `mitos_` names of the wire: only what differs from its default is sent. */
export function networkToWire(network: Network): Record<string, unknown> {
  const wire: Record<string, unknown> = {};
  if (network.block) wire.block = true;
  if (network.egress && network.egress !== "deny") wire.egress = network.egress;
  if (network.allowDomains?.length) wire.allow_domains = network.allowDomains;
  if (network.allowCidrs?.length) wire.allow_cidrs = network.allowCidrs;
  if (network.inbound && network.inbound !== "deny") wire.inbound = network.inbound;
  if (network.inboundCidrs?.length) wire.inbound_cidrs = network.inboundCidrs;
  return wire;
}

export function resourcesToWire({ vcpuCount, memSizeMiB, processesMax }: Resources): Record<string, unknown> {
  return {
    ...(vcpuCount === undefined ? {} : { vcpu_count: vcpuCount }),
    ...(memSizeMiB === undefined ? {} : { mem_size_mib: memSizeMiB }),
    ...(processesMax === undefined ? {} : { processes_max: processesMax }),
  };
}

export function workloadToWire({ command, entrypoint, env, ready }: Workload): Record<string, unknown> {
  const { timeoutSeconds, ...rest } = ready ?? {};
  return {
    ...(command ? { command } : {}),
    ...(entrypoint ? { entrypoint: true } : {}),
    ...(env ? { env } : {}),
    ...(ready ? { ready: { ...rest, ...(timeoutSeconds === undefined ? {} : { timeout_seconds: timeoutSeconds }) } } : {}),
  };
}

export function templateFromWire(row: Unchecked<TemplateJson>): TemplateInfo {
  const { source, snapshot_bytes: snapshotBytes, warnings } = row as Readonly<Record<string, unknown>>;
  return {
    id: String(row.id ?? ""),
    ready: row.ready === true,
    createdAt: String(row.created_at ?? ""),
    creationTimeMs: Number(row.creation_time_ms ?? 0),
    ...(isObject(source) ? { source: templateSourceFromWire(source) } : {}),
    ...(snapshotBytes === undefined ? {} : { snapshotBytes: Number(snapshotBytes) }),
    ...(Array.isArray(warnings) ? { warnings: warnings.map(String) } : {}),
  };
}

function templateSourceFromWire({ kind, reference, digest, layers, root_bytes: rootBytes }: Record<string, unknown>): TemplateSource {
  return {
    kind: kind === "image" || kind === "build" ? kind : "host",
    reference: String(reference ?? ""),
    digest: typeof digest === "string" ? digest : null,
    layers: Number(layers ?? 0),
    rootBytes: Number(rootBytes ?? 0),
  };
}

export function sandboxFromWire(row: Unchecked<SandboxDetailJson>): ServerSandbox {
  const resources = row.resources as Partial<ResourcesJson> | undefined;
  return {
    id: String(row.id ?? ""),
    templateId: String(row.template_id ?? ""),
    endpoint: String(row.endpoint ?? ""),
    createdAt: String(row.created_at ?? ""),
    forkTimeMs: Number(row.fork_time_ms ?? 0),
    ...(typeof row.state === "string" ? { state: row.state } : {}),
    ...(row.end_reason === undefined ? {} : { endReason: row.end_reason as string | null }),
    ...(typeof row.isolation === "string" ? { isolation: row.isolation } : {}),
    ...(row.parent_id === undefined ? {} : { parentId: row.parent_id as string | null }),
    ...(Array.isArray(row.children) ? { children: row.children.filter((id) => typeof id === "string") } : {}),
    ...(row.deadline_unix === undefined ? {} : { deadlineUnix: row.deadline_unix as number | null }),
    ...(row.metadata === undefined ? {} : { metadata: row.metadata as Record<string, string> }),
    ...(row.fork_budget === undefined ? {} : { forkBudget: Number(row.fork_budget), forksUsed: Number(row.forks_used) }),
    ...(resources ? { resources: { vcpuCount: resources.vcpu_count, memSizeMiB: resources.mem_size_mib } } : {}),
  };
}

/** How a port of a sandbox is reached from outside. Every URL has a token in it that opens this port until `expiresUnix`. */
export interface Preview {
  /** For programs; a browser that opens it is led to `browserUrl`. */
  url: string;
  /** An origin of its own, for browsers; undefined where the server has no name for one. */
  browserUrl?: string | undefined;
  expiresUnix: number;
}

export function previewFromWire(wire: Unchecked<PreviewJson>): Preview {
  const browserUrl = typeof wire.browser_url === "string" ? wire.browser_url : undefined;
  return { url: String(wire.url), browserUrl, expiresUnix: Number(wire.expires_unix) };
}
