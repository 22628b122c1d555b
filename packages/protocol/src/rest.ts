/** The JSON shapes of the `/v1` answers. The server writes them, the SDK reads them: a name that changes here breaks both at once. */

export interface ResourcesJson {
  vcpu_count: number;
  mem_size_mib: number;
  processes_max: number;
}

/** As templates echo it: the keys of the request; empty members are left out. */
export interface TemplateNetworkJson {
  block?: boolean;
  egress: "deny" | "allow";
  allow_domains?: readonly string[];
  allow_cidrs?: readonly string[];
  inbound: "deny" | "allow";
  inbound_cidrs?: readonly string[];
}

/** As sandboxes echo it: the keys of the Kubernetes object, which published clients expect there. */
export interface SandboxNetworkJson {
  egress: "deny" | "allow";
  allow?: readonly string[];
  blockNetwork?: boolean;
  allowCidrs?: readonly string[];
  inbound: "deny" | "allow";
  inboundCidrs?: readonly string[];
}

export interface TemplateJson {
  id: string;
  ready: boolean;
  /** RFC 3339. */
  created_at: string;
  creation_time_ms: number;
  network: TemplateNetworkJson;
  resources: ResourcesJson;
}

/** A row of a list, and the answer to a create or a fork. */
export interface SandboxJson {
  id: string;
  /** In the answer to a create: the handle `live:<id>`. */
  template_id: string;
  endpoint: string;
  created_at: string;
  fork_time_ms: number;
  network: SandboxNetworkJson;
  state: string;
  isolation: string;
  /** Null when it was made from a template. */
  parent_id: string | null;
  /** Why it failed; only there when it has. */
  end_reason?: string | null;
}

export interface SandboxDetailJson extends SandboxJson {
  /** Null = lives until it is terminated. */
  deadline_unix: number | null;
  idle_timeout_seconds: number | null;
  end_reason: string | null;
  children: readonly string[];
  metadata: Readonly<Record<string, string>>;
  resources: ResourcesJson;
}

export interface SandboxTreeJson extends SandboxJson {
  children: readonly SandboxTreeJson[];
}

/** The answer to a live fork that asked for `count` or `ids`. */
export interface ForkJson {
  children: readonly SandboxJson[];
  paused_ms: number;
  snapshot_bytes: number;
}

/** A shape as it arrives from elsewhere: the names are known, nothing else is. */
export type Unchecked<Shape> = { readonly [Name in keyof Shape]?: unknown };
