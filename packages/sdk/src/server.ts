import { newSandboxId } from "@mitos/protocol";
import { type BuildEvent, type BuildProgress, postWithEvents, readEvents, type ServerBuildStep, stepToWire } from "./builds.ts";
import { type Connection, newIdempotencyKey, requireSandboxId } from "./config.ts";
import { AgentRunError, isObject } from "./errors.ts";
import { HttpClient, type RequestBody } from "./http.ts";
import {
  type DiskUsage,
  diskUsageFromWire,
  type ImageInfo,
  imageFromWire,
  meaningFromWire,
  type NameMeaning,
  type PushedImage,
} from "./images.ts";
import { Sandbox } from "./sandbox.ts";
import type { WarmCode } from "./template.ts";
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
export interface CreateTemplateOptions extends BuildProgress {
  /**
   * What its files are: an image of a registry (`python:3.12-slim`), another template, or `python`, `node` or `base`. Default: what the id
   * says where it is an image reference, else the server's own root.
   */
  image?: string | undefined;
  /** In order, on top of the image. Contexts of copy steps are there already: `buildTemplate` of `@mitos/sdk/build` sees to that. */
  steps?: readonly ServerBuildStep[] | undefined;
  warm?: WarmCode | undefined;
  /** Runs every step again, whatever is stored. */
  noCache?: boolean | undefined;
  /** Asks the registry again what the image's tag means. */
  pull?: boolean | undefined;
  /** Default: 5. */
  initWaitSeconds?: number | undefined;
  network?: Network | undefined;
  workload?: Workload | undefined;
  resources?: Resources | undefined;
  /** Default: a new one, so that a request that arrives twice is one request. */
  idempotencyKey?: string | undefined;
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
  /** How many children programs inside may make of it (`@mitos/sdk/guest`). Default: 0, none. */
  forkBudget?: number | undefined;
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

  /**
   * Builds it, or builds it anew. Resolves when sandboxes can be made from it.
   *
   * @throws not_found for an image that does not exist, build_failed with the step, forbidden, canceled
   */
  async createTemplate(id: string, options: CreateTemplateOptions = {}): Promise<TemplateInfo> {
    const { initWaitSeconds = 5, image, steps = [], warm, noCache, pull, network, workload, resources } = options;
    const { idempotencyKey = newIdempotencyKey(), onEvent, signal } = options;
    const body = {
      id,
      init_wait_seconds: initWaitSeconds,
      ...(image ? { image } : {}),
      ...(steps.length > 0 ? { build_steps: steps.map(stepToWire) } : {}),
      ...(warm ? { warm: warmToWire(warm) } : {}),
      ...(noCache ? { no_cache: true } : {}),
      ...(pull ? { pull: true } : {}),
      ...(network ? { network: networkToWire(network) } : {}),
      ...(workload ? { workload: workloadToWire(workload) } : {}),
      ...(resources ? { resources: resourcesToWire(resources) } : {}),
    };
    const headers = { "Idempotency-Key": idempotencyKey };
    return templateFromWire(await postWithEvents(this.#http, "/v1/templates", body, "template", { onEvent, signal }, headers));
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

  /** What happened while it was last built. With `follow`, what goes on happening until that is over. @throws not_found */
  templateEvents(id: string, { follow = false, signal }: { follow?: boolean; signal?: AbortSignal } = {}): AsyncIterable<BuildEvent> {
    return readEvents(this.#http, `/v1/templates/${encodeURIComponent(id)}/events?follow=${follow}`, signal);
  }

  /** Sandboxes that were made from it run on. @throws not_found; conflict while it is built */
  async deleteTemplate(id: string): Promise<void> {
    await this.#http.del(`/v1/templates/${encodeURIComponent(id)}`);
  }

  /**
   * Makes an image of a template's files and puts it into a registry, with the server's own credentials for it.
   *
   * @param reference - with the registry, as in `registry.example/team/tool:1`
   * @throws not_found, unauthorized, unavailable
   */
  async pushTemplate(id: string, reference: string, progress: BuildProgress = {}): Promise<PushedImage> {
    const path = `/v1/templates/${encodeURIComponent(id)}/push`;
    const answer = await postWithEvents(this.#http, path, { reference }, undefined, progress);
    return { reference: String(answer.reference ?? reference), digest: String(answer.digest ?? "") };
  }

  /**
   * Has the server download and unpack an image ahead of its first use.
   *
   * @param options - `pull`: ask the registry again what the tag means. Default: an image that is there is taken as it is
   * @throws not_found, unauthorized, unavailable
   */
  async pullImage(reference: string, { pull, ...progress }: BuildProgress & { pull?: boolean | undefined } = {}): Promise<ImageInfo> {
    const body = { reference, ...(pull ? { pull } : {}) };
    return imageFromWire(await postWithEvents(this.#http, "/v1/images", body, "image", progress));
  }

  /** The images whose layers are on the server. */
  async listImages(): Promise<ImageInfo[]> {
    const rows = await this.#http.get("/v1/images");
    return (Array.isArray(rows) ? rows : []).filter(isObject).map(imageFromWire);
  }

  /** Which thing a name would mean to `create`, and as the image of a template. */
  async meaningOf(name: string): Promise<NameMeaning> {
    return meaningFromWire((await this.#http.get(`/v1/names/${encodeURIComponent(name)}`)) as Record<string, unknown>);
  }

  /** What templates and their caches take of the server's disk. */
  async diskUsage(): Promise<DiskUsage> {
    return diskUsageFromWire((await this.#http.get("/v1/usage/disk")) as Record<string, unknown>);
  }

  /**
   * Removes layers and caches that nothing uses.
   *
   * @param options - `olderThanSeconds`: since they were last used. Default: 0, all of them
   * @returns how many bytes that were
   */
  async prune({ olderThanSeconds = 0 }: { olderThanSeconds?: number } = {}): Promise<number> {
    const answer = await this.#http.post("/v1/prune", { older_than_seconds: olderThanSeconds });
    return isObject(answer) ? Number(answer.removed_bytes ?? 0) : 0;
  }

  /** Whether the files of a copy step are there. @param digest - `sha256:` and 64 hexadecimal digits, of the uncompressed tar */
  async hasContext(digest: string, signal?: AbortSignal): Promise<boolean> {
    const response = await this.#http.fetch("HEAD", `/v1/contexts/${digest}`, undefined, { signal });
    if (response.ok) return true;
    // The answer to HEAD has no body that could tell more.
    if (response.status === 404) return false;
    throw AgentRunError.fromResponse(response.status, "", undefined, response.headers.get("Retry-After"));
  }

  /** Sends the files of a copy step. @throws invalid_input when the digest is another */
  async putContext(digest: string, tar: RequestBody, signal?: AbortSignal): Promise<void> {
    await this.#http.put(`/v1/contexts/${digest}`, tar, { headers: { "Content-Type": "application/x-tar" }, signal });
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
      fork_budget: options.forkBudget,
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

function warmToWire({ language = "python", code, timeoutSeconds }: WarmCode): Record<string, unknown> {
  return { language, code, ...(timeoutSeconds === undefined ? {} : { timeout_seconds: timeoutSeconds }) };
}

/** A standalone server answers a list, a hosted one an object with the list in it. */
function rowsOf(answer: unknown): Record<string, unknown>[] {
  const rows = isObject(answer) ? answer.sandboxes : answer;
  return (Array.isArray(rows) ? rows : []).filter(isObject);
}
