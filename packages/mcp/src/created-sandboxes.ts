import type { Backend } from "./backend.ts";

/** How long the end of a session waits for the end of its sandboxes. */
const terminateTimeoutMs = 10_000;

/** The sandboxes that one session has made, for `--ephemeral`, which ends them with it. */
export class CreatedSandboxes {
  readonly #backend: Backend;
  readonly #ids = new Set<string>();

  constructor(backend: Backend) {
    this.#backend = backend;
  }

  /** Before they are asked for: a server that is cut off half-way may have made them all the same. */
  add(...ids: readonly string[]): void {
    for (const id of ids) this.#ids.add(id);
  }

  delete(id: string): void {
    this.#ids.delete(id);
  }

  /** Ends them all. What cannot be ended is for the deadline of the sandbox, and is told on standard error. */
  async terminateAll(): Promise<void> {
    const ids = [...this.#ids];
    this.#ids.clear();
    const timeout = Promise.withResolvers<never>();
    const timer = setTimeout(() => timeout.reject(new Error("no answer in time")), terminateTimeoutMs);
    const terminate = (id: string) => this.#backend.sandbox(id)[Symbol.asyncDispose](); // one that has ended already is fine
    const ends = await Promise.allSettled(ids.map((id) => Promise.race([terminate(id), timeout.promise])));
    clearTimeout(timer);
    for (const [index, end] of ends.entries()) {
      if (end.status === "rejected") process.stderr.write(`mitos-mcp: sandbox ${ids[index]} could not be terminated: ${end.reason}\n`);
    }
  }
}
