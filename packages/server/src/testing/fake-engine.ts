/**
 * An engine in memory, for tests of what travels on the wire: its sandboxes run a few named programs instead of real ones, and it records
 * what it was asked for. It claims no other part of an engine's behaviour.
 */

import { randomUUID } from "node:crypto";
import { existsSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { create } from "@bufbuild/protobuf";
import {
  type Attachment,
  type BuildEvent,
  type BuildOptions,
  type BuildStep,
  type Context,
  type ContextRequest,
  type CreateRequest,
  type DiskUsage,
  type EgressDenial,
  type Engine,
  type EngineCounts,
  type ForkRequest,
  type IdempotencyStore,
  type ImageSummary,
  type Keys,
  type NameMeaning,
  type NodeUsage,
  openKeys,
  type PreviewTerms,
  type ProcessEvent,
  type ProcessStart,
  type RunCodeRequest,
  type Runtime,
  type Sandbox,
  type SandboxEnd,
  type SandboxState,
  type SelfForkGate,
  type Template,
  type TemplateRequest,
  unknownSandbox,
} from "@mitos/engine";
import { MitosError, resourceDefaults, type SandboxId } from "@mitos/protocol";
import { sandbox as pb } from "@mitos/protocol/proto";

const bytes = (text: string) => new TextEncoder().encode(text);

const fakeDigest = `sha256:${"ab".repeat(32)}` as const;

type BuildEventMembers = BuildEvent extends infer Event ? (Event extends unknown ? Omit<Event, "atMs"> : never) : never;

export class FakeRuntime {
  /** What was started, in order. */
  readonly starts: ProcessStart[] = [];
  readonly files = new Map<string, Uint8Array>();
  readonly signals: unknown[] = [];
  killed = 0;
  /** How much a `flood` has produced. */
  floodBytes = 0;
  readonly stdin: string[] = [];
  /** `gated` goes on when this is resolved. */
  readonly gate = Promise.withResolvers<void>();
  readonly runs: RunCodeRequest[] = [];
  readonly contexts = new Map<string, Context>();

  exec(start: ProcessStart, signal?: AbortSignal): Attachment {
    this.starts.push(start);
    return new FakeAttachment(this, start, signal);
  }

  async start(start: ProcessStart) {
    this.starts.push(start);
    return { pid: 42, startedUnixMs: 1_700_000_000_000 };
  }

  async *attach(pid: number, options: { stdoutFrom?: number; follow: boolean }): AsyncGenerator<ProcessEvent> {
    if (pid === 44) {
      yield { kind: "output", stream: "stdout", offset: 0, data: bytes("x") };
      throw new MitosError("sandbox_not_running", { cause: "the sandbox was paused" });
    }
    if (pid !== 42) throw new MitosError("not_found", { cause: `no process ${pid}` });
    const all = bytes("hello world");
    const from = options.stdoutFrom ?? 0;
    yield { kind: "started", pid, startedUnixMs: 0 };
    if (from < 6) yield { kind: "gap", stream: "stdout", from, to: 6 };
    yield { kind: "output", stream: "stdout", offset: Math.max(from, 6), data: all.subarray(Math.max(from, 6)) };
    if (options.follow) yield { kind: "exit", exitCode: 0, signal: 0, timedOut: false, execTimeMs: 1, error: "" };
  }

  async listProcesses() {
    return [
      { pid: 42, command: "x", startedUnixMs: 1_700_000_000_000, state: "running" as const, exit: null, stdoutBytes: 11, stderrBytes: 0 },
    ];
  }

  async writeStdin(pid: number, data: Uint8Array, close: boolean) {
    this.signals.push(["stdin", pid, Buffer.from(data).toString(), close]);
  }

  async resizeTerminal(pid: number, cols: number, rows: number) {
    this.signals.push(["resize", pid, cols, rows]);
  }

  async signalProcess(pid: number, signal: number, group: boolean) {
    if (pid === 2_147_483_647) throw new MitosError("not_found", { cause: "no such process" });
    this.signals.push(["signal", pid, signal, group]);
  }

  async processes() {
    return create(pb.ProcessListSchema, { processes: [{ pid: 2, command: "sh", rssBytes: 4096n }] });
  }

  async *vitals(_interval: number): AsyncGenerator<pb.GuestVitals> {
    while (true) yield create(pb.GuestVitalsSchema, { processCount: 1 });
  }

  async *runCode(request: RunCodeRequest): AsyncGenerator<pb.RunCodeResponse> {
    this.runs.push(request);
    const response = (msg: pb.RunCodeResponse["msg"]) => create(pb.RunCodeResponseSchema, { msg });
    yield response({ case: "stdout", value: bytes("out\n") });
    if (request.code === "lose") throw new MitosError("unavailable", { cause: "the link is gone" });
    const result = create(pb.RunResultSchema, { text: "42", data: { "text/plain": bytes("42"), "image/png": bytes("aGVsbG8=") } });
    yield response({ case: "result", value: result });
    yield response({ case: "exitCode", value: 0 });
  }

  async createContext({ language, cwd = "/workspace" }: ContextRequest) {
    const context = { id: `context-${this.contexts.size}`, language, cwd, isDefault: false };
    this.contexts.set(context.id, context);
    return context;
  }

  async listContexts() {
    return [...this.contexts.values()];
  }

  async restartContext(id: string) {
    const context = this.contexts.get(id);
    if (!context) throw new MitosError("not_found", { cause: `no context ${id}` });
    return context;
  }

  async removeContext(id: string) {
    if (!this.contexts.delete(id)) throw new MitosError("not_found", { cause: `no context ${id}` });
  }

  async readFile(path: string, { offset, length }: { offset: number; length: number }) {
    if (path === "/endless") return this.#endless(path);
    const file = this.#file(path);
    const part = file.subarray(offset, length === 0 ? undefined : offset + length);
    const info = create(pb.FileInfoSchema, {
      name: path.split("/").at(-1) ?? "",
      path,
      size: BigInt(file.length),
      modifiedAtUnix: 1_700_000_000n,
    });
    return {
      info,
      data: (async function* () {
        for (let start = 0; start < part.length; start += 50_000) yield part.subarray(start, start + 50_000);
      })(),
    };
  }

  async writeFile(path: string, mode: number, data: AsyncIterable<Uint8Array>) {
    if (path === "/slow") {
      for await (const chunk of data) {
        this.floodBytes += chunk.length;
        await this.gate.promise;
      }
      return this.floodBytes;
    }
    if (path.startsWith("/denied")) throw new MitosError("file_failed", { cause: "permission denied" });
    const chunks: Uint8Array[] = [];
    for await (const chunk of data) chunks.push(chunk);
    this.files.set(path, Buffer.concat(chunks));
    this.signals.push(["mode", mode]);
    return this.files.get(path)!.length;
  }

  /** A file of 1 GiB that is made while it is read. */
  #endless(path: string) {
    const size = 1024 ** 3;
    const produce = (count: number) => {
      this.floodBytes += count;
    };
    const info = create(pb.FileInfoSchema, { path, size: BigInt(size) });
    return {
      info,
      data: (async function* () {
        for (let at = 0; at < size; at += 65_536) {
          produce(65_536);
          yield new Uint8Array(65_536);
        }
      })(),
    };
  }

  async stat(path: string) {
    return create(pb.FileInfoSchema, { path, size: BigInt(this.#file(path).length) });
  }

  async list(parent: string) {
    const names = [...this.files.keys()].filter((path) => path.startsWith(`${parent}/`));
    if (names.length === 0) throw new MitosError("not_found", { cause: parent });
    return create(pb.ListResponseSchema, {
      entries: names.map((path) => ({ name: path.slice(parent.length + 1), path, size: 2n, mode: 33188 })),
    });
  }

  async mkdir() {}
  async remove(path: string) {
    this.files.delete(path);
  }

  async rename(from: string, to: string) {
    this.files.set(to, this.#file(from));
    this.files.delete(from);
  }

  async *archive(): AsyncGenerator<pb.Chunk> {}

  async upload(_dest: string, tar: AsyncIterable<Uint8Array>) {
    let total = 0;
    for await (const chunk of tar) total += chunk.length;
    return total;
  }

  async tunnel() {
    const queue: Uint8Array[] = [];
    let wake = Promise.withResolvers<void>();
    let ended = false;
    return {
      async send(data: Uint8Array) {
        queue.push(data);
        wake.resolve();
      },
      async end() {
        ended = true;
        wake.resolve();
      },
      abort() {},
      async *[Symbol.asyncIterator]() {
        while (true) {
          while (queue.length > 0) yield queue.shift()!;
          if (ended) return;
          await wake.promise;
          wake = Promise.withResolvers();
        }
      },
    };
  }

  #file(path: string): Uint8Array {
    const file = this.files.get(path);
    if (!file) throw new MitosError("not_found", { cause: path });
    return file;
  }
}

/** A foreground exec of one of the named programs. */
class FakeAttachment implements Attachment {
  readonly #runtime: FakeRuntime;
  readonly #start: ProcessStart;
  readonly #signal: AbortSignal | undefined;
  readonly #input: (Uint8Array | null)[] = [];
  #wake = Promise.withResolvers<void>();

  constructor(runtime: FakeRuntime, start: ProcessStart, signal: AbortSignal | undefined) {
    this.#runtime = runtime;
    this.#start = start;
    this.#signal = signal;
  }

  async writeStdin(data: Uint8Array) {
    this.#runtime.stdin.push(Buffer.from(data).toString());
    this.#input.push(data);
    this.#wake.resolve();
  }
  async closeStdin() {
    this.#input.push(null);
    this.#wake.resolve();
  }
  async resize(cols: number, rows: number) {
    this.#runtime.signals.push(["resize", cols, rows]);
  }
  async signal() {}

  async *[Symbol.asyncIterator](): AsyncGenerator<ProcessEvent> {
    let ended = false;
    const aborted = Promise.withResolvers<never>();
    aborted.promise.catch(() => {});
    this.#signal?.addEventListener("abort", () => aborted.reject(this.#signal?.reason));
    const events = this.#run();
    try {
      yield { kind: "started", pid: 2, startedUnixMs: 0 };
      while (true) {
        const item = await Promise.race([events.next(), aborted.promise]);
        if (item.done) break;
        if (item.value.kind === "exit") ended = true;
        yield item.value;
      }
      ended = true;
    } finally {
      if (!ended) this.#runtime.killed += 1;
    }
  }

  async *#run(): AsyncGenerator<ProcessEvent> {
    const out = (data: Uint8Array, stream: "stdout" | "stderr" = "stdout"): ProcessEvent => ({ kind: "output", stream, offset: 0, data });
    const exit = (exitCode: number, error = ""): ProcessEvent => ({
      kind: "exit",
      exitCode,
      signal: 0,
      timedOut: exitCode === 124,
      execTimeMs: 4,
      error,
    });
    switch (this.#start.shellCommand ?? this.#start.argv?.join("|")) {
      case "gated":
        yield out(bytes("first "));
        await this.#runtime.gate.promise;
        yield out(bytes("second\n"));
        yield out(bytes("warn\n"), "stderr");
        yield exit(3);
        return;
      case "forever":
        yield out(bytes("ready\n"));
        await new Promise(() => {});
        return;
      case "flood":
        while (true) {
          this.#runtime.floodBytes += 64 * 1024;
          yield out(new Uint8Array(64 * 1024).fill(120));
          await new Promise((resolve) => setImmediate(resolve));
        }
      case "lost":
        yield out(bytes("partial"));
        throw new MitosError("unavailable", { cause: "the link is gone" });
      case "timeout":
        yield exit(124);
        return;
      case "bogus":
        yield exit(1, "no such command: bogus");
        return;
      case "umlauts": {
        const text = bytes("äö€😀".repeat(6000));
        for (let start = 0; start < text.length; start += 1021) yield out(text.subarray(start, start + 1021));
        yield exit(0);
        return;
      }
      case "cat":
      case "/bin/sh":
        while (true) {
          const data = this.#input.shift();
          if (data === null) break;
          if (data === undefined) {
            await this.#wake.promise;
            this.#wake = Promise.withResolvers();
            continue;
          }
          yield out(data);
          if (Buffer.from(data).toString() === "exit\n") break;
        }
        yield exit(0);
        return;
      default:
        yield exit(0);
    }
  }
}

export class FakeEngine {
  readonly isolation = "mock" as const;
  driverName: Engine["driverName"] = "mock";
  readonly templates = new Map<string, Template>();
  readonly sandboxes = new Map<string, Sandbox>();
  readonly runtimes = new Map<string, FakeRuntime>();
  readonly creates: CreateRequest[] = [];
  readonly forks: ForkRequest[] = [];
  readonly #onEnd = new Set<(end: SandboxEnd) => void>();
  #clock = 1_750_000_000_000;

  readonly idempotency: IdempotencyStore = (() => {
    const records = new Map<string, string | null>();
    return {
      begin(kind, key) {
        const earlier = records.get(`${kind} ${key}`);
        if (earlier === null) throw new MitosError("conflict", { cause: "under way" });
        if (earlier !== undefined) return { first: false, resource: earlier };
        records.set(`${kind} ${key}`, null);
        return { first: true };
      },
      complete: (kind, key, resource) => void records.set(`${kind} ${key}`, resource),
      release: (kind, key) => void records.delete(`${kind} ${key}`),
    } satisfies IdempotencyStore;
  })();

  #keys: (Keys & Disposable) | undefined;
  // In memory where there is such a place: a test must not wait for a disk.
  readonly #keysDir = path.join(existsSync("/dev/shm") ? "/dev/shm" : tmpdir(), `mitos-fake-engine-${randomUUID()}`);

  /** A real store, opened when a test first uses it. */
  get keys(): Keys {
    this.#keys ??= openKeys(this.#keysDir);
    return this.#keys;
  }

  [Symbol.dispose]() {
    this.#keys?.[Symbol.dispose]();
    rmSync(this.#keysDir, { recursive: true, force: true });
  }

  /** With what each template was asked for. */
  readonly builds: { readonly request: TemplateRequest; readonly options: BuildOptions }[] = [];
  /** Builds whose signal has ended them. */
  readonly canceled: string[] = [];
  /** A step `gated` goes on when this is resolved. */
  readonly buildGate = Promise.withResolvers<void>();
  readonly events = new Map<string, BuildEvent[]>();

  /** Runs the steps that are called `gated`, `fail` and `flood <lines>`; any other is there already. */
  async createTemplate(request: TemplateRequest, options: BuildOptions = {}) {
    this.builds.push({ request, options });
    const { id, image, steps = [] } = request;
    const events: BuildEvent[] = [];
    const tell = (event: BuildEventMembers) => {
      events.push({ atMs: this.#clock++, ...event });
      options.onEvent?.(events.at(-1)!);
    };
    const isBuilt = image !== undefined || steps.length > 0;
    if (image === "nowhere") throw new MitosError("not_found", { cause: `the name ${image} means nothing here` });
    if (isBuilt) {
      this.events.set(id, events);
      tell({ kind: "phase", phase: "resolve", detail: image ?? "" });
    }
    try {
      for (const [index, step] of steps.entries()) await this.#runStep(index, step, tell, options.signal);
    } catch (error) {
      if (options.signal?.aborted) this.canceled.push(id);
      const { code, message, detail, entry } = error as MitosError;
      tell({ kind: "failed", code, message, cause: detail.cause ?? "", remediation: entry.remediation });
      throw error;
    }
    const source = isBuilt
      ? ({ kind: steps.length > 0 ? "build" : "image", reference: image ?? "", digest: fakeDigest, layers: 2, rootBytes: 1000 } as const)
      : ({ kind: "host", reference: "", digest: null, layers: 0, rootBytes: 0 } as const);
    const template: Template = {
      ...request,
      source,
      snapshotBytes: 4096,
      warnings: image === "odd" ? ["the name odd was not known"] : [],
      ready: true,
      createdAtMs: this.#clock++,
      creationTimeMs: 1.5,
    };
    this.templates.set(request.id, template);
    if (isBuilt) tell({ kind: "done", creationTimeMs: 1.5 });
    return template;
  }

  async #runStep(index: number, step: BuildStep, tell: (event: BuildEventMembers) => void, signal: AbortSignal | undefined) {
    const [name, argument] = step.kind === "run" ? step.command.split(" ") : [];
    const log = (text: string) => tell({ kind: "log", step: index, stream: "stdout", text });
    switch (name) {
      case "gated": {
        log("waiting\n");
        const aborted = Promise.withResolvers<never>();
        signal?.addEventListener("abort", () => aborted.reject(new MitosError("canceled", { cause: "the build was given up" })));
        await Promise.race([this.buildGate.promise, aborted.promise]);
        return;
      }
      case "fail":
        throw new MitosError("build_failed", { cause: `step ${index} ended with 1`, reason: new Error("inner") });
      case "break":
        throw new Error("a secret of the server");
      case "flood":
        for (let line = 0; line < Number(argument); line += 1) log(`${line}\n`);
        return;
      default:
        tell({ kind: "step", index, count: 1, type: step.kind, label: step.kind, state: "cached", ms: 0 });
    }
  }

  async *buildEvents(id: string, { follow }: { follow: boolean }, signal?: AbortSignal): AsyncGenerator<BuildEvent> {
    const events = this.events.get(id);
    if (!events) throw new MitosError("not_found", { cause: `no build of ${id}` });
    for (let at = 0; ; at += 1) {
      while (follow && at === events.length && !["done", "failed"].includes(events[at - 1]?.kind ?? "") && !signal?.aborted) {
        await new Promise((resolve) => setImmediate(resolve));
      }
      if (at === events.length) return;
      yield events[at]!;
    }
  }

  readonly contexts = new Map<string, Uint8Array>();
  /** Reads nothing of what it has already. */
  async putContext(digest: string, tar: AsyncIterable<Uint8Array>) {
    if (this.contexts.has(digest)) return;
    const chunks: Uint8Array[] = [];
    for await (const chunk of tar) chunks.push(chunk);
    this.contexts.set(digest, Buffer.concat(chunks));
  }
  async hasContext(digest: string) {
    return this.contexts.has(digest);
  }

  async meaningOf(name: string): Promise<NameMeaning> {
    if (this.templates.has(name)) return { name, means: "template", reference: "" };
    if (name.includes(":")) return { name, means: "image", reference: `docker.io/library/${name}` };
    return { name, means: name === "node" ? "host" : "nothing", reference: "" };
  }

  readonly pushes: string[] = [];
  async pushTemplate(id: string, reference: string, options?: BuildOptions) {
    if (!this.templates.has(id)) throw new MitosError("not_found", { cause: `template ${id}` });
    const layer = { kind: "layer", digest: fakeDigest, doneBytes: 5, totalBytes: 5 } as const;
    options?.onEvent?.({ atMs: this.#clock++, ...layer, state: "done" });
    this.pushes.push(reference);
    return { reference, digest: fakeDigest };
  }

  readonly images: ImageSummary[] = [];
  async pullImage(reference: string, options?: BuildOptions): Promise<ImageSummary> {
    this.builds.push({ request: { image: reference } as TemplateRequest, options: options ?? {} });
    options?.onEvent?.({ atMs: this.#clock++, kind: "phase", phase: "pull", detail: reference });
    const image = { reference, digest: fakeDigest, layers: 2, rootBytes: 1000, pulledAtMs: this.#clock, lastUsedAtMs: this.#clock };
    this.images.push(image);
    return image;
  }
  listImages() {
    return this.images;
  }

  async diskUsage(): Promise<DiskUsage> {
    const templates = this.listTemplates().map(({ id }) => ({ id, snapshotBytes: 4096, rootBytes: 1000, ownBytes: 10 }));
    const layers = { count: 3, bytes: 3000, unusedBytes: 30 };
    return { templates, layers, caches: { bytes: 7 }, snapshots: { bytes: 8 }, cacheBytesMax: 9 };
  }
  readonly prunes: number[] = [];
  async prune({ olderThanMs }: { olderThanMs: number }) {
    this.prunes.push(olderThanMs);
    return { removedBytes: 37 };
  }

  listTemplates() {
    return [...this.templates.values()];
  }
  async deleteTemplate(id: string) {
    if (!this.templates.delete(id)) throw new MitosError("not_found", { cause: `template ${id}` });
  }

  async create(request: CreateRequest) {
    this.creates.push(request);
    const template = this.templates.get(request.template);
    if (!template) throw new MitosError("not_found", { cause: `template ${request.template}` });
    return this.#add(request.id, template, null, request);
  }

  async fork(request: ForkRequest) {
    this.forks.push(request);
    const parent = this.get(request.source);
    const template = this.templates.get(parent.templateId)!;
    const children = request.ids.map((id) => this.#add(id, template, parent.id, undefined));
    return { children, pausedMs: 1.5, snapshotBytes: 4096 };
  }

  #add(id: SandboxId, template: Template, parentId: SandboxId | null, request: CreateRequest | undefined): Sandbox {
    if (this.sandboxes.has(id)) throw new MitosError("conflict", { cause: `sandbox ${id} exists` });
    const sandbox: Sandbox = {
      id,
      templateId: template.id,
      parentId,
      state: "running",
      isolation: "mock",
      resources: { ...resourceDefaults, ...template.resources, ...request?.resources },
      network: request?.network ?? template.network,
      metadata: request?.metadata ?? {},
      createdAtMs: this.#clock++,
      forkTimeMs: 0.842,
      deadlineMs: null,
      idleTimeoutSeconds: null,
      endReason: null,
      children: [],
      owner: parentId === null ? (request?.owner ?? null) : this.get(parentId).owner,
      forkBudget: request?.forkBudget ?? 0,
      forksUsed: 0,
    };
    this.sandboxes.set(id, sandbox);
    this.runtimes.set(id, new FakeRuntime());
    return sandbox;
  }

  ownerOf(id: string) {
    return this.get(id).owner;
  }
  get(id: string): Sandbox {
    const sandbox = this.sandboxes.get(id);
    if (!sandbox) throw unknownSandbox(id as SandboxId);
    const children = [...this.sandboxes.values()].filter((other) => other.parentId === id).map((other) => other.id);
    return { ...sandbox, children };
  }
  list(filter: { state?: SandboxState; parent?: string; metadata?: Record<string, string> } = {}) {
    return [...this.sandboxes.values()].filter(
      (row) =>
        (!filter.state || row.state === filter.state) &&
        (!filter.parent || row.parentId === filter.parent) &&
        Object.entries(filter.metadata ?? {}).every(([key, value]) => row.metadata[key] === value),
    );
  }
  tree(id: string): unknown {
    const sandbox = this.get(id);
    return { sandbox, children: sandbox.children.map((child) => this.tree(child)) };
  }
  async terminate(id: string, options?: { subtree?: boolean }) {
    const { children } = this.get(id);
    this.sandboxes.delete(id);
    for (const listener of this.#onEnd) listener({ id: id as SandboxId, cause: "terminated" });
    if (options?.subtree) for (const child of children) await this.terminate(child, options);
  }
  onEnd(listener: (end: SandboxEnd) => void) {
    this.#onEnd.add(listener);
    return () => void this.#onEnd.delete(listener);
  }
  /** What the server has put in the way of sandboxes that fork themselves. */
  selfForkGate: SelfForkGate | undefined;
  gateSelfForks(gate: SelfForkGate) {
    this.selfForkGate = gate;
    return () => {
      this.selfForkGate = undefined;
    };
  }
  readonly egressDenied = new Set<(denial: EgressDenial) => void>();
  onEgressDenied(listener: (denial: EgressDenial) => void) {
    this.egressDenied.add(listener);
    return () => void this.egressDenied.delete(listener);
  }
  /** The last second of the tokens that were for earlier sandboxes. */
  earlierUntilUnix = 0;
  readonly previews: PreviewTerms = {
    issue: (_id, wantedUnix) => wantedUnix,
    isOfEarlier: (_id, expiresUnix) => expiresUnix <= this.earlierUntilUnix,
  };
  storedSecret(_name: string, count: number) {
    return new Uint8Array(count).fill(7);
  }
  async pause(id: string) {
    this.sandboxes.set(id, { ...this.get(id), state: "paused" });
  }
  async resume(id: string) {
    this.sandboxes.set(id, { ...this.get(id), state: "running" });
  }
  async setTimeout(id: string, seconds: number) {
    this.get(id);
    return { deadlineMs: 1_700_000_000_000 + seconds * 1000 };
  }
  /** Every sandbox uses the same, and the last one does not answer. */
  async meterAll(): Promise<NodeUsage> {
    const sandboxes = [...this.sandboxes.values()].map(({ id, templateId }, index) => ({
      id,
      templateId,
      memoryBytes: 100,
      sharedBytes: 10,
      egressBytes: 0,
      diskBytes: 0,
      isStale: index > 0,
    }));
    return { sandboxes, templates: [...this.templates.values()].map(({ id }) => ({ id, snapshotBytes: 1000 })) };
  }
  async console(id: string): Promise<Uint8Array> {
    this.get(id);
    return Buffer.from([0x3c, 0x70, 0x3e, 0xff, 0x0a]);
  }
  counts(): EngineCounts {
    const snapshots = { template: { count: 1, bytes: 1000 }, fork: { count: 0, bytes: 0 }, pause: { count: 0, bytes: 0 } };
    const builds = { ok: 7, failed: 1, canceled: 0 };
    const steps = { run: 6, cached: 8 };
    return {
      snapshots,
      linksLost: 3,
      egressDenials: 4,
      readyStarts: { hits: 5, misses: 2 },
      pool: { hits: 6, misses: 1, waiting: 3 },
      builds,
      steps,
    };
  }
  problem: string | null = null;
  async unreadiness() {
    return this.problem;
  }
  runtime(id: string): Runtime {
    const { state } = this.get(id);
    if (state !== "running") throw new MitosError("sandbox_not_running", { cause: `sandbox ${id} is ${state}`, context: { sandbox: id } });
    return this.runtimes.get(id) as unknown as Runtime;
  }

  /** The same object under the type of the real one, of which the server uses no more than this. */
  asEngine(): Engine {
    return this as unknown as Engine;
  }
}
