import { MitosError } from "@mitos/protocol";

/** What goes on in an open engine, whoever has asked for it. An engine that closes waits for it, and lets nothing begin any more. */
export class UnderWay {
  readonly #running = new Set<Promise<unknown>>();
  #isClosed = false;

  /** @throws unavailable once it is closed, and what `action` throws */
  async run<T>(action: () => Promise<T>): Promise<T> {
    if (this.#isClosed) throw new MitosError("unavailable", { cause: "the server is shutting down" });
    const running = action();
    this.#running.add(running);
    try {
      return await running;
    } finally {
      this.#running.delete(running);
    }
  }

  close(): void {
    this.#isClosed = true;
  }

  /** Resolves when what is under way now has come to its end, however that is. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.#running);
  }
}
