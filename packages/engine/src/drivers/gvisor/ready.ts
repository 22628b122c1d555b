import type { Log } from "../../actions.ts";
import { sendSignal } from "../host/processes.ts";
import type { Container } from "./container.ts";
import { type ContainerShape, shapeKey } from "./spec.ts";

const containersMax = 32;
/** Of the shapes asked for last; containers of an older one make room. */
const shapesMax = 8;

/**
 * Containers created ahead, so that a restore only has to load memory. They stand still while they wait: a created container costs about 5 %
 * of a processor otherwise.
 */
export class ReadyContainers {
  readonly #create: (shape: ContainerShape) => Promise<Container>;
  readonly #discard: (container: Container) => Promise<void>;
  readonly #log: Log;
  readonly #waiting = new Map<string, Container[]>();
  readonly #wanted = new Map<string, { shape: ContainerShape; count: number }>();
  readonly #removing = new Set<Promise<void>>();
  #filling: Promise<void> | undefined;
  #closed = false;

  constructor(parts: {
    create: (shape: ContainerShape) => Promise<Container>;
    discard: (container: Container) => Promise<void>;
    log: Log;
  }) {
    this.#create = parts.create;
    this.#discard = parts.discard;
    this.#log = parts.log;
  }

  /** From now on, keeps `count` containers of this shape, as far as the bounds for all shapes together allow. */
  want(shape: ContainerShape, count: number): void {
    const key = shapeKey(shape);
    this.#wanted.delete(key);
    if (count > 0) this.#wanted.set(key, { shape, count });
    for (const oldest of this.#wanted.keys()) {
      if (this.#wanted.size <= shapesMax) break;
      this.#drop(oldest);
    }
    this.#fill();
  }

  /** A container of exactly this shape, awake. Undefined when there is none. */
  take(shape: ContainerShape): Container | undefined {
    const waiting = this.#waiting.get(shapeKey(shape));
    const container = waiting?.shift();
    if (!container) return undefined;
    sendSignal(container.sentryPid, "SIGCONT");
    return container;
  }

  /** Fills up again; called when a start is done, so that it does not compete with it. */
  refill(): void {
    this.#fill();
  }

  /** Keeps none of these shapes any more. Resolves when those that waited are gone. */
  async forget(isUnneeded: (shape: ContainerShape) => boolean): Promise<void> {
    for (const [key, { shape }] of this.#wanted) if (isUnneeded(shape)) this.#drop(key);
    await this.settled();
    await Promise.all(this.#removing);
  }

  ids(): string[] {
    return [...this.#waiting.values()].flat().map((container) => container.id);
  }

  /** Resolves when everything that is wanted waits, or could not be made. */
  async settled(): Promise<void> {
    while (this.#filling) await this.#filling;
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.settled();
    for (const waiting of this.#waiting.values()) {
      for (const container of waiting.splice(0)) this.#remove(container);
    }
    await Promise.all(this.#removing);
  }

  #drop(key: string): void {
    this.#wanted.delete(key);
    for (const container of this.#waiting.get(key)?.splice(0) ?? []) this.#remove(container);
    this.#waiting.delete(key);
  }

  #fill(): void {
    if (this.#filling || this.#closed) return;
    this.#filling = this.#fillAll().finally(() => {
      this.#filling = undefined;
    });
  }

  /** One at a time: somebody's start may be under way beside it. */
  async #fillAll(): Promise<void> {
    for (let missing = this.#missing(); missing && !this.#closed; missing = this.#missing()) {
      const [key, shape] = missing;
      try {
        this.#park(key, await this.#create(shape));
      } catch (error) {
        this.#wanted.delete(key);
        this.#log.warn({ error: String(error) }, "no container could be made ready ahead: creates and forks are slower");
      }
    }
  }

  #missing(): [string, ContainerShape] | undefined {
    if (this.ids().length >= containersMax) return undefined;
    for (const [key, { shape, count }] of this.#wanted) {
      if ((this.#waiting.get(key)?.length ?? 0) < count) return [key, shape];
    }
    return undefined;
  }

  #park(key: string, container: Container): void {
    if (!this.#wanted.has(key)) {
      this.#remove(container); // its shape had to make room meanwhile
      return;
    }
    sendSignal(container.sentryPid, "SIGSTOP");
    const waiting = this.#waiting.get(key) ?? [];
    waiting.push(container);
    this.#waiting.set(key, waiting);
    // Of one that was taken or discarded somebody else takes care.
    void container.control.closed.then(() => {
      const at = waiting.indexOf(container);
      if (at < 0) return;
      waiting.splice(at, 1);
      this.#remove(container);
    });
  }

  #remove(container: Container): void {
    const removing = this.#discard(container)
      .catch((error) => this.#log.warn({ error: String(error) }, "a ready container could not be removed"))
      .finally(() => this.#removing.delete(removing));
    this.#removing.add(removing);
  }
}
