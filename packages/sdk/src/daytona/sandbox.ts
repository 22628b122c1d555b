import type { Sandbox as MitosSandbox } from "../sandbox.ts";
import type { ServerSandbox } from "../types.ts";
import { notSupported, translated, within } from "./errors.ts";
import { FileSystem } from "./file-system.ts";
import { ephemeralLabel, languageLabel, refuseOthers } from "./params.ts";
import { workDir } from "./paths.ts";
import { CodeLanguage, Process } from "./process.ts";

/** The states that a sandbox of ours can be in. */
export const SandboxState = {
  STARTING: "starting",
  STARTED: "started",
  STOPPING: "stopping",
  STOPPED: "stopped",
  ERROR: "error",
  DESTROYED: "destroyed",
  UNKNOWN: "unknown",
} as const;
export type SandboxState = (typeof SandboxState)[keyof typeof SandboxState];

/** Where a port is reached, and with which token. */
export interface PortPreviewUrl {
  sandboxId: string;
  /** Opens the port as it is: the token is in it. */
  url: string;
  token: string;
}

/** Daytona's parameters of a fork with one child. */
export interface ForkSandboxParams {
  /** Becomes the child's id. Default: a new one. */
  name?: string;
}

const waitSeconds = 60;

/** One sandbox in Daytona's shape. Time-outs are seconds, 0 means none; the default is 60. */
export class Sandbox {
  readonly id: string;
  /** The sandbox itself, with all that Daytona's shape has no word for. */
  readonly sandbox: MitosSandbox;
  readonly process: Process;
  readonly fs: FileSystem;
  /** Where the client's sandboxes run. */
  readonly target: string;
  #row: ServerSandbox;

  /** @param row - as the server told it last */
  constructor(sandbox: MitosSandbox, row: ServerSandbox, target: string) {
    this.id = sandbox.id;
    this.sandbox = sandbox;
    this.target = target;
    this.#row = row;
    const languages: readonly string[] = Object.values(CodeLanguage);
    const language = row.metadata?.[languageLabel] ?? "";
    this.process = new Process(sandbox, languages.includes(language) ? (language as CodeLanguage) : CodeLanguage.PYTHON);
    this.fs = new FileSystem(sandbox);
  }

  get name(): string {
    return this.id;
  }

  /** As of the last call that told it: create, get, list, start, stop, delete or refreshData. */
  get state(): SandboxState {
    return toState(this.#row.state);
  }

  get labels(): Record<string, string> {
    const { [ephemeralLabel]: _, ...labels } = this.#row.metadata ?? {};
    return labels;
  }

  /** The template it was made from. */
  get snapshot(): string {
    return this.#row.templateId;
  }

  /** Cores. */
  get cpu(): number {
    return this.#row.resources?.vcpuCount ?? 0;
  }

  /** GiB. */
  get memory(): number {
    return (this.#row.resources?.memSizeMiB ?? 0) / 1024;
  }

  get createdAt(): string {
    return this.#row.createdAt;
  }

  async refreshData(): Promise<void> {
    this.#row = await translated(() => this.sandbox.info());
  }

  /** Goes on where `stop` left it: memory, processes and files. One that runs is fine. */
  async start(timeout: number = waitSeconds): Promise<void> {
    await within(`start of ${this.id}`, timeout, () => this.sandbox.resume());
    this.#row = { ...this.#row, state: "running" };
  }

  /** Saves the running state to disk and frees the memory; an ephemeral sandbox ends instead. */
  async stop(timeout: number = waitSeconds): Promise<void> {
    if (this.#row.metadata?.[ephemeralLabel]) return this.delete(timeout);
    await within(`stop of ${this.id}`, timeout, () => this.sandbox.pause());
    this.#row = { ...this.#row, state: "paused" };
  }

  /** Ends it for good. */
  async delete(timeout: number = waitSeconds): Promise<void> {
    await within(`deletion of ${this.id}`, timeout, () => this.sandbox.terminate());
    this.#row = { ...this.#row, state: "ended" };
  }

  /**
   * Children that continue from this sandbox's exact state: files, memory and running processes.
   *
   * @param count - with a number, that many children as a list; without, one child
   */
  fork(count: number, timeout?: number): Promise<Sandbox[]>;
  fork(params?: ForkSandboxParams, timeout?: number): Promise<Sandbox>;
  async fork(wanted: number | ForkSandboxParams = {}, timeout: number = waitSeconds): Promise<Sandbox | Sandbox[]> {
    if (typeof wanted === "object") refuseOthers(wanted, ["name"], "fork");
    const request = typeof wanted === "number" ? { count: wanted } : { id: wanted.name };
    const children = await within(`fork of ${this.id}`, timeout, (signal) => this.sandbox.fork({ ...request, signal }));
    const sandboxes = await Promise.all(children.map((child) => this.#sibling(child)));
    return typeof wanted === "number" ? sandboxes : sandboxes[0]!;
  }

  /** The URL under which a port inside answers, with the token that opens it. */
  async getPreviewLink(port: number): Promise<PortPreviewUrl> {
    const url = await translated(() => this.sandbox.getHost(port));
    return { sandboxId: this.id, url, token: new URL(url).searchParams.get("token") ?? "" };
  }

  async getWorkDir(): Promise<string> {
    return workDir;
  }

  async getUserHomeDir(): Promise<string> {
    return translated(async () => (await this.sandbox.exec('printf %s "$HOME"')).stdout);
  }

  /** @throws DaytonaError with `not_supported`, as the two that follow */
  get git(): never {
    throw notSupported("sandbox.git is", "Run git with process.executeCommand; the network rules have to let it out.");
  }

  get codeInterpreter(): never {
    throw notSupported(
      "sandbox.codeInterpreter is",
      "Use process.codeRun, whose interpreter keeps its variables, or sandbox.sandbox.runCode.",
    );
  }

  get computerUse(): never {
    throw notSupported("sandbox.computerUse is", "Run a display of your own in the sandbox and open it with getPreviewLink.");
  }

  async #sibling(child: MitosSandbox): Promise<Sandbox> {
    return new Sandbox(child, await translated(() => child.info()), this.target);
  }
}

function toState(state: string | undefined): SandboxState {
  const states: Readonly<Record<string, SandboxState>> = {
    starting: "starting",
    running: "started",
    pausing: "stopping",
    paused: "stopped",
    resuming: "starting",
    failed: "error",
    ended: "destroyed",
  };
  return states[state ?? ""] ?? "unknown";
}
