import type { DatabaseSync } from "node:sqlite";
import { MitosError, type SandboxId } from "@mitos/protocol";
import type { Attributes } from "@opentelemetry/api";
import type {
  BuildOptions,
  CreateRequest,
  EgressDenial,
  Engine,
  EngineCounts,
  EngineOptions,
  ForkRequest,
  IdempotencyStore,
  ImageSummary,
  Keys,
  ListFilter,
  Owner,
  PreviewTerms,
  Runtime,
  Sandbox,
  SandboxEnd,
  SelfForkGate,
  TemplateRequest,
} from "./actions.ts";
import { Admission } from "./admission.ts";
import { pullImage } from "./builds/base.ts";
import { BuildLogs } from "./builds/events.ts";
import { pushTemplate } from "./builds/push.ts";
import { type Clock, systemClock } from "./clock.ts";
import { type Core, Counters, startsAtOnce, ungatedSelfForks } from "./core.ts";
import { create } from "./create.ts";
import type { Driver, Isolation } from "./driver.ts";
import { pickDriver } from "./drivers/pick.ts";
import { EgressGate } from "./egress/gate.ts";
import { type EgressNetwork, hostNetwork } from "./egress/network.ts";
import { Ends } from "./ends.ts";
import { fork } from "./fork.ts";
import type { ConnectGuest } from "./guest.ts";
import { ImageStore } from "./images/store.ts";
import type { Digest } from "./layers/layer.ts";
import { LayerStore } from "./layers/store.ts";
import { Deadlines, endSandbox, setTimeoutOf, terminate } from "./lifecycle.ts";
import { connectGuest } from "./link-guest.ts";
import { Meters } from "./metering.ts";
import { Semaphore } from "./mutex.ts";
import { meaningOf } from "./names.ts";
import { pause, resume } from "./pause.ts";
import { MachinePool, poolSizeDefault } from "./pool/pool.ts";
import { Readiness } from "./readiness.ts";
import { ReadyDemand } from "./ready-demand.ts";
import { recover } from "./recovery.ts";
import { type Entry, Sandboxes } from "./sandboxes.ts";
import { SnapshotPlaces } from "./snapshots.ts";
import { openDatabase } from "./store/database.ts";
import { createIdempotencyStore } from "./store/idempotency.ts";
import { createKeys } from "./store/keys.ts";
import { createPreviewTerms } from "./store/previews.ts";
import { SandboxStore } from "./store/sandboxes.ts";
import { SettingsStore } from "./store/settings.ts";
import { StepStore } from "./store/steps.ts";
import { TemplateStore } from "./store/templates.ts";
import type { Images, Layers } from "./stores.ts";
import { createTemplate, deleteTemplate, listTemplates } from "./templates.ts";
import { traceDriver, traced, traceGuests } from "./tracing.ts";
import { tree } from "./tree.ts";
import { UnderWay } from "./under-way.ts";
import { Collector, cacheBytesMaxDefault, diskUsage } from "./usage.ts";

/** How long `close` waits for what is under way. */
const closeMsMax = 30_000;

/**
 * Opens the engine of a data directory: locks it, picks the driver, takes up what an earlier server left.
 *
 * @throws conflict when another server uses the directory; not_supported when no engine is usable here, with what to install;
 *   internal when the database cannot be read
 */
export async function openEngine(options: EngineOptions): Promise<Engine> {
  return openEngineWith(options, { pickDriver: (inUse) => pickDriver(options, inUse) });
}

/** What tests of the engine replace. */
export interface EngineParts {
  /** @param inUse - what sandboxes that are not ended run on */
  readonly pickDriver: (inUse: ReadonlySet<Isolation>) => Promise<Driver>;
  readonly connectGuest?: ConnectGuest;
  readonly clock?: Clock;
  readonly admission?: Admission;
  readonly egressNetwork?: EgressNetwork;
  readonly stores?: { readonly layers: Layers; readonly images: Images };
}

export async function openEngineWith(options: EngineOptions, parts: EngineParts): Promise<Engine> {
  const { dataDir, log } = options;
  const clock = parts.clock ?? systemClock;
  // The lock comes first: only its holder may touch machines and folders.
  const db = openDatabase(dataDir);
  let driver: Driver | undefined;
  try {
    const sandboxStore = new SandboxStore(db);
    driver = await parts.pickDriver(isolationsInUse(sandboxStore));
    const { layers, images } = parts.stores ?? (await openStores(options, db, clock));
    const core: Core = {
      driver: traceDriver(driver),
      connectGuest: traceGuests(parts.connectGuest ?? connectGuest),
      log,
      clock,
      egress: new EgressGate(parts.egressNetwork ?? hostNetwork, log, clock),
      admission: parts.admission ?? new Admission(),
      places: await SnapshotPlaces.open(dataDir, log),
      sandboxes: new Sandboxes(sandboxStore, clock, layers),
      templateStore: new TemplateStore(db),
      templates: new Map(),
      layers,
      images,
      buildLogs: await BuildLogs.open(dataDir, log, clock),
      stepStore: new StepStore(db),
      runningSteps: new Map(),
      collector: new Collector(() => core, options.images?.cacheBytesMax ?? cacheBytesMaxDefault),
      starts: new Semaphore(startsAtOnce),
      counters: new Counters(),
      readyDemand: new ReadyDemand(),
      pool: new MachinePool(() => core, driver.name === "mock" ? 0 : (options.poolSize ?? poolSizeDefault)),
      selfForkGate: ungatedSelfForks,
      underWay: new UnderWay(),
    };
    core.admission.reclaim = (bytes) => core.pool.reclaim(bytes);
    const ends = new Ends(core.sandboxes);
    await recover(core);
    core.collector.soon();
    ends.open();
    const deadlines = new Deadlines(core);
    for (const entry of core.sandboxes.all()) deadlines.arm(entry);
    const stores = {
      idempotency: createIdempotencyStore(db, clock, (id, uid) => core.sandboxes.isThereSince(id, uid)),
      keys: createKeys(db, clock),
      previews: createPreviewTerms(db, clock, (id) => core.sandboxes.createdAtMsOf(id)),
      settings: new SettingsStore(db),
    };
    return new OpenEngine(core, { deadlines, ends, readiness: new Readiness(dataDir) }, stores, () => db.close());
  } catch (error) {
    await driver?.close();
    db.close();
    throw error;
  }
}

function isolationsInUse(store: SandboxStore): ReadonlySet<Isolation> {
  return new Set(store.all().flatMap(({ end, isolation }) => (end ? [] : [isolation])));
}

async function openStores({ dataDir, log, images }: EngineOptions, db: DatabaseSync, clock: Clock): Promise<EngineParts["stores"] & {}> {
  const layers = await LayerStore.open({ dataDir, log });
  return { layers, images: await ImageStore.open({ ...images, dataDir, db, layers, log, clock }) };
}

/** What of the database the engine itself has no hand in. */
interface Stores {
  readonly idempotency: IdempotencyStore;
  readonly keys: Keys;
  readonly previews: PreviewTerms;
  readonly settings: SettingsStore;
}

/** What looks at the sandboxes without being asked. */
interface Watches {
  readonly deadlines: Deadlines;
  readonly ends: Ends;
  readonly readiness: Readiness;
}

class OpenEngine implements Engine {
  readonly #core: Core;
  readonly #deadlines: Deadlines;
  readonly #meters: Meters;
  readonly #readiness: Readiness;
  readonly #ends: Ends;
  readonly #closeDatabase: () => void;
  #closing: Promise<void> | undefined;
  readonly #settings: SettingsStore;
  readonly idempotency: IdempotencyStore;
  readonly keys: Keys;
  readonly previews: PreviewTerms;

  constructor(core: Core, { deadlines, ends, readiness }: Watches, stores: Stores, closeDatabase: () => void) {
    this.#core = core;
    this.#meters = new Meters(core);
    this.#readiness = readiness;
    this.#deadlines = deadlines;
    this.#ends = ends;
    this.#closeDatabase = closeDatabase;
    this.idempotency = stores.idempotency;
    this.keys = stores.keys;
    this.previews = stores.previews;
    this.#settings = stores.settings;
  }

  get isolation() {
    return this.#core.driver.isolation;
  }

  get driverName() {
    return this.#core.driver.name;
  }

  createTemplate(request: TemplateRequest, options?: BuildOptions) {
    return this.#run("createTemplate", { "mitos.template.id": request.id }, () => createTemplate(this.#core, request, options));
  }

  listTemplates() {
    return listTemplates(this.#core);
  }

  deleteTemplate(id: TemplateRequest["id"]) {
    return this.#run("deleteTemplate", { "mitos.template.id": id }, () => deleteTemplate(this.#core, id));
  }

  buildEvents(id: TemplateRequest["id"], options: { readonly follow: boolean }, signal?: AbortSignal) {
    return this.#core.buildLogs.read(id, options, signal);
  }

  meaningOf(name: string, signal?: AbortSignal) {
    return this.#run("meaningOf", {}, () => meaningOf(this.#core, name, signal));
  }

  putContext(digest: Digest, tar: AsyncIterable<Uint8Array>, signal?: AbortSignal) {
    return this.#run("putContext", {}, async () => {
      await this.#core.images.putContext(digest, tar, signal);
      this.#core.collector.soon();
    });
  }

  hasContext(digest: Digest) {
    return this.#core.images.hasContext(digest);
  }

  pushTemplate(id: TemplateRequest["id"], reference: string, options?: Pick<BuildOptions, "signal" | "onEvent">) {
    return this.#run("pushTemplate", { "mitos.template.id": id }, () => pushTemplate(this.#core, id, reference, options));
  }

  pullImage(reference: string, options?: BuildOptions) {
    return this.#run("pullImage", {}, () => pullImage(this.#core, reference, options));
  }

  listImages(): readonly ImageSummary[] {
    return this.#core.images.list();
  }

  diskUsage() {
    return this.#run("diskUsage", {}, () => diskUsage(this.#core));
  }

  prune({ olderThanMs }: { readonly olderThanMs: number }) {
    return this.#run("prune", {}, async () => ({ removedBytes: await this.#core.collector.prune(olderThanMs) }));
  }

  create(request: CreateRequest) {
    const attributes = { "mitos.sandbox.id": request.id, "mitos.template.id": request.template };
    return this.#run("create", attributes, () => create(this.#core, request));
  }

  fork(request: ForkRequest) {
    const attributes = { "mitos.sandbox.id": request.source, "mitos.fork.count": request.ids.length };
    return this.#run("fork", attributes, () => fork(this.#core, request));
  }

  get(id: SandboxId): Sandbox {
    return this.#core.sandboxes.view(this.#core.sandboxes.require(id, "get"));
  }

  ownerOf(id: SandboxId): Owner | null {
    return this.#core.sandboxes.find(id).record.owner ?? null;
  }

  list(filter: ListFilter = {}): readonly Sandbox[] {
    const { sandboxes } = this.#core;
    return [...sandboxes.all()].filter((entry) => matches(entry, filter)).map((entry) => sandboxes.view(entry));
  }

  tree(id: SandboxId) {
    return tree(this.#core, this.#core.sandboxes.find(id));
  }

  terminate(id: SandboxId, options?: { subtree?: boolean }) {
    return this.#run("terminate", { "mitos.sandbox.id": id }, () => terminate(this.#core, id, options));
  }

  pause(id: SandboxId) {
    return this.#run("pause", { "mitos.sandbox.id": id }, () => pause(this.#core, id));
  }

  resume(id: SandboxId) {
    return this.#run("resume", { "mitos.sandbox.id": id }, () => resume(this.#core, id));
  }

  setTimeout(id: SandboxId, timeoutSeconds: number) {
    return this.#run("setTimeout", { "mitos.sandbox.id": id }, () => setTimeoutOf(this.#core, id, timeoutSeconds));
  }

  meter(id: SandboxId) {
    return this.#run("meter", { "mitos.sandbox.id": id }, () => this.#meters.one(id));
  }

  console(id: SandboxId) {
    return this.#run("console", { "mitos.sandbox.id": id }, async () => {
      const { live } = this.#core.sandboxes.require(id, "console");
      this.#requireRealMachines();
      if (!live) throw new MitosError("unavailable", { cause: `sandbox ${id} has no machine now` });
      return live.machine.console();
    });
  }

  meterAll() {
    return this.#run("meterAll", {}, () => this.#meters.all());
  }

  counts(): EngineCounts {
    const { counters, driver, egress, pool } = this.#core;
    return {
      ...counters,
      egressDenials: egress.denials,
      readyStarts: driver.readyStarts ?? { hits: 0, misses: 0 },
      pool: { ...pool.starts, waiting: pool.size },
    };
  }

  async unreadiness() {
    return this.#closing ? "the engine is closing" : this.#readiness.problem();
  }

  runtime(id: SandboxId): Runtime {
    const runtime = this.#core.sandboxes.runtimeOf(id);
    this.#requireRealMachines();
    return runtime;
  }

  #requireRealMachines(): void {
    if (this.#core.driver.name === "mock")
      throw new MitosError("not_supported", { cause: "the mock engine runs nothing inside a sandbox" });
  }

  onEnd(listener: (end: SandboxEnd) => void): () => void {
    return this.#ends.listen(listener);
  }

  onEgressDenied(listener: (denial: EgressDenial) => void): () => void {
    return this.#core.egress.onDenied(listener);
  }

  gateSelfForks(gate: SelfForkGate): () => void {
    this.#core.selfForkGate = gate;
    return () => {
      if (this.#core.selfForkGate === gate) this.#core.selfForkGate = ungatedSelfForks;
    };
  }

  storedSecret(name: string, bytes: number): Uint8Array {
    return this.#settings.secret(name, bytes);
  }

  close(options: { sandboxes: "keep" | "end" }): Promise<void> {
    this.#closing ??= this.#close(options.sandboxes);
    return this.#closing;
  }

  async #close(sandboxes: "keep" | "end"): Promise<void> {
    const core = this.#core;
    core.underWay.close();
    if (sandboxes === "end") await this.#endAll();
    const builds = [...core.templates.values()].flatMap(({ building }) => building ?? []);
    for (const build of builds) build.abort(new MitosError("unavailable", { cause: "the server is shutting down" }));
    await settledWithin([core.underWay.settled(), ...builds.map(({ done }) => done)], closeMsMax);
    // One whose creation still waited for its template is there only now.
    if (sandboxes === "end") await this.#endAll();
    await core.pool.close();
    await core.collector.settled();
    await core.buildLogs.close();
    this.#deadlines.stop();
    for (const entry of core.sandboxes.all()) {
      const { live } = entry;
      entry.live = null;
      live?.guest.close(new MitosError("unavailable", { cause: "the server is shutting down" }));
    }
    await core.driver.close();
    await core.places.close(sandboxes === "keep");
    core.sandboxes.close();
    this.#closeDatabase();
  }

  async #endAll(): Promise<void> {
    const living = [...this.#core.sandboxes.all()].filter(({ record }) => record.end === null);
    await Promise.all(living.map((entry) => endSandbox(this.#core, entry, "terminated")));
  }

  /** Actions that `close` waits for, and none begins after it. */
  #run<T>(name: string, attributes: Attributes, action: () => Promise<T>): Promise<T> {
    return this.#core.underWay.run(() => traced(`engine.${name}`, attributes, action));
  }
}

/** Without a wish for a state, whatever can still be acted on. */
function matches({ record }: Entry, { state, parent, metadata = {} }: ListFilter): boolean {
  if (state === undefined ? record.state === "ended" : record.state !== state) return false;
  if (parent !== undefined && record.parentId !== parent) return false;
  return Object.entries(metadata).every(([key, value]) => record.metadata[key] === value);
}

async function settledWithin(running: readonly Promise<unknown>[], ms: number): Promise<void> {
  const { promise: late, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  await Promise.race([Promise.allSettled(running), late]);
  clearTimeout(timer);
}
