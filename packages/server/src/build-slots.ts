import { availableParallelism } from "node:os";
import type { Owner } from "@mitos/engine";
import { limits, MitosError } from "@mitos/protocol";
import { ownerName } from "./auth/owner-name.ts";

const retryAfterMs = 5000;

/**
 * The builds and downloads that are under way. Requests for the same thing at the same time take one place: the engine makes one build of
 * them.
 */
export class BuildSlots {
  readonly #max: number;
  /** By what is built: whose it is, and how many requests wait for it. */
  readonly #underWay = new Map<string, { readonly owner: string; requests: number }>();

  /** @param max - of all owners together; default: two for each processor, and eight at least, since builds mostly wait for others */
  constructor(max = Math.max(8, 2 * availableParallelism())) {
    this.#max = max;
  }

  /**
   * Takes a place until it is disposed of.
   *
   * @param owner - undefined on a server without keys
   * @throws quota_exceeded
   */
  take(op: string, what: string, owner: Owner | undefined): Disposable {
    const name = ownerName(owner);
    const key = JSON.stringify([what, name]);
    const build = this.#underWay.get(key) ?? { owner: name, requests: 0 };
    if (build.requests === 0) {
      const own = [...this.#underWay.values()].filter((other) => other.owner === name).length;
      if (owner && own >= limits.buildsPerOwnerMax) throw tooMany(op, "of this owner", own, limits.buildsPerOwnerMax);
      if (this.#underWay.size >= this.#max) throw tooMany(op, "on this server", this.#underWay.size, this.#max);
    }
    build.requests += 1;
    this.#underWay.set(key, build);
    return {
      [Symbol.dispose]: () => {
        build.requests -= 1;
        if (build.requests === 0) this.#underWay.delete(key);
      },
    };
  }
}

function tooMany(op: string, whose: string, count: number, limit: number): MitosError {
  return new MitosError("quota_exceeded", {
    message: "too many builds are under way",
    cause: `there are ${count} builds and downloads ${whose}, and ${limit} are allowed`,
    remediation: "Wait until one of them is done, then send the request again.",
    context: { op, dimension: "builds", limit },
    retryAfterMs,
  });
}
