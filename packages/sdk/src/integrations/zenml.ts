import type { Connection } from "../config.ts";
import { create } from "../create.ts";
import { AgentRunError } from "../errors.ts";
import type { FileInfo } from "../files.ts";
import type { Execution } from "../run-code.ts";
import type { RunCodeOptions, Sandbox } from "../sandbox.ts";
import type { Network } from "../types.ts";
import { type CommandOutcome, type ExecutionOutcome, mapExecute, mapRunCode } from "./mapping.ts";

/** The name of the stack component's flavour. */
export const FLAVOR = "mitos";

/** Which server, which key, and what the sandbox is made from. */
export interface MitosSandboxOptions extends Connection {
  /** Default: `python`. */
  template?: string | undefined;
  /** Default: nothing is reached. */
  network?: Network | undefined;
}

/** What a component makes its sandbox from. */
export class MitosSandboxConfig {
  readonly template: string;
  readonly network: Network | undefined;
  readonly #connection: Connection;

  constructor({ template = "python", network, apiKey, baseUrl }: MitosSandboxOptions = {}) {
    this.template = template;
    this.network = network;
    this.#connection = { apiKey, baseUrl };
  }

  get baseUrl(): string | undefined {
    return this.#connection.baseUrl;
  }

  /** In use, and in no output. */
  get apiKey(): string | undefined {
    return this.#connection.apiKey;
  }
}

/** A sandbox as a component of a stack, as ZenML thinks of them: configured, provisioned for the steps of a pipeline, and taken down. */
export class MitosSandboxComponent {
  static readonly FLAVOR = FLAVOR;
  readonly config: MitosSandboxConfig;
  #provisioning: Promise<Sandbox> | undefined;
  #sandbox: Sandbox | undefined;

  constructor(config: MitosSandboxConfig | MitosSandboxOptions = {}) {
    this.config = config instanceof MitosSandboxConfig ? config : new MitosSandboxConfig(config);
  }

  /**
   * The flavour for ZenML's registry.
   *
   * @throws integration_dependency_missing, always: ZenML exists for Python only
   */
  static flavor(): never {
    throw new AgentRunError("zenml could not be loaded", {
      code: "integration_dependency_missing",
      cause: "ZenML is a Python package; there is none for JavaScript",
      remediation: "Use MitosSandboxComponent directly in a program, or the adapter of the Python client mitos-run in ZenML.",
      status: 501,
    });
  }

  /** The one sandbox of this component. @throws failed_precondition before it is provisioned */
  get sandbox(): Sandbox {
    if (this.#sandbox) return this.#sandbox;
    throw new AgentRunError("the component has no sandbox", {
      code: "failed_precondition",
      cause: "it is not provisioned",
      remediation: "Call provision() first, and await it.",
    });
  }

  /** Makes its sandbox; with one that is there, or on its way, nothing happens. */
  async provision(): Promise<Sandbox> {
    this.#provisioning ??= this.#create();
    return this.#provisioning;
  }

  /** Ends its sandbox for good; without one nothing happens. It can be provisioned again. */
  async deprovision(): Promise<void> {
    const sandbox = await this.#provisioning?.catch(() => undefined);
    this.#provisioning = undefined;
    this.#sandbox = undefined;
    await sandbox?.[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.deprovision();
  }

  /** @param timeoutSeconds - default: 60 */
  async runCommand(command: string, timeoutSeconds = 60): Promise<CommandOutcome> {
    return mapExecute(this.sandbox, command, timeoutSeconds);
  }

  async readFile(path: string): Promise<string> {
    return this.sandbox.files.read(path);
  }

  async writeFile(path: string, content: string | Uint8Array): Promise<void> {
    await this.sandbox.files.write(path, content);
  }

  async listFiles(path = "/"): Promise<FileInfo[]> {
    return this.sandbox.files.list(path);
  }

  async runCode(code: string, options: RunCodeOptions = {}): Promise<Execution> {
    return this.sandbox.runCode(code, options);
  }

  /** The same as plain data, for a step's artifacts. @param timeoutSeconds - default: 60 */
  async runCodeDict(code: string, language = "python", timeoutSeconds = 60): Promise<ExecutionOutcome> {
    return mapRunCode(this.sandbox, code, language, timeoutSeconds);
  }

  async #create(): Promise<Sandbox> {
    const { template, network, baseUrl, apiKey } = this.config;
    try {
      this.#sandbox = await create({ template, network, baseUrl, apiKey });
      return this.#sandbox;
    } catch (error) {
      this.#provisioning = undefined;
      throw error;
    }
  }
}
