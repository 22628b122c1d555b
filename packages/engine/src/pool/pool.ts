import { machineOverheadBytes } from "../admission.ts";
import { type Core, newMachineId } from "../core.ts";
import type { MachineResources } from "../driver.ts";
import type { SharedSnapshot } from "../snapshots.ts";
import { tracedApart } from "../tracing.ts";
import { WaitingMachine } from "./waiting.ts";

/** How many machines wait for sandboxes at most, unless the operator says otherwise. */
export const poolSizeDefault = 8;
/** What waits may take so much of the memory that sandboxes could be promised now. */
const roomShare = 1 / 8;
/** After a start it is filled up only when the sandbox has had time for its first work. */
const refillDelayMs = 200;
const lookMs = 60_000;
/** Of a template that nobody has used for so long none wait. */
const unusedMs = 10 * 60_000;
/** None waits for longer: programs of its template would find that hours have passed. */
const ageMaxMs = 30 * 60_000;
/** When its server is gone and none comes after it. */
const deadlineMs = 2 * ageMaxMs;

/** Machines as they come from a template. */
export interface Kind {
  readonly snapshot: SharedSnapshot;
  readonly resources: MachineResources;
}

/** Whoever has not woken it by its disposal has given it back. */
export interface Taken extends Disposable {
  readonly waiting: WaitingMachine;
}

interface Shelf extends Kind {
  readonly machines: WaitingMachine[];
  wanted: number;
  usedAtMs: number;
}

/**
 * Machines that wait for the next creates, stopped on the host: a create that finds one only has to adopt it.
 *
 * How many of a template wait follows demand: one more with each create that finds none, one fewer with each minute in which nobody wants any. All of
 * them together are no more than a bound, and end when somebody needs their memory.
 */
export class MachinePool {
  readonly starts = { hits: 0, misses: 0 };
  readonly #core: () => Core;
  readonly #max: number;
  /** By the folder of the snapshot; the one used last is the last. */
  readonly #shelves = new Map<string, Shelf>();
  readonly #ending = new Set<Promise<void>>();
  #filling: Promise<void> | undefined;
  #cancelRefill: (() => void) | undefined;
  #cancelLook: (() => void) | undefined;
  #closed = false;

  /** @param max - how many may wait; 0 = none */
  constructor(core: () => Core, max: number) {
    this.#core = core;
    this.#max = max;
  }

  get size(): number {
    return this.#all().length;
  }

  /** One of this kind. Undefined when none waits. */
  take(kind: Kind): Taken | undefined {
    if (this.#max === 0 || this.#closed || kind.snapshot.isDiscarded) return undefined;
    const shelf = this.#use(kind);
    const waiting = shelf.machines.shift();
    this.starts[waiting ? "hits" : "misses"] += 1;
    if (!waiting) shelf.wanted = Math.min(this.#max, shelf.wanted + 1);
    this.#refillSoon();
    return (
      waiting && {
        waiting,
        [Symbol.dispose]: () => {
          if (!waiting.isWoken) this.#put(shelf, waiting);
        },
      }
    );
  }

  /** None of this snapshot waits any more. Resolves when what did is gone. */
  async drop(snapshot: SharedSnapshot): Promise<void> {
    const shelf = this.#shelves.get(dirOf(snapshot));
    this.#shelves.delete(dirOf(snapshot));
    await this.#filling;
    this.#endAll(shelf?.machines ?? [], "its template is gone");
    await Promise.all(this.#ending);
  }

  /** Ends as many as it takes. @returns how much memory becomes free, which may be less than asked for */
  reclaim(bytes: number): number {
    let freed = 0;
    for (const shelf of this.#shelves.values()) {
      while (freed < bytes && shelf.machines.length > 0) freed += this.#giveUpOne(shelf, "its memory is needed").bytes;
    }
    return freed;
  }

  /** Resolves when none waits, and none comes any more. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#cancelRefill?.();
    this.#cancelLook?.();
    await this.#filling;
    for (const { machines } of this.#shelves.values()) this.#endAll(machines, "the server ends");
    await Promise.all(this.#ending);
  }

  #use({ snapshot, resources }: Kind): Shelf {
    const shelf = this.#shelves.get(dirOf(snapshot)) ?? { snapshot, resources, machines: [], wanted: 0, usedAtMs: 0 };
    shelf.usedAtMs = this.#core().clock.nowMs();
    this.#shelves.delete(dirOf(snapshot));
    this.#shelves.set(dirOf(snapshot), shelf);
    return shelf;
  }

  #all(): WaitingMachine[] {
    return [...this.#shelves.values()].flatMap(({ machines }) => machines);
  }

  #refillSoon(): void {
    const { clock } = this.#core();
    this.#cancelRefill ??= clock.after(refillDelayMs, () => {
      this.#cancelRefill = undefined;
      this.#filling ??= this.#fill().finally(() => {
        this.#filling = undefined;
      });
    });
    this.#cancelLook ??= clock.after(lookMs, () => {
      this.#cancelLook = undefined;
      this.#look();
    });
  }

  /** One at a time: somebody's start may be under way beside it. */
  async #fill(): Promise<void> {
    while (!this.#closed) {
      const shelf = this.#neediest();
      if (!shelf) return;
      try {
        const waiting = await tracedApart("engine.fillPool", {}, () => this.#make(shelf));
        if (!waiting) return;
        this.#put(shelf, waiting);
      } catch (error) {
        shelf.wanted = 0;
        this.#core().log.warn({ error: String(error) }, "no machine could be made to wait for the next create, which is slower");
      }
    }
  }

  /** The one used last of those that lack some. The one unused for longest makes room for it. */
  #neediest(): Shelf | undefined {
    const shelves = [...this.#shelves.values()];
    const neediest = shelves.findLast(({ machines, wanted }) => machines.length < wanted);
    if (!neediest || this.size < this.#max) return neediest;
    const oldest = shelves.find(({ machines }) => machines.length > 0);
    if (!oldest || oldest === neediest) return undefined;
    this.#giveUpOne(oldest, "another template is used more");
    return neediest;
  }

  /** Undefined when there is no room for it. */
  async #make({ snapshot, resources }: Kind): Promise<WaitingMachine | undefined> {
    const core = this.#core();
    const bytes = snapshot.snapshot.bytes + machineOverheadBytes(core.driver);
    const heldBytes = this.#all().reduce((sum, waiting) => sum + waiting.bytes, 0);
    if (heldBytes + bytes > (core.admission.roomBytes + heldBytes) * roomShare) return undefined;
    using _memory = core.admission.reserve("wait", bytes);
    const giveBack = snapshot.borrow();
    try {
      await core.driver.checkSnapshot(snapshot.snapshot);
      const machineId = newMachineId();
      const machine = await core.starts.run(() => core.driver.restore(snapshot.snapshot, { machineId, resources, hostName: machineId }));
      return await this.#rest(machine, bytes);
    } finally {
      giveBack();
    }
  }

  async #rest(machine: WaitingMachine["machine"], bytes: number): Promise<WaitingMachine> {
    const core = this.#core();
    const waiting: WaitingMachine = new WaitingMachine(core, machine, { bytes, onLost: () => this.#lost(waiting) });
    try {
      await machine.setDeadline(core.clock.nowMs() + deadlineMs);
      await waiting.guest.greet();
      await waiting.guest.warm();
      await machine.freeze();
      return waiting;
    } catch (error) {
      await waiting.end("start failed");
      throw error;
    }
  }

  #put(shelf: Shelf, waiting: WaitingMachine): void {
    if (this.#shelves.get(dirOf(shelf.snapshot)) === shelf && !this.#closed) shelf.machines.push(waiting);
    else this.#end(waiting, "its template is gone");
  }

  /** It has ended by itself, or broken the rules of the link. */
  #lost(waiting: WaitingMachine): void {
    for (const { machines } of this.#shelves.values()) {
      const at = machines.indexOf(waiting);
      if (at >= 0) this.#endAll(machines.splice(at, 1), "it was lost while it waited");
    }
  }

  #giveUpOne(shelf: Shelf, reason: string): WaitingMachine {
    const waiting = shelf.machines.pop() as WaitingMachine;
    shelf.wanted = shelf.machines.length;
    this.#end(waiting, reason);
    return waiting;
  }

  #endAll(machines: WaitingMachine[], reason: string): void {
    for (const waiting of machines.splice(0)) this.#end(waiting, reason);
  }

  #end(waiting: WaitingMachine, reason: string): void {
    const ending = waiting.end(reason).finally(() => this.#ending.delete(ending));
    this.#ending.add(ending);
  }

  #look(): void {
    const nowMs = this.#core().clock.nowMs();
    for (const [dir, shelf] of this.#shelves) {
      const unusedForMs = nowMs - shelf.usedAtMs;
      if (unusedForMs >= unusedMs) shelf.wanted = 0;
      else if (unusedForMs >= lookMs) shelf.wanted = Math.max(1, shelf.wanted - 1);
      const fresh = shelf.machines.filter(({ sinceMs }) => nowMs - sinceMs < ageMaxMs).slice(0, shelf.wanted);
      for (const waiting of shelf.machines.splice(0)) if (!fresh.includes(waiting)) this.#end(waiting, "it has waited for too long");
      shelf.machines.push(...fresh);
      if (shelf.wanted === 0) this.#shelves.delete(dir);
    }
    if (this.#shelves.size > 0) this.#refillSoon();
  }
}

function dirOf({ snapshot }: SharedSnapshot): string {
  return snapshot.dir;
}
