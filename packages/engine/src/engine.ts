import { MitosError, type SandboxId } from "@mitos/protocol";
import type {
  CreateRequest,
  Engine,
  EngineOptions,
  ForkRequest,
  IdempotencyStore,
  ListFilter,
  Runtime,
  Sandbox,
  TemplateRequest,
} from "./actions.ts";
import { Admission } from "./admission.ts";
import { type Clock, systemClock } from "./clock.ts";
import { type Core, startsAtOnce } from "./core.ts";
import { create } from "./create.ts";
import type { Driver } from "./driver.ts";
import { pickDriver } from "./drivers/pick.ts";
import { EgressGate } from "./egress/gate.ts";
import { type EgressNetwork, hostNetwork } from "./egress/network.ts";
import { fork } from "./fork.ts";
import type { ConnectGuest } from "./guest.ts";
import { Deadlines, endSandbox, setTimeoutOf, terminate } from "./lifecycle.ts";
import { connectGuest } from "./link-guest.ts";
import { Semaphore } from "./mutex.ts";
import { pause, resume } from "./pause.ts";
import { recover } from "./recovery.ts";
import { type Entry, Sandboxes } from "./sandboxes.ts";
import { SnapshotPlaces } from "./snapshots.ts";
import { openDatabase } from "./store/database.ts";
import { createIdempotencyStore } from "./store/idempotency.ts";
import { SandboxStore } from "./store/sandboxes.ts";
import { TemplateStore } from "./store/templates.ts";
import { createTemplate, deleteTemplate, listTemplates } from "./templates.ts";
import { tree } from "./tree.ts";

/** How long `close` waits for what is under way. */
const closeMsMax = 30_000;

/**
 * Opens the engine of a data directory: locks it, picks the driver, takes up what an earlier server left.
 *
 * @throws conflict when another server uses the directory; not_supported when no engine is usable here, with what to install;
 *   internal when the database cannot be read
 */
export async function openEngine(options: EngineOptions): Promise<Engine> {
  return openEngineWith(options, { pickDriver: () => pickDriver(options) });
}

/** What tests of the engine replace. */
export interface EngineParts {
  readonly pickDriver: () => Promise<Driver>;
  readonly connectGuest?: ConnectGuest;
  readonly clock?: Clock;
  readonly admission?: Admission;
  readonly egressNetwork?: EgressNetwork;
}

export async function openEngineWith({ dataDir, log }: EngineOptions, parts: EngineParts): Promise<Engine> {
  const clock = parts.clock ?? systemClock;
  // The lock comes first: only its holder may touch machines and folders.
  const db = openDatabase(dataDir);
  let driver: Driver | undefined;
  try {
    driver = await parts.pickDriver();
    const core: Core = {
      driver,
      connectGuest: parts.connectGuest ?? connectGuest,
      log,
      clock,
      egress: new EgressGate(parts.egressNetwork ?? hostNetwork, log, clock),
      admission: parts.admission ?? new Admission(),
      places: await SnapshotPlaces.open(dataDir, log),
      sandboxes: new Sandboxes(new SandboxStore(db), clock),
      templateStore: new TemplateStore(db),
      templates: new Map(),
      starts: new Semaphore(startsAtOnce),
    };
    await recover(core);
    const deadlines = new Deadlines(core);
    for (const entry of core.sandboxes.all()) deadlines.arm(entry);
    return new OpenEngine(core, deadlines, createIdempotencyStore(db, clock), () => db.close());
  } catch (error) {
    await driver?.close();
    db.close();
    throw error;
  }
}

class OpenEngine implements Engine {
  readonly #core: Core;
  readonly #deadlines: Deadlines;
  readonly #closeDatabase: () => void;
  readonly #underWay = new Set<Promise<unknown>>();
  #closing: Promise<void> | undefined;
  readonly idempotency: IdempotencyStore;

  constructor(core: Core, deadlines: Deadlines, idempotency: IdempotencyStore, closeDatabase: () => void) {
    this.#core = core;
    this.#deadlines = deadlines;
    this.#closeDatabase = closeDatabase;
    this.idempotency = idempotency;
  }

  get isolation() {
    return this.#core.driver.isolation;
  }

  get driverName() {
    return this.#core.driver.name;
  }

  createTemplate(request: TemplateRequest) {
    return this.#run(() => createTemplate(this.#core, request));
  }

  listTemplates() {
    return listTemplates(this.#core);
  }

  deleteTemplate(id: TemplateRequest["id"]) {
    return this.#run(() => deleteTemplate(this.#core, id));
  }

  create(request: CreateRequest) {
    return this.#run(() => create(this.#core, request));
  }

  fork(request: ForkRequest) {
    return this.#run(() => fork(this.#core, request));
  }

  get(id: SandboxId): Sandbox {
    return this.#core.sandboxes.view(this.#core.sandboxes.require(id, "get"));
  }

  list(filter: ListFilter = {}): readonly Sandbox[] {
    const { sandboxes } = this.#core;
    return [...sandboxes.all()].filter((entry) => matches(entry, filter)).map((entry) => sandboxes.view(entry));
  }

  tree(id: SandboxId) {
    return tree(this.#core, this.#core.sandboxes.find(id));
  }

  terminate(id: SandboxId, options?: { subtree?: boolean }) {
    return this.#run(() => terminate(this.#core, id, options));
  }

  pause(id: SandboxId) {
    return this.#run(() => pause(this.#core, id));
  }

  resume(id: SandboxId) {
    return this.#run(() => resume(this.#core, id));
  }

  setTimeout(id: SandboxId, timeoutSeconds: number) {
    return this.#run(() => setTimeoutOf(this.#core, id, timeoutSeconds));
  }

  meter(id: SandboxId) {
    return this.#run(async () => {
      const { live, egress } = this.#core.sandboxes.require(id, "meter");
      if (!live) throw new MitosError("unavailable", { cause: `sandbox ${id} has no machine now` });
      return { ...(await live.machine.meter()), egressBytes: egress.sentBytes, egressReceivedBytes: egress.receivedBytes };
    });
  }

  runtime(id: SandboxId): Runtime {
    const runtime = this.#core.sandboxes.runtimeOf(id);
    if (this.#core.driver.name === "mock")
      throw new MitosError("not_supported", { cause: "the mock engine runs nothing inside a sandbox" });
    return runtime;
  }

  close(options: { sandboxes: "keep" | "end" }): Promise<void> {
    this.#closing ??= this.#close(options.sandboxes);
    return this.#closing;
  }

  async #close(sandboxes: "keep" | "end"): Promise<void> {
    const core = this.#core;
    const entries = [...core.sandboxes.all()];
    if (sandboxes === "end") {
      const living = entries.filter(({ record }) => record.end === null && record.state !== "paused");
      await Promise.all(living.map((entry) => endSandbox(core, entry, "terminated")));
    }
    await settledWithin([...this.#underWay], closeMsMax);
    this.#deadlines.stop();
    for (const entry of entries) {
      const { live } = entry;
      entry.live = null;
      live?.guest.close(new MitosError("unavailable", { cause: "the server is shutting down" }));
    }
    await core.driver.close();
    await core.places.close(sandboxes === "keep");
    this.#closeDatabase();
  }

  /** Actions that `close` waits for, and none begins after it. */
  async #run<T>(action: () => Promise<T>): Promise<T> {
    if (this.#closing) throw new MitosError("unavailable", { cause: "the server is shutting down" });
    const running = action();
    this.#underWay.add(running);
    try {
      return await running;
    } finally {
      this.#underWay.delete(running);
    }
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
