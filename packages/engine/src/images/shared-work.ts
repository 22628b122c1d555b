import { orAborted } from "../or-aborted.ts";
import { canceled } from "./registry-error.ts";

export interface Caller<Event> {
  readonly signal?: AbortSignal | undefined;
  readonly onEvent?: ((event: Event) => void) | undefined;
}

interface Running<T, Event> {
  readonly result: Promise<T>;
  readonly abort: AbortController;
  readonly listeners: Set<(event: Event) => void>;
  /** The last event about each thing, for those who join later. */
  readonly latest: Map<string, Event>;
  callers: number;
}

/**
 * Work that several ask for at the same time is done once. A caller who gives up leaves the others waiting for it; it is given up when all
 * have. The last one leaves when it has stopped, and whoever comes meanwhile begins it anew then.
 */
export class SharedWork<T, Event> {
  readonly #running = new Map<string, Running<T, Event>>();
  readonly #aboutOf: (event: Event) => string;

  /** @param aboutOf - events about the same thing replace each other */
  constructor(aboutOf: (event: Event) => string) {
    this.#aboutOf = aboutOf;
  }

  /** @throws what the work throws; canceled when the caller's signal is aborted */
  async run(key: string, caller: Caller<Event>, work: (signal: AbortSignal, emit: (event: Event) => void) => Promise<T>): Promise<T> {
    const { signal, onEvent } = caller;
    if (signal?.aborted) throw canceled();
    let running = this.#running.get(key);
    while (running?.abort.signal.aborted) {
      await running.result.catch(() => {});
      running = this.#running.get(key);
    }
    if (signal?.aborted) throw canceled();
    running ??= this.#start(key, work);
    return await this.#wait(running, signal, onEvent);
  }

  #start(key: string, work: (signal: AbortSignal, emit: (event: Event) => void) => Promise<T>): Running<T, Event> {
    const abort = new AbortController();
    const listeners = new Set<(event: Event) => void>();
    const latest = new Map<string, Event>();
    const emit = (event: Event) => {
      latest.set(this.#aboutOf(event), event);
      for (const tell of listeners) tell(event);
    };
    // Begun after it is on record, so that it may itself ask for other work.
    const result = Promise.resolve()
      .then(() => work(abort.signal, emit))
      .finally(() => this.#running.delete(key));
    result.catch(() => {}); // its callers have it, if there are any left
    const running = { result, abort, listeners, latest, callers: 0 };
    this.#running.set(key, running);
    return running;
  }

  async #wait(running: Running<T, Event>, signal: AbortSignal | undefined, onEvent: ((event: Event) => void) | undefined): Promise<T> {
    const listener = onEvent && ((event: Event) => onEvent(event));
    if (listener) {
      for (const event of running.latest.values()) listener(event);
      running.listeners.add(listener);
    }
    running.callers += 1;
    try {
      return await orAborted(running.result, signal, canceled);
    } finally {
      if (listener) running.listeners.delete(listener);
      running.callers -= 1;
      if (running.callers === 0) {
        running.abort.abort();
        // Nothing of it is under way any more when its last caller is told.
        await running.result.catch(() => {});
      }
    }
  }
}
