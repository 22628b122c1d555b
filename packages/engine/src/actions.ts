/**
 * The typed set of actions and answers between server and engine. The server parses, authorises, calls one of these, and answers.
 * Every failure is a MitosError of the catalogue.
 */

import type { SandboxId, TemplateId } from "@mitos/protocol";
import type { sandbox as pb } from "@mitos/protocol/proto";
import type { Isolation, MachineResources, Metering, ReadyStarts } from "./driver.ts";
import type { Digest } from "./layers/layer.ts";

/** Whose a thing is: both names together, as they stand on the key that it was made with. */
export interface Owner {
  readonly owner: string;
  readonly organisation: string;
}

export interface NetworkPolicy {
  readonly block: boolean;
  readonly egress: "deny" | "allow";
  readonly allowDomains: readonly string[];
  readonly allowCidrs: readonly string[];
  readonly inbound: "deny" | "allow";
  readonly inboundCidrs: readonly string[];
}

/** When a template's program is ready to be saved. */
export type ReadyCheck = { readonly timeoutSeconds: number } & (
  | { readonly kind: "http"; readonly port: number; readonly path: string; readonly expect: number }
  /** Somebody listens. */
  | { readonly kind: "port"; readonly port: number }
  /** Ends with 0. Run by the shell every so often until it does. */
  | { readonly kind: "command"; readonly command: string }
);

export interface Workload {
  /** Empty = the image's own entrypoint and command. */
  readonly command: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly ready?: ReadyCheck | undefined;
}

/** One step of a build, in order. What `env`, `workdir` and `user` say holds for the steps after them and for the sandboxes. */
export type BuildStep =
  /** For the shell. */
  | { readonly kind: "run"; readonly command: string }
  /** `expand`: `${NAME}` in the value stands for what the variable is before this step, the image's own included. */
  | { readonly kind: "env"; readonly name: string; readonly value: string; readonly expand?: true | undefined }
  /** Absolute, or relative to the one before. Made when it is missing. */
  | { readonly kind: "workdir"; readonly path: string }
  | { readonly kind: "user"; readonly user: string }
  /** The files of a context that was handed in with `putContext`, to a path of the sandbox. `source` is what the user called it. */
  | { readonly kind: "copy"; readonly source: string; readonly dest: string; readonly context: Digest };

/** Code that runs in a kernel before the template is saved, so that its imports are there in every sandbox. */
export interface WarmCode {
  readonly language: Language;
  readonly code: string;
  readonly timeoutSeconds: number;
}

export interface TemplateRequest {
  readonly id: TemplateId;
  /**
   * What the root is made of: `python`, `node` and `base` (the driver's own root, unless the configured registry has an image of that name), another
   * template of this server, or an image reference. Absent: the id itself where it is an image reference, else as published clients expect it of any
   * name, the driver's own root, which the answer then says in `warnings`.
   */
  readonly image?: string | undefined;
  readonly steps?: readonly BuildStep[] | undefined;
  readonly warm?: WarmCode | undefined;
  readonly network: NetworkPolicy;
  readonly workload?: Workload | undefined;
  readonly resources: MachineResources;
  /** Who may redefine it, and in whose organisation results of steps are shared; null or absent = made without a key. Not a part of the definition. */
  readonly owner?: Owner | null | undefined;
}

/** What a template's root is made of, as it was resolved. */
export interface TemplateSource {
  readonly kind: "host" | "image" | "build";
  /** In full; empty for the driver's own root. */
  readonly reference: string;
  readonly digest: Digest | null;
  readonly layers: number;
  /** Of its files, those that it shares with other templates included. 0 for the own root. */
  readonly rootBytes: number;
}

export interface Template extends TemplateRequest {
  readonly ready: boolean;
  readonly source: TemplateSource;
  readonly snapshotBytes: number;
  /** What the user should know, such as that the name was not known and the own root was taken. */
  readonly warnings: readonly string[];
  readonly createdAtMs: number;
  readonly creationTimeMs: number;
}

/** What happens while a template is made. Kept, and told from the first moment. */
export type BuildEvent = { readonly atMs: number } & (
  | { readonly kind: "phase"; readonly phase: "resolve" | "pull" | "step" | "boot" | "start" | "warm" | "save"; readonly detail: string }
  | {
      readonly kind: "layer";
      readonly digest: Digest;
      /** `shared`: it was here already, or at the registry that it is pushed to. */
      readonly state: "waiting" | "downloading" | "unpacking" | "uploading" | "done" | "shared";
      readonly doneBytes: number;
      /** Compressed. */
      readonly totalBytes: number;
    }
  | {
      readonly kind: "step";
      /** From 0. */
      readonly index: number;
      readonly count: number;
      readonly type: BuildStep["kind"];
      readonly label: string;
      readonly state: "running" | "cached" | "done" | "failed";
      readonly ms: number;
    }
  /** Whole lines where there are any. */
  | { readonly kind: "log"; readonly step: number | null; readonly stream: "stdout" | "stderr"; readonly text: string }
  | { readonly kind: "warning"; readonly text: string }
  | { readonly kind: "done"; readonly creationTimeMs: number }
  | { readonly kind: "failed"; readonly code: string; readonly message: string; readonly cause: string; readonly remediation: string }
);

export interface BuildOptions {
  /** Ends the build unless others wait for it too. */
  readonly signal?: AbortSignal | undefined;
  readonly onEvent?: ((event: BuildEvent) => void) | undefined;
  /** Runs every step, whatever is stored. */
  readonly noCache?: boolean | undefined;
  /** Asks the registry again what a tag means. */
  readonly pull?: boolean | undefined;
}

/** Which thing a name means on this server: the first of these that exists. */
export interface NameMeaning {
  readonly name: string;
  readonly means: "template" | "image" | "host" | "nothing";
  /** Of an image: in full. */
  readonly reference: string;
}

export interface ImageSummary {
  readonly reference: string;
  readonly digest: Digest;
  readonly layers: number;
  readonly rootBytes: number;
  readonly pulledAtMs: number;
  readonly lastUsedAtMs: number;
}

/** Bytes on disk. What several things share is counted once, in `layers`. */
export interface DiskUsage {
  readonly templates: readonly {
    readonly id: TemplateId;
    readonly snapshotBytes: number;
    /** Of its layers, those that it shares included. */
    readonly rootBytes: number;
    /** Of layers that no other template has. */
    readonly ownBytes: number;
  }[];
  readonly layers: { readonly count: number; readonly bytes: number; readonly unusedBytes: number };
  /** Downloads, contexts of builds, stored steps' logs. */
  readonly caches: { readonly bytes: number };
  readonly snapshots: { readonly bytes: number };
  /** What unused layers and caches together may have before the oldest are removed. */
  readonly cacheBytesMax: number;
}

export type SandboxState = "starting" | "running" | "pausing" | "paused" | "resuming" | "ended" | "failed";

export interface Sandbox {
  readonly id: SandboxId;
  readonly templateId: TemplateId;
  readonly parentId: SandboxId | null;
  readonly state: SandboxState;
  readonly isolation: Isolation;
  readonly resources: MachineResources;
  readonly network: NetworkPolicy;
  readonly metadata: Readonly<Record<string, string>>;
  readonly createdAtMs: number;
  readonly forkTimeMs: number;
  /** Absolute; null = lives until it is terminated. */
  readonly deadlineMs: number | null;
  readonly idleTimeoutSeconds: number | null;
  /** Why it ended or failed; null while it lives. */
  readonly endReason: string | null;
  readonly children: readonly SandboxId[];
  /** Null = made without a key. Children have their parent's. */
  readonly owner: Owner | null;
  /** How many children it may ask for from inside, those that it has had included. */
  readonly forkBudget: number;
  readonly forksUsed: number;
}

export interface CreateRequest {
  readonly template: TemplateId;
  readonly id: SandboxId;
  readonly env: Readonly<Record<string, string>>;
  /** Kept in memory only. */
  readonly secrets: Readonly<Record<string, string>>;
  readonly timeoutSeconds: number | null;
  readonly idleTimeoutSeconds: number | null;
  readonly metadata: Readonly<Record<string, string>>;
  readonly resources?: Partial<MachineResources> | undefined;
  /** Instead of the template's; its children inherit it. */
  readonly network?: NetworkPolicy | undefined;
  /** How many children the sandbox may ask for from inside: 0 (default) to limits.forkBudgetMax. */
  readonly forkBudget?: number | undefined;
  /** The key that gives the budget, whose limits then hold. Default: none. */
  readonly budgetKeyId?: string | undefined;
  readonly owner?: Owner | undefined;
}

export interface ForkRequest {
  readonly source: SandboxId;
  /** One id per child: 1 to limits.forkCountMax. */
  readonly ids: readonly SandboxId[];
  readonly inheritSecrets: boolean;
  /** Undefined = what remains of the parent's; null = none. */
  readonly timeoutSeconds?: number | null | undefined;
  readonly env: Readonly<Record<string, string>>;
  /** Of each child. A parent's is not inherited. Default 0. */
  readonly forkBudget?: number | undefined;
  readonly budgetKeyId?: string | undefined;
  /** Set over what the parent has. */
  readonly metadata?: Readonly<Record<string, string>> | undefined;
}

/** Children that a sandbox asks for from inside, within its budget. */
export interface SelfFork {
  readonly source: SandboxId;
  readonly ids: readonly SandboxId[];
  /** The key that gave the budget; null = none did. */
  readonly keyId: string | null;
}

/** Lets such a fork happen by calling it, or throws. */
export type SelfForkGate = (request: SelfFork, fork: () => Promise<ForkResult>) => Promise<ForkResult>;

export interface ForkResult {
  readonly children: readonly Sandbox[];
  /** How long the parent stood still; 0 for the fork of a paused sandbox. */
  readonly pausedMs: number;
  readonly snapshotBytes: number;
}

export interface SandboxTree {
  readonly sandbox: Sandbox;
  readonly children: readonly SandboxTree[];
}

/** Why a sandbox is no more. The first three are somebody's wish, the others happened to it. */
export type EndCause = "terminated" | "time-out" | "idle" | "oom_killed" | "exited" | "killed" | "lost" | "snapshot_lost";

export interface SandboxEnd {
  readonly id: SandboxId;
  readonly cause: EndCause;
}

export interface EgressDenial {
  /** The sandbox's, or the template's that is being built. */
  readonly id: string;
  /** Host and port, or the name that was looked up. */
  readonly to: string;
  /** Denials of this sandbox that nobody was told of since the last one that was. */
  readonly leftOut: number;
}

export interface ListFilter {
  readonly state?: SandboxState | undefined;
  readonly parent?: SandboxId | undefined;
  readonly metadata?: Readonly<Record<string, string>> | undefined;
}

export interface ProcessStart {
  /** Exactly one of argv and shellCommand. */
  readonly argv?: readonly string[] | undefined;
  readonly shellCommand?: string | undefined;
  readonly env?: Readonly<Record<string, string>> | undefined;
  readonly cwd?: string | undefined;
  readonly user?: string | undefined;
  readonly stdin?: boolean | undefined;
  readonly pty?: { readonly term?: string | undefined; readonly cols: number; readonly rows: number } | undefined;
  /** 0 or undefined = no deadline. */
  readonly timeoutMs?: number | undefined;
}

export type ProcessEvent =
  | { readonly kind: "started"; readonly pid: number; readonly startedUnixMs: number }
  | { readonly kind: "output"; readonly stream: "stdout" | "stderr"; readonly offset: number; readonly data: Uint8Array }
  | { readonly kind: "gap"; readonly stream: "stdout" | "stderr"; readonly from: number; readonly to: number }
  | ({ readonly kind: "exit" } & ProcessExit);

export interface ProcessExit {
  readonly exitCode: number;
  readonly signal: number;
  readonly timedOut: boolean;
  readonly execTimeMs: number;
  readonly error: string;
}

export interface ProcessRow {
  readonly pid: number;
  readonly command: string;
  readonly startedUnixMs: number;
  readonly state: "running" | "exited";
  readonly exit: ProcessExit | null;
  readonly stdoutBytes: number;
  readonly stderrBytes: number;
}

/** A process that is being followed. Leaving the iteration of a foreground exec early kills its process group. */
export interface Attachment extends AsyncIterable<ProcessEvent> {
  writeStdin(data: Uint8Array): Promise<void>;
  closeStdin(): Promise<void>;
  resize(cols: number, rows: number): Promise<void>;
  signal(signal: number): Promise<void>;
}

export interface RunCodeRequest {
  readonly code: string;
  /** python, javascript, bash, or whatever a client sent: an unknown one is answered by a KernelUnavailable error event. */
  readonly language: string;
  /** 0 = no deadline. */
  readonly timeoutMs: number;
  /** Id of a context, whose language `language` must be, or empty. Default: the language's default context. */
  readonly context?: string | undefined;
}

export const languages = ["python", "javascript", "bash"] as const;
export type Language = (typeof languages)[number];

export interface ContextRequest {
  readonly language: Language;
  /** Absolute, or relative to /workspace. Default: /workspace where there is one. */
  readonly cwd?: string | undefined;
}

/** An interpreter with a state of its own. It lives in the sandbox: forks and pauses keep it. */
export interface Context {
  /** Of a default one: its language. */
  readonly id: string;
  readonly language: string;
  /** Where it starts, also after a restart. */
  readonly cwd: string;
  /** Made by the first run of its language without a context. */
  readonly isDefault: boolean;
}

/** Bytes to and from a port inside the sandbox. `send` honours back-pressure. */
export interface Tunnel extends AsyncIterable<Uint8Array> {
  send(data: Uint8Array): Promise<void>;
  /** Half-close towards the sandbox. */
  end(): Promise<void>;
  abort(): void;
}

/** What can be done inside one running sandbox. Got with `Engine.runtime`, which checks the state. Every call counts as activity. */
export interface Runtime {
  exec(start: ProcessStart, signal?: AbortSignal): Attachment;
  /** Starts a process that runs on whether anyone listens or not. */
  start(start: ProcessStart): Promise<{ pid: number; startedUnixMs: number }>;
  attach(
    pid: number,
    options: { stdoutFrom?: number; stderrFrom?: number; follow: boolean },
    signal?: AbortSignal,
  ): AsyncIterable<ProcessEvent>;
  listProcesses(): Promise<readonly ProcessRow[]>;
  writeStdin(pid: number, data: Uint8Array, close: boolean): Promise<void>;
  resizeTerminal(pid: number, cols: number, rows: number): Promise<void>;
  /** @param group - the whole process group of a process that was started here */
  signalProcess(pid: number, signal: number, group: boolean): Promise<void>;
  processes(): Promise<pb.ProcessList>;
  vitals(intervalSeconds: number, signal?: AbortSignal): AsyncIterable<pb.GuestVitals>;

  /** Fails before its first message with not_found for an unknown context, invalid_input for one of another language. */
  runCode(request: RunCodeRequest, signal?: AbortSignal): AsyncIterable<pb.RunCodeResponse>;
  /** Resolves when it takes code. @throws not_found (cwd), sandbox_exhausted (too many), failed_precondition (it does not start) */
  createContext(request: ContextRequest): Promise<Context>;
  /** Default ones whose interpreter runs, and all that were created, in the order of creation. */
  listContexts(): Promise<readonly Context[]>;
  /** Ends its interpreter with what that has started, and starts a new one. Code that runs or waits ends with KernelDied. @throws not_found */
  restartContext(id: string): Promise<Context>;
  /** As a restart, without a new one. The next run without a context makes a default one anew. @throws not_found */
  removeContext(id: string): Promise<void>;

  /** The first message is the file's info, with its whole size. length 0 = to the end. */
  readFile(
    path: string,
    range: { offset: number; length: number },
    signal?: AbortSignal,
  ): Promise<{ info: pb.FileInfo; data: AsyncIterable<Uint8Array> }>;
  writeFile(path: string, mode: number, data: AsyncIterable<Uint8Array>, signal?: AbortSignal): Promise<number>;
  list(path: string): Promise<pb.ListResponse>;
  stat(path: string): Promise<pb.FileInfo>;
  mkdir(path: string): Promise<void>;
  remove(path: string): Promise<void>;
  rename(from: string, to: string): Promise<void>;
  setMode(path: string, mode: number): Promise<void>;
  makeSymlink(target: string, path: string): Promise<void>;
  readLink(path: string): Promise<string>;
  watch(path: string, recursive: boolean, signal?: AbortSignal): AsyncIterable<pb.FsEvent>;
  archive(path: string, signal?: AbortSignal): AsyncIterable<pb.Chunk>;
  upload(dest: string, tar: AsyncIterable<Uint8Array>, signal?: AbortSignal): Promise<number>;

  tunnel(port: number, signal?: AbortSignal): Promise<Tunnel>;
}

/** A record that makes a repeated create answer with the first resource. Kept 24 hours. */
export interface IdempotencyStore {
  /**
   * `{ first: true }` reserves the key; the id of the earlier resource otherwise.
   *
   * @param intended - the sandboxes that the request is going to make. When the server dies before it has said that they are made, the next
   *   one finds out by them: all there, or none of it happened. What is made again without harm needs none.
   * @throws conflict while the first is under way
   */
  begin(kind: string, key: string, intended?: readonly SandboxId[]): { first: true } | { first: false; resource: string };
  complete(kind: string, key: string, resource: string): void;
  release(kind: string, key: string): void;
}

/** Which preview tokens are a sandbox's own: a token names it by its id, which an earlier sandbox may have had. */
export interface PreviewTerms {
  /**
   * Notes that a token is made for a sandbox.
   *
   * @returns when it expires: as wanted, or just after the last token of an earlier sandbox of this id
   * @throws not_found
   */
  issue(id: SandboxId, wantedUnix: number): number;
  /** Whether a token that expires then was made for an earlier sandbox of this id. */
  isOfEarlier(id: SandboxId, expiresUnix: number): boolean;
}

/** What one sandbox uses. Paused ones use no memory, running ones no disk. */
export interface SandboxUsage {
  readonly id: SandboxId;
  readonly templateId: TemplateId;
  readonly memoryBytes: number;
  readonly sharedBytes: number;
  readonly egressBytes: number;
  readonly diskBytes: number;
  /** Its machine did not answer in time: the figures are the last known ones, 0 when there are none. */
  readonly isStale: boolean;
}

export interface NodeUsage {
  readonly sandboxes: readonly SandboxUsage[];
  readonly templates: readonly { readonly id: TemplateId; readonly snapshotBytes: number }[];
}

export type SnapshotKind = "template" | "fork" | "pause";

/** What has happened since the engine was opened. */
export interface EngineCounts {
  readonly snapshots: Readonly<Record<SnapshotKind, { readonly count: number; readonly bytes: number }>>;
  readonly linksLost: number;
  /** Builds of templates by how they ended; templates that were there already are none. */
  readonly builds: Readonly<Record<"ok" | "failed" | "canceled", number>>;
  /** Steps of builds that change files: those that were run, and those whose layer was there. */
  readonly steps: Readonly<Record<"run" | "cached", number>>;
  /** Connections out of sandboxes, and look-ups for them. */
  readonly egressDenials: number;
  /** Machines that found a container (of a virtual machine: a monitor) made ahead, or did not. */
  readonly readyStarts: ReadyStarts;
  /** Creates that found a machine waiting, or did not, and how many wait now. Creates with resources of their own are neither. */
  readonly pool: ReadyStarts & { readonly waiting: number };
}

export const scopes = ["read", "execute", "lifecycle", "admin"] as const;
/** What a key allows. `admin` includes the others. */
export type Scope = (typeof scopes)[number];

/** Counted per owner, whichever of its keys made them; the limits of the key that asks for more apply. */
export interface KeyLimits {
  /** Sandboxes that have not ended, paused ones included. */
  readonly maxSandboxes: number;
  /** The sum of their memory limits. */
  readonly maxMemoryMiB: number;
  /** Streams open at once with this key. */
  readonly maxStreams: number;
  /** Of this key, on average; twice as many at once. */
  readonly requestsPerSecond: number;
}

/** What is known of a key. The key itself is not. */
export interface ApiKey extends Owner {
  readonly id: string;
  readonly name: string;
  /** The first characters of the key, for people to tell keys apart. */
  readonly prefix: string;
  readonly scopes: readonly Scope[];
  readonly limits: KeyLimits;
  readonly createdAtMs: number;
  /** Null = never. */
  readonly expiresAtMs: number | null;
  /** To the minute; null = never. */
  readonly lastUsedAtMs: number | null;
  readonly revokedAtMs: number | null;
}

export interface KeyRequest extends Owner {
  readonly name: string;
  readonly scopes: readonly Scope[];
  /** 0 = it does not expire. */
  readonly ttlSeconds: number;
  readonly limits: { readonly [Name in keyof KeyLimits]?: number | undefined };
}

export type KeyStatus = "active" | "revoked" | "expired";

export interface Keys {
  /** The only moment in which the key is known. @throws invalid_input, quota_exceeded (more keys than a server keeps) */
  create(request: KeyRequest): { readonly key: string; readonly record: ApiKey };
  /** In the order of their creation, revoked and expired ones included. */
  list(): readonly ApiKey[];
  statusOf(record: ApiKey): KeyStatus;
  /** Holds at once; a key that is revoked already stays so. @throws not_found */
  revoke(id: string): ApiKey;
  /** The key's record when it is known, also when it is not active. Takes as long for a wrong key as for a right one. */
  find(key: string): ApiKey | undefined;
  /** Notes that the key was used. */
  touch(id: string): void;
}

/** What can be done on behalf of a request. The server narrows it to what belongs to the caller. */
export interface Actions {
  readonly isolation: Isolation;
  readonly driverName: "gvisor" | "microvm" | "mock";
  readonly idempotency: IdempotencyStore;

  /**
   * @throws forbidden when the id has another definition, and another owner than the request; not_found for a name that means nothing and for an
   *   image or tag that the registry does not have; build_failed with the step; canceled
   */
  createTemplate(request: TemplateRequest, options?: BuildOptions): Promise<Template>;
  listTemplates(): readonly Template[];
  /** @throws not_found, conflict while a build runs */
  deleteTemplate(id: TemplateId): Promise<void>;
  /** Events of the last build of this name, whether it is there by now or has failed; with `follow` until it is over. @throws not_found */
  buildEvents(id: TemplateId, options: { readonly follow: boolean }, signal?: AbortSignal): AsyncIterable<BuildEvent>;
  /** What a name would mean to `create` and to `image` of a template. */
  meaningOf(name: string, signal?: AbortSignal): Promise<NameMeaning>;
  /**
   * Keeps the files of a copy step: an uncompressed tar whose digest this is. At most `limits.contextBytesMax`.
   * @throws invalid_input when the digest is another or it is no tar
   */
  putContext(digest: Digest, tar: AsyncIterable<Uint8Array>, signal?: AbortSignal): Promise<void>;
  hasContext(digest: Digest): Promise<boolean>;
  /** Makes an image of a template's root and puts it into a registry. @returns its manifest's digest @throws not_found, unauthorized, unavailable */
  pushTemplate(
    id: TemplateId,
    reference: string,
    options?: { signal?: AbortSignal | undefined; onEvent?: ((event: BuildEvent) => void) | undefined },
  ): Promise<{ readonly reference: string; readonly digest: Digest }>;
  /** Downloads and unpacks an image ahead of its first use. */
  pullImage(reference: string, options?: BuildOptions): Promise<ImageSummary>;
  listImages(): readonly ImageSummary[];
  diskUsage(): Promise<DiskUsage>;
  /** Removes layers and caches that nothing uses. @param olderThanMs - since their last use; 0 = all of them */
  prune(options: { readonly olderThanMs: number }): Promise<{ readonly removedBytes: number }>;

  /** @throws not_found (template), conflict (id in use), quota_exceeded */
  create(request: CreateRequest): Promise<Sandbox>;
  /** @throws not_found, idle_timeout, sandbox_not_running, secret_inheritance_denied, quota_exceeded, conflict */
  fork(request: ForkRequest): Promise<ForkResult>;
  /** Live, paused and lately ended ones. @throws not_found; idle_timeout or oom_killed for what has ended */
  get(id: SandboxId): Sandbox;
  /** Also of one that has lately ended. @throws not_found */
  ownerOf(id: SandboxId): Owner | null;
  /** Everything that is alive (running, paused, on its way), and what has failed and not been deleted. */
  list(filter?: ListFilter): readonly Sandbox[];
  tree(id: SandboxId): SandboxTree;
  terminate(id: SandboxId, options?: { subtree?: boolean }): Promise<void>;
  pause(id: SandboxId): Promise<void>;
  resume(id: SandboxId): Promise<void>;
  /** @returns the new deadline. */
  setTimeout(id: SandboxId, timeoutSeconds: number): Promise<{ deadlineMs: number }>;
  meter(id: SandboxId): Promise<Metering>;
  /**
   * The end of what the sandbox's machine has said beside its link, at most `limits.consoleBytesMax`: for finding out what is wrong with it.
   * @throws not_found, idle_timeout, oom_killed, sandbox_not_running; not_supported on the mock engine
   */
  console(id: SandboxId): Promise<Uint8Array>;
  /** What everything alive uses; measured at most once a second, however often it is asked for. */
  meterAll(): Promise<NodeUsage>;

  /** @throws not_found, idle_timeout, oom_killed, sandbox_not_running; not_supported on the mock engine */
  runtime(id: SandboxId): Runtime;
}

/** All of it: for whoever opened the engine. */
export interface Engine extends Actions {
  readonly keys: Keys;
  readonly previews: PreviewTerms;

  counts(): EngineCounts;
  /** Why no machine can be started any more, or null: looked at every few seconds at most. */
  unreadiness(): Promise<string | null>;

  /** The random bytes that this data directory keeps under a name: made when they are first asked for, the same ever after. */
  storedSecret(name: string, bytes: number): Uint8Array;

  /**
   * Tells of each sandbox that ends or fails, once; first of those that this engine found dead when it was opened.
   * @returns ends the telling
   */
  onEnd(listener: (end: SandboxEnd) => void): () => void;

  /**
   * Has every fork that a sandbox asks for from inside pass through here. Until then those are refused whose budget a key has given: nobody
   * is there who knows its limits.
   *
   * @returns ends it
   */
  gateSelfForks(gate: SelfForkGate): () => void;

  /**
   * Tells of connections that no rule allows, at most once a second for each sandbox.
   *
   * @returns ends the telling
   */
  onEgressDenied(listener: (denial: EgressDenial) => void): () => void;

  /** Leaves machines running for the next server (`keep`), or ends them all. */
  close(options: { sandboxes: "keep" | "end" }): Promise<void>;
}

/** Where images come from. */
export interface ImageOptions {
  /** Of references that name no registry, and asked for short names (`python`) when it is set. Default: `docker.io`, which is not. */
  readonly registry?: string | undefined;
  /** registry → hosts asked before it, in order. */
  readonly mirrors?: Readonly<Record<string, readonly string[]>> | undefined;
  /** Spoken to in plain HTTP, beside those on loopback addresses. */
  readonly insecureRegistries?: readonly string[] | undefined;
  /** Default: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`. */
  readonly dockerConfig?: string | undefined;
  /** Default: 20 GiB. */
  readonly cacheBytesMax?: number | undefined;
}

export interface EngineOptions {
  readonly dataDir: string;
  readonly images?: ImageOptions | undefined;
  /** `auto`: what the data directory's living sandboxes run on, else microVMs where KVM is usable and their parts are there, else gVisor. */
  readonly engine: EngineChoice;
  /** What runs the instructions of microVMs; only with `microvm`. Default `kvm`. `tcg` is an emulator: it runs everywhere, and slower. */
  readonly accel?: Accel | undefined;
  /** How many machines at most wait for the next creates; how many do follows demand. Default 8; 0 = none. */
  readonly poolSize?: number | undefined;
  readonly log: Log;
}

export type EngineChoice = "auto" | "gvisor" | "microvm" | "firecracker" | "mock";
export type Accel = "kvm" | "tcg";

/** The part of pino that the engine uses. */
export interface Log {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}
