import { type ForwardJson, limits, newSandboxId, type PreviewJson, type Unchecked } from "@mitos/protocol";
import { type Connection, newIdempotencyKey, requireSandboxId, toBaseUrl } from "./config.ts";
import { ConnectClient } from "./connect.ts";
import { type CodeContext, ContextClient, type ContextOptions, type ContextRef, contextId } from "./contexts.ts";
import { type CreateOptions, create, type NamedCreateOptions } from "./create.ts";
import { AgentRunError, isObject, validateTimeout } from "./errors.ts";
import { type Command, collect, type ExecEvent, type ExecOptions, type ExecResult, execStream, type OutputCallbacks } from "./exec.ts";
import { SandboxFiles } from "./files.ts";
import { HttpClient } from "./http.ts";
import { BackgroundProcess, ProcessClient, type ProcessInfo, type ProcessOptions, withoutGaps } from "./processes.ts";
import { type ConnectPtyOptions, type CreatePtyOptions, createPty, Pty } from "./pty.ts";
import { type Execution, parseRunCodeConnect, type RunCodeCallbacks } from "./run-code.ts";
import { SandboxServer } from "./server.ts";
import { timerMs } from "./timer.ts";
import { type Preview, previewFromWire, type SandboxTree, type ServerSandbox, sandboxFromWire } from "./types.ts";

/** What a handle needs to know. `create` and `Sandbox.connect` make handles. */
export interface SandboxOptions {
  id: string;
  /** Base URL, or `host:port`, of the server that has it. */
  endpoint: string;
  token?: string | undefined;
  http?: HttpClient | undefined;
  /** What it was made from, as far as known. */
  template?: string | undefined;
  /** How long its start took on the server. */
  forkTimeMs?: number | undefined;
}

/** How a process is started that runs on by itself. With callbacks its output is followed at once. */
export interface BackgroundOptions extends OutputCallbacks {
  cwd?: string | undefined;
  env?: Readonly<Record<string, string>> | undefined;
  user?: string | undefined;
  /** Whether writeStdin will be used. */
  stdin?: boolean | undefined;
  /** Default: none. */
  timeoutSeconds?: number | undefined;
}

/** Language, time-out and callbacks of a run of code. */
export interface RunCodeOptions extends RunCodeCallbacks {
  /** `python` (default), `javascript` or `bash`. Each language has one default interpreter per sandbox, which keeps its state. */
  language?: string | undefined;
  /** In this interpreter instead of the default one; the language is then its own, and need not be given. */
  context?: ContextRef | undefined;
  /** Default: the server's 60 seconds. Interrupts the code; the interpreter and its state stay. */
  timeoutSeconds?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** How many children, and what they are given over what they inherit. */
export interface ForkOptions {
  /** Default: 1. */
  count?: number | undefined;
  /** The id of an only child; of several children `<id>-0`, `<id>-1`, … */
  id?: string | undefined;
  /** Set in every child over what it inherits. */
  env?: Readonly<Record<string, string>> | undefined;
  /** Default: what remains of the parent's. */
  timeoutSeconds?: number | undefined;
  /** A sandbox that was given secrets refuses to fork unless this is true. */
  inheritSecrets?: boolean | undefined;
  /** How many children programs inside each child may make of it. Default: 0, whatever this sandbox has. */
  forkBudget?: number | undefined;
  /** How long to wait for the answer. Default: 130,000. */
  timeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** The children, and what the fork cost where the server tells it. */
export interface ForkedSandboxes extends Array<Sandbox> {
  /** How long the parent stood still. */
  pausedMs?: number;
  snapshotBytes?: number;
}

/** How far an end reaches. */
export interface TerminateOptions {
  /** Also everything that was forked from it. */
  subtree?: boolean | undefined;
}

const forkTimeoutMs = 130_000;
/** What the server assumes when exec asks for nothing. */
const execTimeoutSecondsDefault = 30;

/** One sandbox on one server. With `await using` it is terminated at the end of the block. */
export class Sandbox {
  readonly id: string;
  readonly endpoint: string;
  readonly template: string;
  readonly forkTimeMs: number;
  readonly files: SandboxFiles;
  readonly #http: HttpClient;
  readonly #connect: ConnectClient;
  readonly #processes: ProcessClient;
  readonly #contexts: ContextClient;

  constructor({ id, endpoint, token, http, template = "", forkTimeMs = 0 }: SandboxOptions) {
    requireSandboxId(id);
    this.id = id;
    this.endpoint = toBaseUrl(endpoint);
    this.template = template;
    this.forkTimeMs = forkTimeMs;
    this.#http = http ?? new HttpClient(this.endpoint, token);
    this.#connect = new ConnectClient(this.#http, id);
    this.#processes = new ProcessClient(this.#http, id);
    this.#contexts = new ContextClient(this.#http, id);
    this.files = new SandboxFiles(this.#connect, this.#http, id);
  }

  /** @see create */
  static create(first?: string | CreateOptions, more?: NamedCreateOptions): Promise<Sandbox> {
    return create(first, more);
  }

  /** A handle on a sandbox that exists. @throws not_found; idle_timeout for one that has ended */
  static async connect(id: string, connection: Connection = {}): Promise<Sandbox> {
    requireSandboxId(id);
    const http = HttpClient.fromAuth(connection);
    const row = sandboxFromWire((await http.get(`/v1/sandboxes/${id}`)) as Record<string, unknown>);
    return new Sandbox({ id, endpoint: http.baseUrl, http, template: row.templateId, forkTimeMs: row.forkTimeMs });
  }

  static async list(connection: Connection = {}): Promise<ServerSandbox[]> {
    return SandboxServer.fromAuth(connection).listSandboxes();
  }

  /**
   * Runs a program to its end.
   *
   * @throws exec_timeout when its time is up, canceled when the signal fires; either way the whole process group is killed
   */
  exec(command: Command, options: ExecOptions & OutputCallbacks = {}): Promise<ExecResult> {
    return collect(this.execStream(command, options), options, options.timeoutSeconds ?? execTimeoutSecondsDefault);
  }

  /** Runs a program and yields what it prints, while it prints. Leaving the iteration before its end kills the process group. */
  execStream(command: Command, options: ExecOptions = {}): AsyncGenerator<ExecEvent, void, undefined> {
    // The published exec message has no user; a process that is started on its own has.
    return options.user === undefined ? execStream(this.#connect, command, options) : this.#execAs(command, options);
  }

  /** Starts a program that runs on whether anyone listens or not. The handle is there at once; `started` tells the pid or the failure. */
  execBackground(command: Command, options: BackgroundOptions = {}): BackgroundProcess {
    const { onStdout, onStderr, ...start } = options;
    return new BackgroundProcess(this.#processes, this.#start(command, start), { onStdout, onStderr });
  }

  /** A handle on a process that runs already: one of an earlier program of ours, or one that a fork's child has inherited. */
  connectProcess(pid: number, callbacks: OutputCallbacks = {}): BackgroundProcess {
    return new BackgroundProcess(this.#processes, pid, callbacks);
  }

  /** The processes that were started with execBackground or a terminal, also ended ones for a while. */
  processes(): Promise<ProcessInfo[]> {
    return this.#processes.list();
  }

  /**
   * The end of what the sandbox's machine has said beside its programs, at most 256 KiB: a microVM's kernel, the agent, and what runs the machine.
   * For finding out what is wrong with a sandbox. Not of its programs' making, but they may have their say in it: as untrusted as their output.
   *
   * @throws sandbox_not_running, not_supported on the mock engine
   */
  async console(): Promise<Uint8Array<ArrayBuffer>> {
    const path = `/v1/sandboxes/${this.id}/console`;
    return this.#http.bytes(path, await this.#http.send("GET", path, undefined));
  }

  /**
   * Runs code in the language's live interpreter, or in that of a context. An exception in the code is a result: `error`.
   *
   * @throws not_found for an unknown context, invalid_input for one of another language
   */
  async runCode(code: string, options: RunCodeOptions = {}): Promise<Execution> {
    const { context, language = context === undefined ? "python" : undefined, timeoutSeconds, signal } = options;
    validateTimeout(timeoutSeconds);
    const request = { code, language, timeoutSeconds };
    const headers = context === undefined ? undefined : { "Mitos-Context": contextId(context) };
    return parseRunCodeConnect(this.#connect.serverStream("RunCodeStream", request, signal, headers), options);
  }

  /** One more interpreter, with variables of its own. @throws not_found for a `cwd` that does not exist, sandbox_exhausted for too many */
  createContext(options: ContextOptions = {}): Promise<CodeContext> {
    return this.#contexts.create(options);
  }

  /** The default interpreters that run, and all that were created. */
  listContexts(): Promise<CodeContext[]> {
    return this.#contexts.list();
  }

  /** Forgets its variables and ends what its code has started. Code that runs in it ends with the error `KernelDied`. */
  restartContext(context: ContextRef): Promise<CodeContext> {
    return this.#contexts.restart(context);
  }

  /** Ends it. Of a default one the next runCode makes a new one. */
  removeContext(context: ContextRef): Promise<void> {
    return this.#contexts.remove(context);
  }

  /** A terminal with a shell, or the given program, on it. */
  createPty(onData: (data: Uint8Array) => void, options: CreatePtyOptions = {}): Promise<Pty> {
    return createPty(this.#processes, onData, options);
  }

  /** The name of createPty in the other SDKs. */
  pty(onData: (data: Uint8Array) => void, options: CreatePtyOptions = {}): Promise<Pty> {
    return this.createPty(onData, options);
  }

  /** Goes on with a terminal that exists: after a lost connection, or one that a fork's child has inherited. */
  connectPty(pid: number, onData: (data: Uint8Array) => void, options: ConnectPtyOptions = {}): Pty {
    return new Pty(this.#processes, pid, onData, options);
  }

  /**
   * Forks this running sandbox: every child continues from its exact state, files, memory and processes, and then goes its own way.
   * This sandbox runs on. All children start or none does.
   *
   * @throws fork_unavailable when the server does not answer in time
   */
  async fork(count?: number | ForkOptions, options: ForkOptions = {}): Promise<ForkedSandboxes> {
    const wanted = typeof count === "object" ? count : { ...options, count: count ?? options.count };
    const ids = childIds(wanted.count ?? 1, wanted.id);
    const answer = await this.#fork(ids, wanted).catch((error: unknown) => {
      if (ids.length === 1 || !isUnknownCount(error)) throw error;
      return this.#fork(ids.slice(0, 1), wanted);
    });
    if (isObject(answer) && Array.isArray(answer.children)) {
      const children: ForkedSandboxes = answer.children.filter(isObject).map((row) => this.#child(row));
      if (typeof answer.paused_ms === "number") children.pausedMs = answer.paused_ms;
      if (typeof answer.snapshot_bytes === "number") children.snapshotBytes = answer.snapshot_bytes;
      return children;
    }
    return this.#forkOneByOne(answer, ids, wanted);
  }

  /** The sandbox as the server knows it now. */
  async info(): Promise<ServerSandbox> {
    return sandboxFromWire((await this.#http.get(`/v1/sandboxes/${this.id}`)) as Record<string, unknown>);
  }

  /** This sandbox with everything that was forked from it. */
  async tree(): Promise<SandboxTree> {
    return toTree((await this.#http.get(`/v1/sandboxes/${this.id}/tree`)) as Record<string, unknown>);
  }

  /** It ends this many seconds from now, whatever was set before. @returns the deadline in Unix seconds */
  async setTimeout(timeoutSeconds: number): Promise<number> {
    validateTimeout(timeoutSeconds);
    const answer = await this.#http.post("/v1/set_timeout", { sandbox: this.id, timeout_seconds: timeoutSeconds });
    return Number((answer as { deadline_unix?: unknown }).deadline_unix);
  }

  /** Saves it to disk and frees its memory. Until `resume`, every call that needs it running is refused. */
  async pause(): Promise<void> {
    await this.#http.post("/v1/pause", { sandbox: this.id });
  }

  async resume(): Promise<void> {
    await this.#http.post("/v1/resume", { sandbox: this.id });
  }

  /** The URL under which a port inside answers from outside, for an hour unless the server was told otherwise. The token in it is the key. */
  async getHost(port = 80): Promise<string> {
    return (await this.preview(port)).url;
  }

  /** The same with all that the server says of it. */
  async preview(port = 80): Promise<Preview> {
    requirePort(port);
    return previewFromWire((await this.#http.post("/v1/preview", { sandbox: this.id, port })) as Unchecked<PreviewJson>);
  }

  /**
   * Opens a listener on the loopback of the server's host for a port inside: for protocols that are not HTTP. It outlives a pause and ends
   * with the sandbox.
   *
   * @returns `127.0.0.1:<port>`
   */
  async forward(port: number): Promise<string> {
    requirePort(port);
    const answer = (await this.#http.post(`/v1/sandboxes/${this.id}/forward`, { guest_port: port })) as Unchecked<ForwardJson>;
    return String(answer.host);
  }

  /** Ends it for good, with everything in it. */
  async terminate({ subtree = false }: TerminateOptions = {}): Promise<void> {
    await this.#http.del(`/v1/sandboxes/${this.id}${subtree ? "?subtree=true" : ""}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.terminate();
    } catch (error) {
      // Ended already, by its time-out or by somebody else: what was wanted.
      if (error instanceof AgentRunError && (error.status === 404 || error.status === 410)) return;
      throw error;
    }
  }

  #start(command: Command, { cwd, env, user, stdin, timeoutSeconds }: ProcessOptions): Promise<number> {
    try {
      validateTimeout(timeoutSeconds);
    } catch (error) {
      return Promise.reject(error);
    }
    return this.#processes.start(command, { cwd, env, user, stdin, timeoutSeconds });
  }

  async *#execAs(command: Command, options: ExecOptions): AsyncGenerator<ExecEvent, void, undefined> {
    const { signal, timeoutSeconds = execTimeoutSecondsDefault, ...start } = options;
    const pid = await this.#start(command, { ...start, timeoutSeconds });
    let ended = false;
    try {
      for await (const event of withoutGaps(this.#processes.output(pid, { signal }))) {
        ended = event.type === "exit";
        yield event;
      }
    } finally {
      if (!ended) await this.#processes.signal(pid, 9).catch(() => undefined);
    }
  }

  async #fork(ids: readonly string[], options: ForkOptions): Promise<unknown> {
    const { timeoutMs = forkTimeoutMs, signal } = options;
    const deadline = AbortSignal.timeout(timerMs(timeoutMs));
    const body = {
      ...(ids.length === 1 ? { id: ids[0] } : { ids }),
      count: ids.length,
      template: this.template || undefined,
      pause_source: true,
      env: options.env,
      timeout_seconds: options.timeoutSeconds,
      inherit_secrets: options.inheritSecrets,
      fork_budget: options.forkBudget,
    };
    try {
      const headers = { "Idempotency-Key": newIdempotencyKey() };
      const either = signal ? AbortSignal.any([signal, deadline]) : deadline;
      return await this.#http.post(`/v1/sandboxes/${this.id}/fork`, body, headers, either);
    } catch (error) {
      if (!deadline.aborted || signal?.aborted) throw error;
      throw new AgentRunError("the fork was not answered in time", {
        code: "fork_unavailable",
        cause: `${this.endpoint} did not answer within ${timeoutMs} ms`,
        remediation: "Look at the server's load, terminate sandboxes that are not needed, and fork again.",
      });
    }
  }

  /** A server that knows no `count` has made one child, of the first id. If a later one fails, none stays. */
  async #forkOneByOne(first: unknown, ids: readonly string[], options: ForkOptions): Promise<ForkedSandboxes> {
    const children: ForkedSandboxes = [this.#child(first as Record<string, unknown>)];
    try {
      for (const id of ids.slice(1)) children.push(this.#child((await this.#fork([id], options)) as Record<string, unknown>));
    } catch (error) {
      await Promise.allSettled(children.map((child) => child.terminate()));
      throw error;
    }
    return children;
  }

  #child(row: Record<string, unknown>): Sandbox {
    const { id, templateId, forkTimeMs } = sandboxFromWire(row);
    return new Sandbox({ id, endpoint: this.endpoint, http: this.#http, template: templateId || this.template, forkTimeMs });
  }
}

function requirePort(port: number): void {
  if (Number.isInteger(port) && port >= 1 && port <= 65_535) return;
  throw new AgentRunError("the port is not valid", {
    code: "invalid_input",
    cause: `${port} is not a whole number from 1 to 65535`,
    remediation: "Pass the port on which the program in the sandbox listens.",
  });
}

function childIds(count: number, id: string | undefined): string[] {
  if (!Number.isInteger(count) || count < 1 || count > limits.forkCountMax) {
    throw new AgentRunError("the number of children is not valid", {
      code: "invalid_input",
      cause: `${count} is not a whole number from 1 to ${limits.forkCountMax}`,
      remediation: "Pass how many children the fork should have; fork again for more.",
    });
  }
  if (id === undefined) return Array.from({ length: count }, () => newSandboxId());
  const ids = count === 1 ? [id] : Array.from({ length: count }, (_, index) => `${id}-${index}`);
  ids.forEach(requireSandboxId);
  return ids;
}

/** An older server makes one child per request and misses its `id`; ours calls no well-formed request invalid JSON. */
function isUnknownCount(error: unknown): boolean {
  return error instanceof AgentRunError && error.status === 400 && error.code === "invalid_json";
}

function toTree(row: Record<string, unknown>): SandboxTree {
  const { children: _ids, ...sandbox } = sandboxFromWire(row);
  const children = Array.isArray(row.children) ? row.children.filter(isObject).map(toTree) : [];
  return { ...sandbox, children };
}
