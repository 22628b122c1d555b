import type * as ComputeSdk from "@computesdk/provider";
import { newSandboxId } from "@mitos/protocol";
import { type Connection, withHiddenKey } from "../config.ts";
import { type CreateOptions, create } from "../create.ts";
import { AgentRunError, MAX_EXEC_TIMEOUT_SECONDS } from "../errors.ts";
import { collect } from "../exec.ts";
import { Sandbox } from "../sandbox.ts";
import { SandboxServer } from "../server.ts";
import type { ServerSandbox } from "../types.ts";
import { loadFramework, withWholeMessage } from "./framework.ts";
import { asText } from "./mapping.ts";

/** Which server, which key, and what sandboxes are made from. */
export interface MitosComputeConfig extends Connection {
  /** What sandboxes are made from that ask for nothing else. Default: `python`. */
  template?: string | undefined;
}

/** What `compute.setConfig({ provider })` takes. */
export type MitosProvider = ComputeSdk.Provider<Sandbox, never, MitosSnapshot>;

/** The saved state of a sandbox: memory, processes and files. */
export interface MitosSnapshot {
  id: string;
  provider: "mitos";
  createdAt: Date;
  /** `sandboxId`: whose state it is. */
  metadata: { sandboxId: string };
}

/**
 * Mitos as a provider for ComputeSDK: `compute.setConfig({ provider: mitos({ baseUrl }) })`. `getInstance()` of its sandboxes is the Mitos
 * sandbox, with fork, runCode, terminals and all else.
 *
 * `@computesdk/provider` is loaded by the first call. Failures are plain errors, as ComputeSDK expects them, whose message holds the code of
 * our catalogue and the remedy.
 */
export function mitos(config: MitosComputeConfig = {}): MitosProvider {
  let loading: Promise<MitosProvider> | undefined;
  const loaded = () => {
    // What ComputeSDK makes keeps the configuration where everyone sees it.
    loading ??= withWholeMessage(() => loadFramework("@computesdk/provider", () => import("@computesdk/provider"))).then((framework) =>
      framework.defineProvider<Sandbox, MitosComputeConfig, never, MitosSnapshot>({ name, methods: { sandbox, snapshot } })(
        withHiddenKey(config),
      ),
    );
    return loading;
  };
  return {
    name,
    sandbox: {
      create: async (options) => (await loaded()).sandbox.create(options),
      getById: async (id) => (await loaded()).sandbox.getById(id),
      list: async () => (await loaded()).sandbox.list(),
      destroy: async (id) => (await loaded()).sandbox.destroy(id),
    },
    snapshot: {
      create: async (id, options) => (await loaded()).snapshot!.create(id, options),
      list: async (options) => (await loaded()).snapshot!.list(options),
      delete: async (id) => (await loaded()).snapshot!.delete(id),
    },
  };
}

const name = "mitos";

const sandbox: ComputeSdk.SandboxMethods<Sandbox, MitosComputeConfig> = {
  create: (config, options = {}) =>
    withWholeMessage(async () => found(await (options.snapshotId ? restore(config, options) : create(toCreateOptions(config, options))))),

  getById: (config, sandboxId) =>
    withWholeMessage(async () => {
      try {
        return found(await Sandbox.connect(sandboxId, config));
      } catch (error) {
        if (isGone(error)) return null;
        throw error;
      }
    }),

  list: (config) =>
    withWholeMessage(async () => {
      const server = SandboxServer.fromAuth(config);
      const rows = await server.listSandboxes();
      return rows.filter((row) => !isSnapshot(row)).map((row) => found(server.handle(row.id, row.templateId)));
    }),

  destroy: (config, sandboxId) =>
    withWholeMessage(async () => {
      try {
        await SandboxServer.fromAuth(config).handle(sandboxId).terminate();
      } catch (error) {
        // One that has ended by itself is what was wanted; an unknown one may be another provider's.
        if (!(error instanceof AgentRunError) || error.status !== 410) throw error;
      }
    }),

  runCommand: (instance, command, options = {}) => withWholeMessage(() => run(instance, command, options)),
  streamCommand: (instance, command, options) => withWholeMessage(() => run(instance, command, options)),

  getInfo: (instance) => withWholeMessage(async () => toInfo(await instance.info())),

  getUrl: (instance, { port, protocol }) => withWholeMessage(async () => withProtocol(await instance.getHost(port), protocol)),

  filesystem: {
    readFile: (instance, path) => withWholeMessage(() => instance.files.read(path)),
    writeFile: (instance, path, content) => withWholeMessage(() => instance.files.write(path, content)),
    mkdir: (instance, path) => withWholeMessage(() => instance.files.mkdir(path)),
    readdir: (instance, path) =>
      withWholeMessage(async () =>
        (await instance.files.list(path)).map(({ name, isDir, size, modifiedAt }) => ({
          name,
          type: isDir ? "directory" : "file",
          size,
          ...(modifiedAt === undefined ? {} : { modified: new Date(Number(modifiedAt) * 1000) }),
        })),
      ),
    exists: (instance, path) => withWholeMessage(() => instance.files.exists(path)),
    remove: (instance, path) => withWholeMessage(() => instance.files.remove(path)),
  },
};

/**
 * A snapshot is a child of the sandbox that is paused right away: its state lies on the server's disk, it outlives its parent, and
 * sandboxes that are created from it are its children. That of a sandbox with a time limit is kept for a day.
 */
const snapshot: ComputeSdk.SnapshotMethods<MitosSnapshot, MitosComputeConfig> = {
  create: (config, sandboxId, options = {}) =>
    withWholeMessage(async () => {
      if (options.metadata) throw invalidInput("a snapshot has no metadata of its own", "Leave them out; it has those of its sandbox.");
      const id = snapshotPrefix + (options.name ?? newSandboxId().slice(-8));
      const parent = SandboxServer.fromAuth(config).handle(sandboxId);
      // A child has what remains of its parent's time; saved state is to outlive it.
      const timeoutSeconds = (await parent.info()).deadlineUnix ? MAX_EXEC_TIMEOUT_SECONDS : undefined;
      const [saved] = await parent.fork({ id, timeoutSeconds });
      try {
        await saved!.pause();
        return toSnapshot(await saved!.info());
      } catch (error) {
        await saved!.terminate().catch(() => undefined);
        throw error;
      }
    }),

  list: (config, options = {}) =>
    withWholeMessage(async () => {
      const rows = await SandboxServer.fromAuth(config).listSandboxes({ parent: options.sandboxId });
      return rows.filter(isSnapshot).map(toSnapshot).slice(0, options.limit);
    }),

  delete: (config, snapshotId) =>
    withWholeMessage(async () => {
      requireSnapshot(snapshotId);
      await SandboxServer.fromAuth(config).handle(snapshotId).terminate();
    }),
};

/** By which a snapshot is told from a sandbox that was paused. */
const snapshotPrefix = "snapshot-";

async function restore(config: MitosComputeConfig, options: ComputeSdk.CreateSandboxOptions): Promise<Sandbox> {
  const { snapshotId = "", envs, timeout, signal } = options;
  requireSnapshot(snapshotId);
  if (options.metadata) throw invalidInput("a restored sandbox has the metadata of its snapshot", "Leave `metadata` out.");
  const saved = SandboxServer.fromAuth(config).handle(snapshotId);
  const [restored] = await saved.fork({ env: envs, timeoutSeconds: toSeconds(timeout), signal });
  return restored!;
}

/** ComputeSDK knows no units of its own for sizes: fields that name theirs are read. */
function toCreateOptions({ apiKey, baseUrl, template }: MitosComputeConfig, options: ComputeSdk.CreateSandboxOptions): CreateOptions {
  const { templateId, image, runtime, envs, metadata = {}, timeout, signal } = options;
  const vcpuCount = options.vcpus ?? options.cpus ?? options.cpu;
  const memSizeMiB = options.memoryMiB ?? options.memMiB;
  return {
    apiKey,
    baseUrl,
    template: templateId ?? image ?? runtime ?? template,
    env: envs,
    metadata: Object.fromEntries(
      Object.entries({ ...metadata, ...(options.name === undefined ? {} : { name: options.name }) }).map(([key, value]) => [
        key,
        typeof value === "string" ? value : JSON.stringify(value),
      ]),
    ),
    timeoutSeconds: toSeconds(timeout),
    resources: vcpuCount === undefined && memSizeMiB === undefined ? undefined : { vcpuCount, memSizeMiB },
    signal,
  };
}

/** A program's time-out is a result here: exit code 124, with what it had printed. */
async function run(
  instance: Sandbox,
  command: string,
  { cwd, env, timeout, background, onStdout, onStderr }: ComputeSdk.RunCommandOptions,
): Promise<ComputeSdk.CommandResult> {
  const startedMs = performance.now();
  if (background) {
    await instance.execBackground(command, { cwd, env, timeoutSeconds: toSeconds(timeout) }).started;
    return { stdout: "", stderr: "", exitCode: 0, durationMs: performance.now() - startedMs };
  }
  const timeoutSeconds = toSeconds(timeout) ?? MAX_EXEC_TIMEOUT_SECONDS;
  const callbacks = { onStdout: onStdout && asText(onStdout), onStderr: onStderr && asText(onStderr) };
  const { stdout, stderr, exitCode } = await collect(instance.execStream(command, { cwd, env, timeoutSeconds }), callbacks, undefined);
  return { stdout, stderr, exitCode, durationMs: performance.now() - startedMs };
}

/** ComputeSDK counts milliseconds, we count whole seconds. */
function toSeconds(milliseconds: number | undefined): number | undefined {
  if (milliseconds === undefined) return undefined;
  if (Number.isFinite(milliseconds) && milliseconds > 0) return Math.ceil(milliseconds / 1000);
  throw invalidInput(`${milliseconds} is not a time-out`, "Pass milliseconds, above 0.");
}

function toInfo(row: ServerSandbox): ComputeSdk.SandboxInfo {
  const createdAt = new Date(row.createdAt);
  return {
    id: row.id,
    provider: name,
    status: row.state === "running" ? "running" : row.state === "failed" ? "error" : "stopped",
    createdAt,
    // From its creation to its deadline; 0 when it has none.
    timeout: typeof row.deadlineUnix === "number" ? row.deadlineUnix * 1000 - createdAt.getTime() : 0,
    metadata: { ...row.metadata },
  };
}

/** The server has one scheme for its previews: what is asked for has to be as safe as that. */
function withProtocol(url: string, protocol: string | undefined): string {
  const secure = url.startsWith("https:");
  const schemes = secure ? ["https", "wss"] : ["http", "ws"];
  if (protocol === undefined || protocol === schemes[0]) return url;
  if (protocol === schemes[1]) return url.replace(/^https?/, protocol);
  throw invalidInput(`previews of this server are not ${protocol}`, `Ask for ${schemes.join(" or ")}, or leave the protocol out.`);
}

function toSnapshot(row: ServerSandbox): MitosSnapshot {
  return { id: row.id, provider: name, createdAt: new Date(row.createdAt), metadata: { sandboxId: row.parentId ?? "" } };
}

function isSnapshot({ id }: ServerSandbox): boolean {
  return id.startsWith(snapshotPrefix);
}

function requireSnapshot(id: string): void {
  if (!id.startsWith(snapshotPrefix))
    throw invalidInput(`${JSON.stringify(id)} is not a snapshot`, "Pass an id that snapshot.create gave.");
}

function found(instance: Sandbox): { sandbox: Sandbox; sandboxId: string } {
  return { sandbox: instance, sandboxId: instance.id };
}

function isGone(error: unknown): boolean {
  return error instanceof AgentRunError && (error.status === 404 || error.status === 410);
}

function invalidInput(cause: string, remediation: string): AgentRunError {
  return new AgentRunError("the call is not valid", { code: "invalid_input", cause, remediation });
}
