import type { Owner } from "@mitos/engine";
import { limits, MitosError } from "@mitos/protocol";

const retryAfterMs = 1000;

/** What a request holds of its body, until it is disposed of. */
export interface HeldBody extends Disposable {
  /** @throws rate_limited when that is too much beside what others hold */
  add(bytes: number): void;
}

/** The bytes of request bodies that are kept here as a whole: nothing of them is checked, and nothing counts them elsewhere, before they are complete. */
export class BodyBudget {
  #total = 0;
  /** An owner is in here only while something of theirs is held. */
  readonly #byOwner = new Map<string, number>();

  /** @param owner - undefined on a server without keys */
  begin(owner: Owner | undefined): HeldBody {
    const name = owner ? JSON.stringify([owner.organisation, owner.owner]) : "";
    const ownMax = owner ? limits.bodyBytesPerOwnerMax : limits.bodyBytesMax;
    let held = 0;
    const count = (bytes: number) => {
      held += bytes;
      this.#total += bytes;
      const own = (this.#byOwner.get(name) ?? 0) + bytes;
      if (own > 0) this.#byOwner.set(name, own);
      else this.#byOwner.delete(name);
    };
    return {
      add: (bytes) => {
        if ((this.#byOwner.get(name) ?? 0) + bytes > ownMax) throw tooMuch("this owner", ownMax);
        if (this.#total + bytes > limits.bodyBytesMax) throw tooMuch("all clients", limits.bodyBytesMax);
        count(bytes);
      },
      [Symbol.dispose]: () => count(-held),
    };
  }
}

function tooMuch(whose: string, bytesMax: number): MitosError {
  return new MitosError("rate_limited", {
    cause: `the bodies of requests of ${whose} that are under way would have more than ${bytesMax} bytes together`,
    context: { retry_after_ms: retryAfterMs },
    retryAfterMs,
  });
}
