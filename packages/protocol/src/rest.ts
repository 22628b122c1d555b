/** The JSON shapes of the `/v1` answers. The server writes them, the SDK reads them: a name that changes here breaks both at once. */

import type { ErrorEnvelope } from "./errors.ts";

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
  source: TemplateSourceJson;
  snapshot_bytes: number;
  /** What the user should know, such as that the name was not known and the server's own root was taken. */
  warnings: readonly string[];
}

/** What a template's root is made of, as it was resolved. */
export interface TemplateSourceJson {
  kind: "host" | "image" | "build";
  /** In full; empty for the server's own root. */
  reference: string;
  /** `sha256:…` of the image's manifest; null for the server's own root. */
  digest: string | null;
  layers: number;
  /** Of its files, those that it shares with other templates included. 0 for the own root. */
  root_bytes: number;
}

/** One step of a build, as `build_steps` of a request names it. The members are those of its type. */
export type BuildStepJson =
  | { type: "run"; run: string }
  /** `env_expand`: `${NAME}` in the value stands for what the variable is before this step, those of the image included. */
  | { type: "env"; env_name: string; env_value: string; env_expand?: boolean }
  | { type: "workdir"; workdir: string }
  | { type: "user"; user: string }
  /** `source` is what the user called the files; `context` is the digest under which they were sent to `PUT /v1/contexts/{digest}`. */
  | { type: "copy"; source: string; dest: string; context: string };

/** What happens while something is built, pulled or pushed. Kinds that a reader does not know are to be passed over. */
export type BuildEventJson = { at_ms: number } & (
  | { kind: "phase"; phase: "resolve" | "pull" | "step" | "boot" | "start" | "warm" | "save"; detail: string }
  | {
      kind: "layer";
      digest: string;
      /** `shared`: it was here already, or at the registry that it is pushed to. */
      state: "waiting" | "downloading" | "unpacking" | "uploading" | "done" | "shared";
      done_bytes: number;
      /** Compressed. */
      total_bytes: number;
    }
  | {
      kind: "step";
      /** From 0. */
      index: number;
      count: number;
      type: BuildStepJson["type"];
      label: string;
      state: "running" | "cached" | "done" | "failed";
      ms: number;
    }
  | { kind: "log"; step: number | null; stream: "stdout" | "stderr"; text: string }
  | { kind: "warning"; text: string }
  /** Nothing new, but it goes on: after every 15 seconds of silence. */
  | { kind: "alive" }
  | BuildEndJson
);

/** The last line of each stream of events. */
export type BuildEndJson =
  /** What the same request answers without a stream; `creation_time_ms` where events are told afterwards. */
  | {
      kind: "done";
      template?: TemplateJson;
      image?: ImageJson;
      reference?: string;
      digest?: string;
      creation_time_ms?: number;
    }
  | { kind: "failed"; error: ErrorEnvelope["error"] };

/** Which thing a name means on this server: the first of these that exists. */
export interface NameJson {
  name: string;
  means: "template" | "image" | "host" | "nothing";
  /** Of an image: in full. */
  reference: string;
}

/** The answer to a push: what the registry has now. */
export interface PushedJson {
  reference: string;
  digest: string;
}

/** An image whose layers are all on the server. */
export interface ImageJson {
  reference: string;
  digest: string;
  layers: number;
  root_bytes: number;
  pulled_at: string;
  last_used_at: string;
}

/** Bytes on the server's disk. What several things share is counted once, in `layers`. */
export interface DiskUsageJson {
  /** Those that the caller sees. */
  templates: readonly {
    id: string;
    snapshot_bytes: number;
    /** Of its layers, those that it shares included. */
    root_bytes: number;
    /** Of layers that no other template has. */
    own_bytes: number;
  }[];
  /** Of the whole server, and so told to administrators only. */
  totals?: {
    layers: { count: number; bytes: number; unused_bytes: number };
    caches: { bytes: number };
    snapshots: { bytes: number };
    /** What unused layers and caches together may have before the oldest are removed. */
    cache_bytes_max: number;
  };
}

export interface PrunedJson {
  removed_bytes: number;
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
  /** How many children it may ask for from inside, and has asked for. */
  fork_budget: number;
  forks_used: number;
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
