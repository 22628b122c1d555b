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

/** One interpreter of a sandbox, with a state of its own. */
export interface ContextJson {
  /** Of a default one: its language. */
  id: string;
  language: string;
  /** Where it starts. */
  cwd: string;
  /** Made by the first run of its language without a context. */
  default: boolean;
}

/** What is known of a key; the key itself is shown once, when it is made. */
export interface KeyJson {
  id: string;
  name: string;
  /** The first characters of the key. */
  prefix: string;
  owner: string;
  organisation: string;
  scopes: readonly string[];
  status: "active" | "revoked" | "expired";
  created_at: string;
  expires_at: string | null;
  last_used_at: string | null;
  limits: { max_sandboxes: number; max_memory_mib: number; max_streams: number; requests_per_second: number };
}

/** A key that was just made, with the key itself, this once. */
export interface NewKeyJson extends KeyJson {
  key: string;
}

/** The answer to a preview request. */
export interface PreviewJson {
  /** Opens from any program on this machine; a browser that opens it is led to `browser_url`. */
  url: string;
  expires_unix: number;
  /** The same port below this server's own address: for programs whose resolver knows no `*.localhost`. */
  path_url: string;
  /** The same port as an origin of its own. Missing when neither a preview domain nor a loopback address makes one. */
  browser_url?: string;
}

export interface ForwardJson {
  /** `127.0.0.1:<port>` on the server's host. */
  host: string;
  guest_port: number;
}

/** A shape as it arrives from elsewhere: the names are known, nothing else is. */
export type Unchecked<Shape> = { readonly [Name in keyof Shape]?: unknown };
