import { create } from "../create.ts";
import { Sandbox as MitosSandbox } from "../sandbox.ts";
import { SandboxServer } from "../server.ts";
import { notSupported, requireTimeout, translated, within } from "./errors.ts";
import { type CreateSandboxFromImageParams, type CreateSandboxFromSnapshotParams, refuseOthers, toCreateOptions } from "./params.ts";
import { type ForkSandboxParams, Sandbox, type SandboxState } from "./sandbox.ts";

/** Where the server is, and with which key. */
export interface DaytonaConfig {
  /** Key of the Mitos server. Default: `MITOS_API_KEY`, then the credentials file, then none. */
  apiKey?: string;
  /** Address of the Mitos server. Default: `MITOS_BASE_URL`, then `http://127.0.0.1:8080`. */
  apiUrl?: string;
  /** Daytona's earlier name of `apiUrl`. */
  serverUrl?: string;
  /** The region in which sandboxes are made. */
  target?: string;
}

/** Which sandboxes a list shows. */
export interface ListSandboxesQuery {
  /** All of these. */
  labels?: Record<string, string>;
  /** Any of these. */
  states?: SandboxState[];
  /** A prefix, upper or lower case. */
  id?: string;
  /** The same. */
  name?: string;
  /** Without effect: all are given, whatever the size of a page. */
  limit?: number;
}

const waitSeconds = 60;

/** A Mitos server in Daytona's shape. Variables named `DAYTONA_…` are not read: they hold another service's address and key. */
export class Daytona {
  readonly #connection: { readonly apiKey: string | undefined; readonly baseUrl: string };
  readonly #server: SandboxServer;
  readonly #target: string;

  /** @throws DaytonaInvalidArgumentError for what has no equivalent */
  constructor(config: DaytonaConfig = {}) {
    refuseOthers(
      config,
      ["apiKey", "apiUrl", "serverUrl", "target", "requestTimeoutMs", "useDeprecatedPolling", "_experimental"],
      "Daytona",
    );
    const { apiKey, apiUrl, serverUrl, target = "" } = config;
    this.#server = SandboxServer.fromAuth({ apiKey, baseUrl: apiUrl || serverUrl });
    this.#connection = { apiKey, baseUrl: this.#server.url };
    this.#target = target;
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  /** A new sandbox that runs. @param options.timeout - seconds; 0 means none. Default: 60 */
  create(params?: CreateSandboxFromSnapshotParams, options?: { timeout?: number }): Promise<Sandbox>;
  create(params?: CreateSandboxFromImageParams, options?: { timeout?: number }): Promise<Sandbox>;
  async create(
    params: CreateSandboxFromSnapshotParams | CreateSandboxFromImageParams = {},
    { timeout = waitSeconds }: { timeout?: number } = {},
  ): Promise<Sandbox> {
    requireTimeout(timeout);
    const request = { ...toCreateOptions(params), ...this.#connection, region: this.#target || undefined };
    return this.#open(await within("creation of a sandbox", timeout, (signal) => create({ ...request, signal })));
  }

  /** @throws DaytonaNotFoundError; DaytonaGoneError for one that has ended */
  async get(sandboxIdOrName: string): Promise<Sandbox> {
    return this.#open(await translated(() => MitosSandbox.connect(sandboxIdOrName, this.#connection)));
  }

  async *list(query: ListSandboxesQuery = {}): AsyncIterableIterator<Sandbox> {
    refuseOthers(query, ["labels", "states", "id", "name", "limit"], "list");
    const { labels, states, id = "", name = "" } = query;
    const rows = await translated(() => this.#server.listSandboxes({ metadata: labels }));
    for (const row of rows) {
      const sandbox = new Sandbox(this.#server.handle(row.id, row.templateId), row, this.#target);
      const matches = [id, name].every((prefix) => row.id.toLowerCase().startsWith(prefix.toLowerCase()));
      if (matches && (states === undefined || states.includes(sandbox.state))) yield sandbox;
    }
  }

  async start(sandbox: Sandbox, timeout?: number): Promise<void> {
    await sandbox.start(timeout);
  }

  async stop(sandbox: Sandbox, timeout?: number): Promise<void> {
    await sandbox.stop(timeout);
  }

  async delete(sandbox: Sandbox, timeout?: number): Promise<void> {
    await sandbox.delete(timeout);
  }

  /** One child of it. @see Sandbox.fork */
  fork(sandbox: Sandbox, params?: ForkSandboxParams, timeout?: number): Promise<Sandbox> {
    return sandbox.fork(params, timeout);
  }

  /** @throws DaytonaError with `not_supported`, as the two that follow */
  get volume(): never {
    throw notSupported("daytona.volume is", "Upload what the sandbox needs, or fork a sandbox that has it.");
  }

  get snapshot(): never {
    throw notSupported(
      "daytona.snapshot is",
      "Stop a sandbox to keep its state and fork it; templates are made with SandboxServer of @mitos/sdk.",
    );
  }

  get secret(): never {
    throw notSupported("daytona.secret is", "Use create({ secrets }) of @mitos/sdk, which takes the values.");
  }

  async #open(sandbox: MitosSandbox): Promise<Sandbox> {
    return new Sandbox(sandbox, await translated(() => sandbox.info()), this.#target);
  }
}
