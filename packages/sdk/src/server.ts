import { newSandboxId } from "@mitos/protocol";
import { type Connection, newIdempotencyKey, requireSandboxId } from "./config.ts";
import { AgentRunError, isObject } from "./errors.ts";
import { HttpClient } from "./http.ts";
import { Sandbox } from "./sandbox.ts";
import {
  type Health,
  type Network,
  networkToWire,
  type Resources,
  resourcesToWire,
  type ServerSandbox,
  sandboxFromWire,
  type TemplateInfo,
  templateFromWire,
  type Workload,
  workloadToWire,
} from "./types.ts";

/** What a template consists of. The same definition again costs nothing. */
export interface CreateTemplateOptions {
  /** Default: 5. */
  initWaitSeconds?: number | undefined;
  network?: Network | undefined;
  workload?: Workload | undefined;
  resources?: Resources | undefined;
  /** Default: a new one, so that a request that arrives twice is one request. */
  idempotencyKey?: string | undefined;
  signal?: AbortSignal | undefined;
}

/** What a new sandbox is given over its template. */
export interface ForkTemplateOptions {
  env?: Readonly<Record<string, string>> | undefined;
  /** Kept in the sandbox's memory only; it then refuses to fork unless asked to let its children inherit them. */
  secrets?: Readonly<Record<string, string>> | undefined;
  /** Default: none, it lives until it is terminated. */
  timeoutSeconds?: number | undefined;
  idleTimeoutSeconds?: number | undefined;
  metadata?: Readonly<Record<string, string>> | undefined;
  resources?: Resources | undefined;
  /** Instead of the template's. */
  network?: Network | undefined;
  region?: string | undefined;
  idempotencyKey?: string | undefined;
  signal?: AbortSignal | undefined;
}

/** Which sandboxes to list; what is given must all hold. */
export interface ListOptions {
  state?: string | undefined;
  parent?: string | undefined;
  metadata?: Readonly<Record<string, string>> | undefined;
}

/** One Mitos server. */
export class SandboxServer {
  readonly url: string;
  readonly #http: HttpClient;

  /** @see resolveBaseUrl, resolveToken for what applies when an argument is not given */
  constructor(url?: string, token?: string) {
    this.#http = HttpClient.fromAuth({ baseUrl: url, apiKey: token });
    this.url = this.#http.baseUrl;
  }

  static fromAuth({ apiKey, baseUrl }: Connection = {}): SandboxServer {
    return new SandboxServer(baseUrl, apiKey);
  }

  async health(): Promise<Health> {
    return (await this.#http.get("/v1/health")) as Health;
  }

  async listTemplates(): Promise<TemplateInfo[]> {
    const rows = await this.#http.get("/v1/templates");
    return (Array.isArray(rows) ? rows : []).filter(isObject).map(templateFromWire);
  }

  /** Builds it, or builds it anew. Resolves when sandboxes can be made from it. */
  async createTemplate(id: string, options: CreateTemplateOptions = {}): Promise<TemplateInfo> {
    const { initWaitSeconds = 5, network, workload, resources, idempotencyKey = newIdempotencyKey(), signal } = options;
    const body = {
      id,
      init_wait_seconds: initWaitSeconds,
      ...(network ? { network: networkToWire(network) } : {}),
      ...(workload ? { workload: workloadToWire(workload) } : {}),
      ...(resources ? { resources: resourcesToWire(resources) } : {}),
    };
    const answer = await this.#http.post("/v1/templates", body, { "Idempotency-Key": idempotencyKey }, signal);
    return templateFromWire(answer as Record<string, unknown>);
  }

  /** The same, but a template that exists, or that somebody else is just building, is fine. */
  async ensureTemplate(id: string, options: CreateTemplateOptions = {}): Promise<TemplateInfo> {
    try {
      return await this.createTemplate(id, options);
    } catch (error) {
      if (error instanceof AgentRunError && error.status === 409) return { id, ready: true, createdAt: "", creationTimeMs: 0 };
      throw error;
    }
  }

  /** A new sandbox from a template. @throws not_found when there is no such template */
  async fork(template: string, id: string = newSandboxId(), options: ForkTemplateOptions = {}): Promise<Sandbox> {
    requireSandboxId(id);
    const { idempotencyKey = newIdempotencyKey(), signal, resources, network } = options;
    const body = {
      template,
      id,
      env: options.env,
      secrets: options.secrets,
      timeout_seconds: options.timeoutSeconds,
      idle_timeout_seconds: options.idleTimeoutSeconds,
      metadata: options.metadata,
      region: options.region,
      ...(resources ? { resources: resourcesToWire(resources) } : {}),
      ...(network ? { network: networkToWire(network) } : {}),
    };
    const answer = await this.#http.post("/v1/fork", body, { "Idempotency-Key": idempotencyKey }, signal);
    const row = sandboxFromWire(answer as Record<string, unknown>);
    // Not the answer's endpoint, which is the server's own view of its address, and not its template_id, which is a handle for older SDKs.
    return new Sandbox({ id: row.id || id, endpoint: this.url, http: this.#http, template, forkTimeMs: row.forkTimeMs });
  }

  /** A handle on a sandbox that is known to exist, without asking for it. @see Sandbox.connect */
  handle(id: string, template?: string): Sandbox {
    return new Sandbox({ id, endpoint: this.url, http: this.#http, template });
  }

  /** All pages. */
  async listSandboxes(options: ListOptions = {}): Promise<ServerSandbox[]> {
    const query = new URLSearchParams();
    if (options.state) query.set("state", options.state);
    if (options.parent) query.set("parent", options.parent);
    for (const [key, value] of Object.entries(options.metadata ?? {})) query.set(`metadata.${key}`, value);
    const all: ServerSandbox[] = [];
    for (let page = 0; page < pagesMax; page++) {
      const path = query.size > 0 ? `/v1/sandboxes?${query}` : "/v1/sandboxes";
      const response = await this.#http.send("GET", path, undefined);
      all.push(...rowsOf(await this.#http.json(path, response)).map(sandboxFromWire));
      const cursor = response.headers.get("X-Next-Cursor");
      if (!cursor) return all;
      query.set("cursor", cursor);
    }
    throw new AgentRunError("the list of sandboxes does not end", {
      code: "invalid_response",
      cause: `the server still had a next page after ${pagesMax}`,
      remediation: "Narrow the list with state, parent or metadata.",
    });
  }
}

const pagesMax = 10_000;

/** A standalone server answers a list, a hosted one an object with the list in it. */
function rowsOf(answer: unknown): Record<string, unknown>[] {
  const rows = isObject(answer) ? answer.sandboxes : answer;
  return (Array.isArray(rows) ? rows : []).filter(isObject);
}
