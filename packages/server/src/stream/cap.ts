import { MitosError, type SandboxId } from "@mitos/protocol";

/** Counts the streams that are open on each sandbox and refuses those above the cap. */
export class StreamCap {
  readonly #max: number;
  readonly #open = new Map<SandboxId, number>();
  #total = 0;

  /** @param max - per sandbox; 0 = no cap */
  constructor(max: number) {
    this.#max = max;
  }

  get total(): number {
    return this.#total;
  }

  /** Takes a place until it is disposed of. @throws too_many_streams */
  take(sandbox: SandboxId): Disposable {
    const open = this.#open.get(sandbox) ?? 0;
    if (this.#max > 0 && open >= this.#max) {
      throw new MitosError("too_many_streams", {
        cause: `the concurrent exec-stream limit of ${this.#max} is reached on sandbox ${sandbox}`,
        context: { sandbox },
        retryAfterMs: 1000,
      });
    }
    this.#open.set(sandbox, open + 1);
    this.#total += 1;
    let held = true;
    return {
      [Symbol.dispose]: () => {
        if (!held) return;
        held = false;
        this.#total -= 1;
        const left = (this.#open.get(sandbox) ?? 1) - 1;
        if (left > 0) this.#open.set(sandbox, left);
        else this.#open.delete(sandbox);
      },
    };
  }
}
