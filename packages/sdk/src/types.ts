import type { PreviewJson, ResourcesJson, SandboxDetailJson, TemplateJson, Unchecked } from "@mitos/protocol";

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

/** A program that is started while the template is built, so that every sandbox wakes with it running. */
export interface Workload {
  command: readonly string[];
  env?: Readonly<Record<string, string>>;
  ready?: { port: number; path?: string; expect?: number; timeoutSeconds?: number };
}

/** A template as the server lists it. (`Template` describes one that is to be built.) */
export interface TemplateInfo {
  id: string;
  ready: boolean;
  createdAt: string;
  creationTimeMs: number;
}

/** What stands between programs and the host. `mock` runs nothing. */
export type Isolation = "microvm-kvm" | "microvm-tcg" | "gvisor" | "mock";

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

export function workloadToWire({ command, env, ready }: Workload): Record<string, unknown> {
  const { timeoutSeconds, ...rest } = ready ?? {};
  return {
    command,
    ...(env ? { env } : {}),
    ...(ready ? { ready: { ...rest, ...(timeoutSeconds === undefined ? {} : { timeout_seconds: timeoutSeconds }) } } : {}),
  };
}

export function templateFromWire(row: Unchecked<TemplateJson>): TemplateInfo {
  return {
    id: String(row.id ?? ""),
    ready: row.ready === true,
    createdAt: String(row.created_at ?? ""),
    creationTimeMs: Number(row.creation_time_ms ?? 0),
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
