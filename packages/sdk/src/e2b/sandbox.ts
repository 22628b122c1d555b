// biome-ignore-all lint/complexity/noThisInStatic: the class that a static method is called on is a subclass, or one that a client has bound options to
import { newSandboxId } from "@mitos/protocol";
import { create } from "../create.ts";
import { MAX_EXEC_TIMEOUT_SECONDS } from "../errors.ts";
import { HttpClient } from "../http.ts";
import { ProcessClient } from "../processes.ts";
import { Sandbox as NativeSandbox } from "../sandbox.ts";
import { SandboxServer } from "../server.ts";
import {
  type Context,
  type CreateCodeContextOpts,
  createCodeContext,
  listCodeContexts,
  type RunCodeLanguage,
  type RunCodeOpts,
  type RunCodeTarget,
  removeCodeContext,
  restartCodeContext,
  runCode,
} from "./code.ts";
import { Commands } from "./commands.ts";
import { isGone, toE2BError, unavailable } from "./errors.ts";
import type { Execution } from "./execution.ts";
import { Filesystem } from "./files.ts";
import { home, prepareHome } from "./home.ts";
import { hostOf, withPath } from "./host.ts";
import { type SandboxInfo, stateOf, toSandboxInfo } from "./info.ts";
import {
  type ConnectionOpts,
  connectionOf,
  networkOf,
  refuse,
  requireHonoured,
  type SandboxApiOpts,
  type SandboxConnectOpts,
  type SandboxForkOpts,
  type SandboxOpts,
  type SandboxPauseOpts,
  sandboxTimeoutMsDefault,
  templateOf,
  toSeconds,
} from "./options.ts";
import { type SandboxListOpts, SandboxPaginator } from "./paginator.ts";
import { Pty } from "./pty.ts";
import { type RequestOpts, request, withTimeout } from "./request.ts";

/** What an `E2B` client has bound to its class. Not a property of the class, where printing it would show the key. */
const boundOpts = new WeakMap<object, ConnectionOpts>();

/** A class with these options as its defaults. */
export function bind(Class: typeof Sandbox, opts: ConnectionOpts): typeof Sandbox {
  const Bound = class Sandbox extends Class {};
  boundOpts.set(Bound, opts);
  return Bound;
}

function effective<T extends ConnectionOpts>(Class: object, opts: T | undefined): T {
  const given = Object.fromEntries(Object.entries(opts ?? {}).filter(([, value]) => value !== undefined));
  return { ...boundTo(Class), ...given } as T;
}

/** Also of a class that extends a bound one. */
function boundTo(Class: object | null): ConnectionOpts | undefined {
  return Class === null ? undefined : (boundOpts.get(Class) ?? boundTo(Object.getPrototypeOf(Class)));
}

/** A Mitos sandbox with the names and habits of E2B's `Sandbox`, code interpreter included. */
export class Sandbox {
  readonly sandboxId: string;
  /** The server's host. */
  readonly sandboxDomain: string;
  /** Never set: a token here is of one port. `getUrl` gives it. */
  declare readonly trafficAccessToken?: string;
  readonly files: Filesystem;
  readonly commands: Commands;
  readonly pty: Pty;
  readonly #native: NativeSandbox;
  readonly #connection: ConnectionOpts;

  /** Use `Sandbox.create` or `Sandbox.connect`. */
  constructor({ sandboxId, ...connection }: ConnectionOpts & { sandboxId: string }) {
    const http = HttpClient.fromAuth(connectionOf(connection));
    this.#native = nativeOf(sandboxId, http);
    this.#connection = connection;
    this.sandboxId = sandboxId;
    this.sandboxDomain = new URL(http.baseUrl).host;
    this.files = new Filesystem(this.#native, connection.requestTimeoutMs);
    const processes = new ProcessClient(http, sandboxId);
    this.commands = new Commands(processes, connection.requestTimeoutMs);
    this.pty = new Pty(processes, connection.requestTimeoutMs);
  }

  /**
   * A new sandbox, which ends by itself after `timeoutMs` (default 300,000).
   *
   * @param template - `python` (default), `node`, `base`, an image reference, or a template that the server has
   * @throws InvalidArgumentError for options that cannot be honoured; NotFoundError for an unknown template
   */
  static create<S extends typeof Sandbox>(this: S, opts?: SandboxOpts): Promise<InstanceType<S>>;
  static create<S extends typeof Sandbox>(this: S, template: string, opts?: SandboxOpts): Promise<InstanceType<S>>;
  static async create<S extends typeof Sandbox>(
    this: S,
    templateOrOpts?: string | SandboxOpts,
    opts?: SandboxOpts,
  ): Promise<InstanceType<S>> {
    const all = effective(this, typeof templateOrOpts === "string" ? opts : templateOrOpts);
    requireHonoured(all);
    const { template, onDemand } = templateOf(typeof templateOrOpts === "string" ? templateOrOpts : all.template);
    const connection = connectionOf(all);
    const shape = {
      env: { HOME: home, ...all.envs },
      metadata: all.metadata,
      timeoutSeconds: toSeconds(all.timeoutMs ?? sandboxTimeoutMsDefault),
      network: networkOf(all),
    };
    const native = await request("template", all, async (signal) => {
      const made = onDemand
        ? await create({ ...connection, template, ...shape, signal })
        : await SandboxServer.fromAuth(connection).fork(template, newSandboxId(), { ...shape, signal });
      await prepareHome(made, signal).catch(async (error: unknown) => {
        await made.terminate().catch(() => undefined);
        throw error;
      });
      return made;
    });
    return new this({ ...connectionOnly(all), sandboxId: native.id }) as InstanceType<S>;
  }

  /** A sandbox that exists. A paused one is resumed; one that runs keeps its time-out where that is the longer one. @throws SandboxNotFoundError */
  static async connect<S extends typeof Sandbox>(this: S, sandboxId: string, opts?: SandboxConnectOpts): Promise<InstanceType<S>> {
    const all = effective(this, opts);
    const sandbox = new this({ ...connectionOnly(all), sandboxId }) as InstanceType<S>;
    return sandbox.connect(all);
  }

  static list(opts?: SandboxListOpts): SandboxPaginator {
    return new SandboxPaginator(effective(this, opts));
  }

  /** @returns false when there is no such sandbox */
  static async kill(sandboxId: string, opts?: SandboxApiOpts): Promise<boolean> {
    return handle(this, sandboxId, opts).kill(opts);
  }

  /** @throws SandboxNotFoundError */
  static async getInfo(sandboxId: string, opts?: SandboxApiOpts): Promise<SandboxInfo> {
    return handle(this, sandboxId, opts).getInfo(opts);
  }

  /** @deprecated The same as getInfo. */
  static async getFullInfo(sandboxId: string, opts?: SandboxApiOpts): Promise<SandboxInfo> {
    return handle(this, sandboxId, opts).getInfo(opts);
  }

  static async setTimeout(sandboxId: string, timeoutMs: number, opts?: SandboxApiOpts): Promise<void> {
    return handle(this, sandboxId, opts).setTimeout(timeoutMs, opts);
  }

  static async pause(sandboxId: string, opts?: SandboxPauseOpts): Promise<boolean> {
    return handle(this, sandboxId, opts).pause(opts);
  }

  /** @deprecated The same as pause. */
  static async betaPause(sandboxId: string, opts?: SandboxPauseOpts): Promise<boolean> {
    return handle(this, sandboxId, opts).pause(opts);
  }

  /** @see fork */
  static async fork<S extends typeof Sandbox>(this: S, sandboxId: string, opts?: SandboxForkOpts): Promise<(InstanceType<S> | Error)[]> {
    const all = effective(this, opts);
    return (new this({ ...connectionOnly(all), sandboxId }) as InstanceType<S>).fork(all);
  }

  /** @deprecated Not available: see the instance's createSnapshot. */
  static createSnapshot(_sandboxId: string, _opts?: object): Promise<never> {
    return notAvailable("createSnapshot", snapshotInstead);
  }

  /** @deprecated Not available: see the instance's createSnapshot. */
  static listSnapshots(_opts?: object): never {
    throw unavailable("listSnapshots", snapshotInstead);
  }

  /** @deprecated Not available: see the instance's createSnapshot. */
  static deleteSnapshot(_snapshotId: string, _opts?: object): Promise<never> {
    return notAvailable("deleteSnapshot", snapshotInstead);
  }

  /** @deprecated Not available: pass `network` to create. */
  static updateNetwork(_sandboxId: string, _network: object, _opts?: object): Promise<never> {
    return notAvailable("updateNetwork", networkInstead);
  }

  /** @deprecated Not available: see GET /v1/metering of the server. */
  static getMetrics(_sandboxId: string, _opts?: object): Promise<never> {
    return notAvailable("getMetrics", metricsInstead);
  }

  /** Resumes it when it is paused. It then ends after `timeoutMs` (default 300,000); one that runs only when that is later than it would. */
  async connect({ timeoutMs = sandboxTimeoutMsDefault, onResume, ...opts }: SandboxConnectOpts = {}): Promise<this> {
    refuse("onResume: reboot", onResume === "reboot", "create a new sandbox: memory and processes are always restored");
    const seconds = toSeconds(timeoutMs);
    await request("sandbox", this.#requestOpts(opts), async (signal) => {
      const before = await this.#native.info();
      await this.#native.resume();
      // Without a time-out, which only other clients make, it stays so.
      if (typeof before.deadlineUnix === "number") {
        const remaining = before.deadlineUnix - Date.now() / 1000;
        if (stateOf(before) === "paused" || remaining < seconds) await this.#native.setTimeout(seconds);
      }
      await prepareHome(this.#native, signal);
    });
    return this;
  }

  /**
   * Forks it while it runs: each child goes on from its exact state, files, memory and processes. All start or none does.
   *
   * @param count - how many; E2B's own form with options gives the same children, typed as sandboxes or errors
   * @throws what a child's start failed with
   */
  fork(count: number): Promise<this[]>;
  fork(opts?: SandboxForkOpts): Promise<(this | Error)[]>;
  async fork(countOrOpts: number | SandboxForkOpts = {}): Promise<this[]> {
    const {
      count = 1,
      timeoutMs = sandboxTimeoutMsDefault,
      ...opts
    } = typeof countOrOpts === "number" ? { count: countOrOpts } : countOrOpts;
    const timeoutSeconds = toSeconds(timeoutMs);
    const children = await request("sandbox", this.#requestOpts(opts), (signal) => this.#native.fork({ count, timeoutSeconds, signal }));
    const Class = this.constructor as typeof Sandbox;
    return children.map(({ id }) => new Class({ ...this.#connection, sandboxId: id }) as this);
  }

  /**
   * A port's address without the scheme, which a path may follow. Requests need the scheme of the server (`http` unless something in
   * front of it speaks TLS) and the port's token: `getUrl` gives both.
   */
  getHost(port: number): string {
    return hostOf(this.#native.endpoint, this.sandboxId, port);
  }

  /** A URL that answers from outside as it is, for an hour unless the server was told otherwise. */
  async getUrl(port: number, path = "/"): Promise<string> {
    return withPath(await request("sandbox", this.#requestOpts({}), () => this.#native.getHost(port)), path);
  }

  isRunning(opts: RequestOpts = {}): Promise<boolean> {
    return request("sandbox", this.#requestOpts(opts), async () => {
      try {
        return stateOf(await this.#native.info()) === "running";
      } catch (error) {
        if (isGone(error)) return false;
        throw error;
      }
    });
  }

  /** It ends this long from now, whatever was set before. */
  setTimeout(timeoutMs: number, opts: RequestOpts = {}): Promise<void> {
    return request("sandbox", this.#requestOpts(opts), async () => {
      await this.#native.setTimeout(toSeconds(timeoutMs));
    });
  }

  /** Ends it for good. @returns false when it had ended */
  kill(opts: RequestOpts = {}): Promise<boolean> {
    return request("sandbox", this.#requestOpts(opts), async () => {
      try {
        // Ending what has ended succeeds as well.
        await this.#native.info();
        await this.#native.terminate();
        return true;
      } catch (error) {
        if (isGone(error)) return false;
        throw error;
      }
    });
  }

  /**
   * Saves it with its memory and frees that; `connect` goes on. A time-out here runs on in a pause, so it is put off: it is kept for a day.
   *
   * @returns false when it was paused
   */
  async pause({ keepMemory = true, ...opts }: SandboxPauseOpts = {}): Promise<boolean> {
    refuse("keepMemory: false", !keepMemory, "memory is always saved, and restored by connect");
    return request("sandbox", this.#requestOpts(opts), async () => {
      const before = await this.#native.info();
      if (stateOf(before) === "paused") return false;
      await this.#native.pause();
      if (typeof before.deadlineUnix === "number") await this.#native.setTimeout(MAX_EXEC_TIMEOUT_SECONDS);
      return true;
    });
  }

  /** @deprecated The same as pause. */
  betaPause(opts: SandboxPauseOpts = {}): Promise<boolean> {
    return this.pause(opts);
  }

  /** @throws SandboxNotFoundError */
  getInfo(opts: RequestOpts = {}): Promise<SandboxInfo> {
    return request("sandbox", this.#requestOpts(opts), async () => toSandboxInfo(await this.#native.info()));
  }

  /**
   * Runs code in the live interpreter of a language (default: python), or of a context. An exception of the code is a result.
   *
   * @throws TimeoutError
   */
  runCode(code: string, opts?: RunCodeOpts & { language?: RunCodeLanguage | undefined }): Promise<Execution>;
  runCode(code: string, opts?: RunCodeOpts & { context?: Context | undefined }): Promise<Execution>;
  runCode(code: string, opts: RunCodeOpts & RunCodeTarget = {}): Promise<Execution> {
    return runCode(this.#native, code, opts);
  }

  createCodeContext(opts: CreateCodeContextOpts = {}): Promise<Context> {
    return createCodeContext(this.#native, opts);
  }

  listCodeContexts(): Promise<Context[]> {
    return listCodeContexts(this.#native);
  }

  removeCodeContext(context: Context | string): Promise<void> {
    return removeCodeContext(this.#native, context);
  }

  /** The context begins anew, without what its code has set. */
  restartCodeContext(context: Context | string): Promise<void> {
    return restartCodeContext(this.#native, context);
  }

  /** @deprecated Not available: fork it, or pause it and connect to it later. */
  createSnapshot(_opts?: object): Promise<never> {
    return notAvailable("createSnapshot", snapshotInstead);
  }

  /** @deprecated Not available: see createSnapshot. */
  listSnapshots(_opts?: object): never {
    throw unavailable("listSnapshots", snapshotInstead);
  }

  /** @deprecated Not available: pass `network` to create. */
  updateNetwork(_network: object, _opts?: object): Promise<never> {
    return notAvailable("updateNetwork", networkInstead);
  }

  /** @deprecated Not available: see GET /v1/metering of the server. */
  getMetrics(_opts?: object): Promise<never> {
    return notAvailable("getMetrics", metricsInstead);
  }

  /** @deprecated Not available: use files.write. */
  uploadUrl(_path?: string, _opts?: object): Promise<never> {
    return notAvailable("uploadUrl", "write with files.write, which takes streams of any size");
  }

  /** @deprecated Not available: use files.read. */
  downloadUrl(_path: string, _opts?: object): Promise<never> {
    return notAvailable("downloadUrl", 'read with files.read and format "stream"; serve a file to others from a port, with getUrl');
  }

  /** @deprecated Not available: run the MCP server as a command and use getUrl. */
  getMcpUrl(): never {
    throw unavailable("getMcpUrl", mcpInstead);
  }

  /** @deprecated Not available: see getMcpUrl. */
  getMcpToken(): Promise<never> {
    return notAvailable("getMcpToken", mcpInstead);
  }

  /** @deprecated Not available: run `git` with commands.run, as E2B advises too. */
  get git(): never {
    throw unavailable("git", "run git with commands.run");
  }

  /** With `await using` it ends with the block. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }

  #requestOpts(opts: RequestOpts): RequestOpts {
    return withTimeout(opts, this.#connection.requestTimeoutMs);
  }
}

/** What a sandbox keeps of the options it was made with. */
function connectionOnly({ apiKey, domain, apiUrl, requestTimeoutMs }: ConnectionOpts): ConnectionOpts {
  return { apiKey, domain, apiUrl, requestTimeoutMs };
}

function nativeOf(id: string, http: HttpClient): NativeSandbox {
  try {
    return new NativeSandbox({ id, endpoint: http.baseUrl, http });
  } catch (error) {
    throw toE2BError(error, "sandbox");
  }
}

function handle(Class: typeof Sandbox, sandboxId: string, opts: ConnectionOpts | undefined): Sandbox {
  const all = effective(Class, opts);
  connectionOf(all);
  return new Class({ ...connectionOnly(all), sandboxId });
}

const snapshotInstead = "fork the sandbox, or pause it and connect to it later";
const networkInstead = "pass network to Sandbox.create; what a sandbox may reach is not changed while it runs";
const metricsInstead = "ask the server: GET /v1/metering";
const mcpInstead = "run the MCP server as a command in the sandbox and reach it with getUrl";

async function notAvailable(what: string, instead: string): Promise<never> {
  throw unavailable(what, instead);
}
