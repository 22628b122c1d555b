/** Lets in a fixed number of callers at a time, the others in order of arrival. */
export class Semaphore {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(permits: number) {
    this.#free = permits;
  }

  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free -= 1;
    else await new Promise<void>((admitted) => this.#waiting.push(admitted));
    try {
      return await work();
    } finally {
      // Handed over directly, so that a newcomer cannot overtake the one who waited longest.
      const next = this.#waiting.shift();
      if (next) next();
      else this.#free += 1;
    }
  }
}

/** One at a time: the operations on one sandbox that change its state. */
export class Mutex extends Semaphore {
  constructor() {
    super(1);
  }
}

/**
 * Holds all of them while `work` runs. To be used for what nobody else holds together, one of them and then another: two who do that in
 * different orders would wait for each other for ever.
 */
export function holdingAll<T>([first, ...others]: readonly Mutex[], work: () => Promise<T>): Promise<T> {
  return first ? first.run(() => holdingAll(others, work)) : work();
}
