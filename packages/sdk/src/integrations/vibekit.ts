import type * as VibeKitSdk from "@vibe-kit/sdk";
import type { Connection } from "../config.ts";
import { create } from "../create.ts";
import type { FileInfo } from "../files.ts";
import type { Execution } from "../run-code.ts";
import { type ForkOptions, type RunCodeOptions, Sandbox } from "../sandbox.ts";
import type { Network } from "../types.ts";
import { loadFramework, withWholeMessage } from "./framework.ts";
import { asText, type CommandOutcome, mapExecute } from "./mapping.ts";

/** Which server, which key, and what the sandboxes are made from. */
export interface MitosVibeKitOptions extends Connection {
  /** What sandboxes are made from; it has to hold the agent's program. Default: `python`. */
  template?: string | undefined;
  /** What sandboxes may reach: the model, for one. Default: nothing. */
  network?: Network | undefined;
}

/**
 * Mitos as VibeKit's sandbox provider: `new VibeKit().withSandbox(new MitosVibeKitProvider())`. It needs nothing of VibeKit to work.
 *
 * What VibeKit calls fails with plain errors whose message holds the code of our catalogue and the remedy: VibeKit passes on nothing else.
 */
export class MitosVibeKitProvider implements VibeKitSdk.SandboxProvider {
  readonly name = "mitos";
  readonly #options: MitosVibeKitOptions;

  constructor(options: MitosVibeKitOptions = {}) {
    this.#options = options;
  }

  /**
   * A new sandbox. As VibeKit calls it, with variables, agent and folder: the variables hold the keys of model and repositories, so they are
   * secrets of the sandbox. As programs call it: with a template.
   */
  create(envs?: Record<string, string>, agentType?: VibeKitSdk.AgentType, workingDirectory?: string): Promise<MitosVibeKitSandbox>;
  create(template: string, options?: { network?: Network | undefined }): Promise<MitosVibeKitSandbox>;
  async create(first: Record<string, string> | string = {}, second?: unknown, workingDirectory?: string): Promise<MitosVibeKitSandbox> {
    if (typeof first === "string") {
      const { network } = (second ?? {}) as { network?: Network | undefined };
      return new MitosVibeKitSandbox(await create({ ...this.#options, template: first, network: network ?? this.#options.network }));
    }
    return withWholeMessage(async () => {
      const secrets = Object.keys(first).length > 0 ? first : undefined;
      const sandbox = await create({ ...this.#options, secrets });
      if (workingDirectory) await sandbox.files.mkdir(workingDirectory);
      return new MitosVibeKitSandbox(sandbox);
    });
  }

  /** A sandbox that exists, running again if it was paused. */
  resume(sandboxId: string): Promise<MitosVibeKitSandbox> {
    return withWholeMessage(async () => {
      const sandbox = await Sandbox.connect(sandboxId, this.#options);
      await sandbox.resume();
      return new MitosVibeKitSandbox(sandbox);
    });
  }

  /** VibeKit itself, with this provider set. @throws integration_dependency_missing */
  async asVibeKit(): Promise<VibeKitSdk.VibeKit> {
    const { VibeKit } = await loadFramework("@vibe-kit/sdk", () => import("@vibe-kit/sdk"));
    return new VibeKit().withSandbox(this);
  }
}

/** One sandbox, as VibeKit wants it and as programs do. */
export class MitosVibeKitSandbox implements VibeKitSdk.SandboxInstance {
  readonly sandbox: Sandbox;
  /** For VibeKit. */
  readonly commands: VibeKitSdk.SandboxCommands;

  constructor(sandbox: Sandbox) {
    this.sandbox = sandbox;
    this.commands = { run: (command, options) => withWholeMessage(() => run(sandbox, command, options)) };
  }

  get id(): string {
    return this.sandbox.id;
  }

  /** VibeKit's name of `id`. */
  get sandboxId(): string {
    return this.sandbox.id;
  }

  /** @param timeoutSeconds - default: 60 */
  runCommand(command: string, timeoutSeconds = 60): Promise<CommandOutcome> {
    return mapExecute(this.sandbox, command, timeoutSeconds);
  }

  /** The same. */
  execute(command: string, timeoutSeconds?: number): Promise<CommandOutcome> {
    return this.runCommand(command, timeoutSeconds);
  }

  readFile(path: string): Promise<string> {
    return this.sandbox.files.read(path);
  }

  writeFile(path: string, content: string | Uint8Array): Promise<void> {
    return this.sandbox.files.write(path, content);
  }

  listFiles(path = "/"): Promise<FileInfo[]> {
    return this.sandbox.files.list(path);
  }

  runCode(code: string, options: RunCodeOptions = {}): Promise<Execution> {
    return this.sandbox.runCode(code, options);
  }

  /** @param options.inheritSecrets - needed for a sandbox that VibeKit made with variables: they are secrets */
  async fork(count = 1, options: Pick<ForkOptions, "inheritSecrets"> = {}): Promise<MitosVibeKitSandbox[]> {
    const children = await this.sandbox.fork(count, options);
    return children.map((child) => new MitosVibeKitSandbox(child));
  }

  /** Ends it for good; one that has ended is fine. */
  kill(): Promise<void> {
    return withWholeMessage(() => this.sandbox[Symbol.asyncDispose]());
  }

  /** The same. */
  close(): Promise<void> {
    return this.kill();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }

  /** Saves its running state; the provider's `resume` goes on with it. */
  pause(): Promise<void> {
    return withWholeMessage(() => this.sandbox.pause());
  }

  /** A URL, with the token that opens the port. */
  getHost(port: number): Promise<string> {
    return withWholeMessage(() => this.sandbox.getHost(port));
  }
}

/** VibeKit's own default: an hour. */
const timeoutMsDefault = 3_600_000;

async function run(
  sandbox: Sandbox,
  command: string,
  { timeoutMs = timeoutMsDefault, background, onStdout, onStderr }: VibeKitSdk.SandboxCommandOptions = {},
): Promise<VibeKitSdk.SandboxExecutionResult> {
  const timeoutSeconds = Math.ceil(timeoutMs / 1000);
  const callbacks = { onStdout: onStdout && asText(onStdout), onStderr: onStderr && asText(onStderr) };
  if (background) {
    await sandbox.execBackground(command, { timeoutSeconds, ...callbacks }).started;
    return { exitCode: 0, stdout: "", stderr: "" };
  }
  const { exitCode, stdout, stderr } = await sandbox.exec(command, { timeoutSeconds, ...callbacks });
  return { exitCode, stdout, stderr };
}
