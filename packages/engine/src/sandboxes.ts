import { MitosError, type SandboxId } from "@mitos/protocol";
import type { EndCause, Runtime, Sandbox, SandboxState } from "./actions.ts";
import type { Clock } from "./clock.ts";
import type { Machine } from "./driver.ts";
import type { EgressUsage } from "./egress/gate.ts";
import type { Guest } from "./guest.ts";
import { Mutex } from "./mutex.ts";
import type { SharedSnapshot } from "./snapshots.ts";
import { type Action, describeEnd, nextStates, requireAlive, requireState } from "./states.ts";
import type { SandboxRecord, SandboxStore } from "./store/sandboxes.ts";
import type { Layers } from "./stores.ts";

/** How long it is known that a sandbox existed, and why it is no more. */
const tombstoneLifetimeMs = 24 * 60 * 60 * 1000;
const tombstonesMax = 10_000;
/** How often old tombstones are looked for, in sandboxes that end. */
const buryEvery = 64;
/** How long after the disk refused a record it is tried again. */
const owedRetryMs = 1_000;

/** A sandbox that has a machine: what it can be talked to through. */
export interface Live {
  readonly machine: Machine;
  readonly guest: Guest;
  /** The deadline that the machine was told last; undefined = none yet. */
  toldDeadlineMs?: number | null;
}

/** What this server knows of one sandbox. The record is on the disk as well; the rest is of this process. */
export interface Entry {
  readonly record: SandboxRecord;
  /** Held by whatever changes the state, so that concurrent pause, fork and resume wait for each other. Never held by `terminate`. */
  readonly mutex: Mutex;
  live: Live | null;
  /** The pause's snapshot, kept until the last fork of it has read it. */
  saved: SharedSnapshot | null;
  /** What its root is made of is kept as long as it has not ended. */
  layers: Disposable | null;
  readonly activity: Activity;
  readonly egress: EgressUsage;
  /** Children that it has asked for itself and that do not run yet: of its budget, they are neither spent nor free. */
  forksHeld: number;
}

/** What keeps an idle time-out from running: calls and streams inside the sandbox. Questions about it (get, list) do not. */
export class Activity {
  #open = 0;
  #lastMs: number;
  readonly #clock: Clock;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#lastMs = clock.nowMs();
  }

  /** A call or stream begins; the answer ends it. */
  begin(): () => void {
    this.#open += 1;
    this.#lastMs = this.#clock.nowMs();
    let ended = false;
    return () => {
      if (ended) return;
      ended = true;
      this.#open -= 1;
      this.#lastMs = this.#clock.nowMs();
    };
  }

  /** Resume counts as activity. */
  touch(): void {
    this.#lastMs = this.#clock.nowMs();
  }

  /** Since when nothing goes on; null while something does. */
  get idleSinceMs(): number | null {
    return this.#open > 0 ? null : this.#lastMs;
  }
}

type MutableEntry = { -readonly [K in keyof Entry]: Entry[K] };
type Patch = Partial<Omit<SandboxRecord, "uid" | "id" | "state">>;

/** All sandboxes of this data directory: living, paused, failed, and for a day the ended ones. */
export class Sandboxes {
  readonly #store: SandboxStore;
  readonly #clock: Clock;
  readonly #layers: Pick<Layers, "has" | "use">;
  readonly #byUid = new Map<number, Entry>();
  /** The latest holder of an id: an ended one makes room for a new one. */
  readonly #byId = new Map<string, Entry>();
  readonly #childUids = new Map<number, Set<number>>();
  #uidMax = 0;
  #ended = 0;
  #cancelRetry: (() => void) | undefined;
  /** Told after each change of a record, and when it is forgotten. */
  onChange: (entry: Entry) => void = () => {};
  /** Told once of each sandbox that has ended or failed. */
  onEnd: (entry: Entry) => void = () => {};

  constructor(store: SandboxStore, clock: Clock, layers: Pick<Layers, "has" | "use">) {
    this.#store = store;
    this.#clock = clock;
    this.#layers = layers;
    for (const record of store.all()) this.#add(record);
    this.#buryOld();
  }

  /** Takes the id. @throws conflict when a sandbox that has not ended has it */
  insert(record: Omit<SandboxRecord, "uid">): Entry {
    const holder = this.#byId.get(record.id);
    if (holder && holder.record.state !== "ended") {
      throw new MitosError("conflict", {
        cause: `sandbox id ${record.id} is in use`,
        remediation: "Choose another id, or terminate that sandbox first.",
        context: { sandbox: record.id },
      });
    }
    const withUid = { ...record, uid: this.#uidMax + 1 };
    this.#store.put(withUid);
    return this.#add(withUid);
  }

  /** Takes back an `insert` whose sandbox never ran, so that nothing of it is left. */
  forget(entry: Entry): void {
    const { uid, id, parentUid } = entry.record;
    this.#store.deleteEventually(uid);
    this.#retryWhatIsOwed();
    releaseLayers(entry);
    this.#byUid.delete(uid);
    if (this.#byId.get(id) === entry) this.#byId.delete(id);
    if (parentUid !== null) this.#childUids.get(parentUid)?.delete(uid);
    // Children of a tombstone that is forgotten keep their own lines; only the link upwards is gone.
    if (this.#childUids.get(uid)?.size === 0) this.#childUids.delete(uid);
    this.onChange(entry);
  }

  /** Whether it has not been forgotten. */
  has({ record: { uid } }: Entry): boolean {
    return this.#byUid.has(uid);
  }

  /**
   * The one place where a sandbox changes its state; the disk has it before anybody else.
   *
   * @throws quota_exceeded when the disk is full, internal when it fails: the sandbox is in the state in which it was
   */
  move(entry: Entry, to: SandboxState, patch: Patch = {}): void {
    const record = this.#next(entry, to, patch);
    this.#store.put(record);
    this.#set(entry, record);
  }

  /**
   * The same for several at once: all of them on the disk, or none.
   *
   * @param alongside - facts of another sandbox that change with them
   */
  moveAll(entries: readonly Entry[], to: SandboxState, patch: Patch, alongside?: { readonly entry: Entry; readonly patch: Patch }): void {
    const changes = entries.map((entry) => ({ entry, record: this.#next(entry, to, patch) }));
    if (alongside) changes.push({ entry: alongside.entry, record: { ...alongside.entry.record, ...alongside.patch } });
    this.#store.put(...changes.map(({ record }) => record));
    for (const { entry, record } of changes) this.#set(entry, record);
  }

  /** The same, for a state whose snapshot must be found again after a power cut. */
  moveDurably(entry: Entry, to: SandboxState, patch: Patch): void {
    const record = this.#next(entry, to, patch);
    this.#store.putDurably(record);
    this.#set(entry, record);
  }

  /** Where a sandbox is whatever the disk says, because an attempt failed: the record follows as soon as it can be written. */
  fallBack(entry: Entry, to: SandboxState, patch: Patch = {}): void {
    const record = this.#next(entry, to, patch);
    this.#store.putEventually(record);
    this.#set(entry, record);
    this.#retryWhatIsOwed();
  }

  /** Changes facts that are not the state (deadline, budget). */
  patch(entry: Entry, patch: Patch): void {
    const record = { ...entry.record, ...patch };
    this.#store.put(record);
    this.#set(entry, record);
  }

  /** Records an end, which no disk can refuse; who ends it cleans up afterwards. False when it had ended before. */
  end(entry: Entry, to: "ended" | "failed", cause: EndCause, detail = ""): boolean {
    const { state, end } = entry.record;
    if (state === "ended" || state === to) return false;
    this.fallBack(entry, to, {
      end: state === "failed" && end ? end : { cause, detail, atMs: this.#clock.nowMs() },
      machineId: null,
      snapshot: null,
    });
    releaseLayers(entry);
    if (!end) this.onEnd(entry);
    if (to === "ended" && ++this.#ended % buryEvery === 0) this.#buryOld();
    return true;
  }

  /** No retry is under way afterwards: what is owed is tried a last time. */
  close(): void {
    this.#cancelRetry?.();
    this.#cancelRetry = undefined;
    this.#store.settle();
  }

  /** @throws not_found; by state, see `requireState` */
  require(id: SandboxId, action: Action): Entry {
    const entry = this.find(id);
    requireState(entry.record, action);
    return entry;
  }

  /** `forget` for a start that failed, unless somebody ended the sandbox meanwhile: then it is a tombstone like any other. */
  forgetUnlessEnded(entry: Entry): void {
    if (entry.record.state === "starting") this.forget(entry);
  }

  /** Also one on its way to another state: whoever changes it waits for that. @throws not_found, idle_timeout, oom_killed, sandbox_not_running */
  findAlive(id: SandboxId): Entry {
    const entry = this.find(id);
    requireAlive(entry.record);
    return entry;
  }

  /** In whatever state. @throws not_found */
  find(id: SandboxId): Entry {
    const entry = this.#byId.get(id);
    if (!entry) throw unknownSandbox(id);
    return entry;
  }

  isTaken(id: SandboxId): boolean {
    const holder = this.#byId.get(id);
    return holder !== undefined && holder.record.state !== "ended";
  }

  /** Whether one that was made after the sandbox of `uid` has the id, and has not ended. */
  isThereSince(id: string, uid: number): boolean {
    const holder = this.#byId.get(id);
    return holder !== undefined && holder.record.state !== "ended" && holder.record.uid > uid;
  }

  /** Of the latest that has the id, or had it. */
  createdAtMsOf(id: SandboxId): number | undefined {
    return this.#byId.get(id)?.record.createdAtMs;
  }

  *all(): Iterable<Entry> {
    yield* this.#byUid.values();
  }

  childrenOf(entry: Entry): Entry[] {
    const uids = this.#childUids.get(entry.record.uid) ?? [];
    return [...uids].map((uid) => this.#byUid.get(uid)).filter((child) => child !== undefined);
  }

  /** The public view. */
  view(entry: Entry): Sandbox {
    const { record } = entry;
    return {
      id: record.id,
      templateId: record.templateId,
      parentId: record.parentId,
      state: record.state,
      isolation: record.isolation,
      resources: record.resources,
      network: record.network,
      metadata: record.metadata,
      createdAtMs: record.createdAtMs,
      forkTimeMs: record.forkTimeMs,
      deadlineMs: record.deadlineMs,
      idleTimeoutSeconds: record.idleTimeoutSeconds,
      endReason: describeEnd(record),
      children: this.childrenOf(entry)
        .filter((child) => child.record.state !== "ended")
        .map((child) => child.record.id),
      // Records of earlier servers have neither this nor `forksUsed`.
      owner: record.owner ?? null,
      forkBudget: record.forkBudget,
      forksUsed: record.forksUsed ?? 0,
    };
  }

  /** @throws by state */
  runtimeOf(id: SandboxId): Runtime {
    const entry = this.require(id, "runtime");
    if (!entry.live) throw new MitosError("unavailable", { cause: `sandbox ${id} is not connected` });
    return entry.live.guest.runtime;
  }

  #next(entry: Entry, to: SandboxState, patch: Patch): SandboxRecord {
    const from = entry.record.state;
    if (!(nextStates[from] as readonly SandboxState[]).includes(to)) {
      throw new Error(`broken invariant: sandbox ${entry.record.id} cannot go from ${from} to ${to}`);
    }
    return { ...entry.record, ...patch, state: to };
  }

  #set(entry: Entry, record: SandboxRecord): void {
    (entry as MutableEntry).record = record;
    this.onChange(entry);
  }

  #retryWhatIsOwed(): void {
    if (this.#cancelRetry || !this.#store.owes) return;
    this.#cancelRetry = this.#clock.after(owedRetryMs, () => {
      this.#cancelRetry = undefined;
      this.#store.settle();
      this.#retryWhatIsOwed();
    });
  }

  #add(record: SandboxRecord): Entry {
    const entry: Entry = {
      record,
      mutex: new Mutex(),
      live: null,
      saved: null,
      layers: record.end === null && record.layers ? this.#layers.use(record.layers.filter((id) => this.#layers.has(id))) : null,
      activity: new Activity(this.#clock),
      egress: { sentBytes: 0, receivedBytes: 0 },
      forksHeld: 0,
    };
    this.#byUid.set(record.uid, entry);
    this.#byId.set(record.id, entry);
    this.#uidMax = Math.max(this.#uidMax, record.uid);
    if (record.parentUid !== null) {
      const siblings = this.#childUids.get(record.parentUid) ?? new Set();
      this.#childUids.set(record.parentUid, siblings.add(record.uid));
    }
    return entry;
  }

  #buryOld(): void {
    const oldest = this.#clock.nowMs() - tombstoneLifetimeMs;
    const tombstones = [...this.#byUid.values()].filter((entry) => entry.record.end !== null);
    const tooMany = tombstones.length - tombstonesMax;
    tombstones.sort((a, b) => endedAt(a) - endedAt(b));
    for (const [index, entry] of tombstones.entries()) {
      if (endedAt(entry) <= oldest || index < tooMany) this.forget(entry);
    }
  }
}

/** Also the answer for a sandbox that the caller may not know of. */
export function unknownSandbox(id: SandboxId): MitosError {
  return new MitosError("not_found", { cause: `no sandbox has the id ${id}`, context: { sandbox: id } });
}

/** Its machine, should it still be on its way out, has links of its own to their files. */
function releaseLayers(entry: Entry): void {
  entry.layers?.[Symbol.dispose]();
  entry.layers = null;
}

function endedAt(entry: Entry): number {
  return entry.record.end?.atMs ?? 0;
}
