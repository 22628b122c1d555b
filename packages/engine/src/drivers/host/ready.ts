import type { Log } from "../../actions.ts";
import type { Keeper } from "./machine.ts";

const waitingMax = 32;
/** Of the shapes asked for last; those of an older one make room. */
const shapesMax = 8;
/** To make one takes processors for longer than what was just started takes to answer, and to do the first thing that it is asked for. */
const afterStartMs = 100;

export interface ReadyParts<Shape, Ready extends Keeper> {
  /** The same text for equal shapes. */
  key(shape: Shape): string;
  create(shape: Shape): Promise<Ready>;
  discard(ready: Ready): Promise<void>;
  /** Whether it could still become a machine. The kernel may have killed what waited, for want of memory. */
  isAlive?(ready: Ready): boolean;
  /** Called when one begins to wait, and when it is taken: what costs something while it does nothing is stopped meanwhile. */
  rest?(ready: Ready): void;
  wake?(ready: Ready): void;
  readonly log: Log;
}

/** What can be made ahead of a machine, so that its start only has to load its memory: gVisor's containers, QEMU's processes. */
export class ReadyKeepers<Shape, Ready extends Keeper> {
  readonly #parts: ReadyParts<Shape, Ready>;
  readonly #waiting = new Map<string, Ready[]>();
  readonly #wanted = new Map<string, { shape: Shape; readonly count: number }>();
  readonly #removing = new Set<Promise<void>>();
  /** Until it is filled up. */
  #due: NodeJS.Timeout | undefined;
  #filling: Promise<void> | undefined;
  #closed = false;

  constructor(parts: ReadyParts<Shape, Ready>) {
    this.#parts = parts;
  }

  /** From now on, keeps `count` of this shape and no more, as far as the bounds for all shapes together allow. */
  want(shape: Shape, count: number): void {
    const key = this.#parts.key(shape);
    this.#wanted.delete(key);
    if (count > 0) this.#wanted.set(key, { shape, count });
    for (const oldest of this.#wanted.keys()) {
      if (this.#wanted.size <= shapesMax) break;
      this.#drop(oldest);
    }
    for (const surplus of this.#waiting.get(key)?.splice(count) ?? []) this.#remove(surplus);
    this.refill();
  }

  /** One of exactly this shape, awake. Undefined when there is none. Those that are made next are made for what it is taken for. */
  take(shape: Shape): Ready | undefined {
    const key = this.#parts.key(shape);
    const wanted = this.#wanted.get(key);
    if (wanted) wanted.shape = shape;
    const waiting = this.#waiting.get(key) ?? [];
    for (let ready = waiting.shift(); ready; ready = waiting.shift()) {
      if (this.#parts.isAlive?.(ready) === false) {
        this.#remove(ready);
        continue;
      }
      this.#parts.wake?.(ready);
      return ready;
    }
    return undefined;
  }

  /** Fills up again, soon; called when something was started, so that it does not compete with that. */
  refill(): void {
    if (this.#filling || this.#closed) return;
    this.#due ??= setTimeout(() => this.#fill(), afterStartMs).unref();
  }

  /** Keeps none of these shapes any more. Resolves when those that waited are gone. */
  async forget(isUnneeded: (shape: Shape) => boolean): Promise<void> {
    for (const [key, { shape }] of this.#wanted) if (isUnneeded(shape)) this.#drop(key);
    await this.settled();
    await Promise.all(this.#removing);
  }

  ids(): string[] {
    return [...this.#waiting.values()].flat().map(({ id }) => id);
  }

  /** Resolves when everything that is wanted waits, or could not be made. */
  async settled(): Promise<void> {
    if (this.#due) this.#fill();
    while (this.#filling) await this.#filling;
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#due);
    this.#due = undefined;
    await this.settled();
    for (const waiting of this.#waiting.values()) {
      for (const ready of waiting.splice(0)) this.#remove(ready);
    }
    await Promise.all(this.#removing);
  }

  #drop(key: string): void {
    this.#wanted.delete(key);
    for (const ready of this.#waiting.get(key)?.splice(0) ?? []) this.#remove(ready);
    this.#waiting.delete(key);
  }

  #fill(): void {
    clearTimeout(this.#due);
    this.#due = undefined;
    this.#filling = this.#fillAll().finally(() => {
      this.#filling = undefined;
    });
  }

  /** One at a time: somebody's start may be under way beside it. */
  async #fillAll(): Promise<void> {
    for (let missing = this.#missing(); missing && !this.#closed; missing = this.#missing()) {
      const [key, shape] = missing;
      try {
        this.#park(key, await this.#parts.create(shape));
      } catch (error) {
        this.#settleFor(key, shape);
        this.#parts.log.warn({ error: String(error) }, "nothing could be made ready ahead: creates and forks are slower");
      }
    }
  }

  /** No more than wait already, which stay wanted: what nobody wants, nobody would forget. */
  #settleFor(key: string, shape: Shape): void {
    const count = this.#waiting.get(key)?.length ?? 0;
    if (count > 0) this.#wanted.set(key, { shape, count });
    else this.#wanted.delete(key);
  }

  #missing(): [string, Shape] | undefined {
    if (this.ids().length >= waitingMax) return undefined;
    for (const [key, { shape, count }] of this.#wanted) {
      if ((this.#waiting.get(key)?.length ?? 0) < count) return [key, shape];
    }
    return undefined;
  }

  #park(key: string, ready: Ready): void {
    if (!this.#wanted.has(key)) {
      this.#remove(ready); // its shape had to make room meanwhile
      return;
    }
    this.#parts.rest?.(ready);
    const waiting = this.#waiting.get(key) ?? [];
    waiting.push(ready);
    this.#waiting.set(key, waiting);
    // Of one that was taken or discarded somebody else takes care.
    void ready.control.closed.then(() => {
      const at = waiting.indexOf(ready);
      if (at < 0) return;
      waiting.splice(at, 1);
      this.#remove(ready);
    });
  }

  #remove(ready: Ready): void {
    const removing = this.#parts
      .discard(ready)
      .catch((error) => this.#parts.log.warn({ error: String(error) }, "what was made ready ahead could not be removed"))
      .finally(() => this.#removing.delete(removing));
    this.#removing.add(removing);
  }
}
