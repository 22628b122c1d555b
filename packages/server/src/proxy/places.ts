import { MitosError, type SandboxId } from "@mitos/protocol";

export interface PlacesOptions {
  /** What is counted, for the error: "requests to its ports". */
  readonly what: string;
  readonly perSandboxMax: number;
  /** How many may wait for a place, and how long. Default: none. */
  readonly waitingMax?: number;
  readonly waitMsMax?: number;
}

interface Queue {
  taken: number;
  readonly waiting: Set<() => void>;
}

/** A bounded number of places per sandbox, with a bounded queue before them. */
export class Places {
  readonly #options: PlacesOptions;
  readonly #queues = new Map<SandboxId, Queue>();

  constructor(options: PlacesOptions) {
    this.#options = options;
  }

  /**
   * Takes a place until it is disposed of.
   *
   * @throws too_many_streams when all are taken and as many wait as may, or when waiting took too long; the signal's reason
   */
  async take(sandbox: SandboxId, signal: AbortSignal): Promise<Disposable> {
    const { perSandboxMax, waitingMax = 0 } = this.#options;
    const queue = this.#queues.get(sandbox) ?? { taken: 0, waiting: new Set() };
    if (queue.taken >= perSandboxMax) {
      if (queue.waiting.size >= waitingMax) throw this.#full(sandbox);
      // Whoever leaves hands the place over: it stays taken.
      await this.#turn(queue, sandbox, signal);
    } else {
      queue.taken += 1;
      this.#queues.set(sandbox, queue);
    }
    let held = true;
    return {
      [Symbol.dispose]: () => {
        if (!held) return;
        held = false;
        const [next] = queue.waiting;
        if (next) next();
        else if (--queue.taken === 0) this.#queues.delete(sandbox);
      },
    };
  }

  async #turn(queue: Queue, sandbox: SandboxId, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const onTurn = () => {
      stop();
      resolve();
    };
    const onAbort = () => {
      stop();
      reject(signal.reason);
    };
    const late = setTimeout(() => {
      stop();
      reject(this.#full(sandbox));
    }, this.#options.waitMsMax ?? 0);
    const stop = () => {
      clearTimeout(late);
      queue.waiting.delete(onTurn);
      signal.removeEventListener("abort", onAbort);
    };
    queue.waiting.add(onTurn);
    signal.addEventListener("abort", onAbort, { once: true });
    await promise;
  }

  #full(sandbox: SandboxId): MitosError {
    const { what, perSandboxMax } = this.#options;
    return new MitosError("too_many_streams", {
      cause: `the limit of ${perSandboxMax} ${what} is reached on sandbox ${sandbox}`,
      remediation: "Wait as Retry-After says, or close some.",
      context: { sandbox },
      retryAfterMs: 1000,
    });
  }
}
