import { type ApiKey, type Engine, isSameOwner, type MachineResources, type Owner } from "@mitos/engine";
import { MitosError, type SandboxId } from "@mitos/protocol";
import { ownerName } from "./owner-name.ts";

export interface Wanted {
  readonly id: SandboxId;
  readonly resources: MachineResources;
}

const retryAfterMs = 2000;

/**
 * What each owner's sandboxes take, those that are being made included: a place is reserved before the engine is asked, so that requests
 * at the same time cannot pass the limit together.
 */
export class Quotas {
  readonly #engine: Engine;
  /** An owner is in here only while something of theirs is being made. */
  readonly #underWay = new Map<string, Set<Wanted>>();

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  /**
   * Until it is disposed of; from then on the sandboxes themselves count.
   *
   * @param owner - whose sandboxes they will be
   * @throws quota_exceeded
   */
  reserve(op: string, key: ApiKey, owner: Owner | null, wanted: readonly Wanted[]): Disposable {
    if (!owner) return { [Symbol.dispose]: () => {} };
    const name = ownerName(owner);
    const reserved = this.#underWay.get(name) ?? new Set();
    const memoryMiB = new Map<string, number>();
    for (const { id, state, owner: whose, resources } of this.#engine.list()) {
      if (state !== "failed" && isSameOwner(owner, whose)) memoryMiB.set(id, resources.memSizeMiB);
    }
    // One that is being made may be in the engine's list already: it counts once.
    for (const { id, resources } of [...reserved, ...wanted]) memoryMiB.set(id, resources.memSizeMiB);
    check(op, "sandboxes", key.limits.maxSandboxes, memoryMiB.size);
    check(
      op,
      "memory_mib",
      key.limits.maxMemoryMiB,
      [...memoryMiB.values()].reduce((sum, one) => sum + one, 0),
    );
    for (const one of wanted) reserved.add(one);
    this.#underWay.set(name, reserved);
    return {
      [Symbol.dispose]: () => {
        for (const one of wanted) reserved.delete(one);
        if (reserved.size === 0) this.#underWay.delete(name);
      },
    };
  }
}

function check(op: string, dimension: string, limit: number, after: number): void {
  if (after <= limit) return;
  throw quotaExceeded(op, dimension, limit, `this would make ${after} (${dimension}), and the key allows ${limit}`);
}

export function quotaExceeded(op: string, dimension: string, limit: number, cause: string): MitosError {
  return new MitosError("quota_exceeded", {
    message: "the quota of the key is used up",
    cause,
    remediation: "Terminate sandboxes or close streams, or use a key with a larger quota.",
    context: { op, dimension, limit },
    retryAfterMs,
  });
}
