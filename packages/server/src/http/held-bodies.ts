import type { Owner } from "@mitos/engine";
import { limits, MitosError } from "@mitos/protocol";
import { ownerName } from "../auth/owner-name.ts";

const retryAfterMs = 1000;
/** What a piece takes beside its bytes, measured with pieces of one byte: many small ones must not be held for nothing. */
const pieceOverheadBytes = 1024;

export interface HeldBody extends Disposable {
  /**
   * Counts a piece that has been received.
   *
   * @returns what it counts for
   * @throws quota_exceeded, and the piece is not counted; canceled when the request is over
   */
  add(bytes: number): number;
  /** Of all that was counted this is still needed; the rest has been let go of. */
  keepOnly(bytes: number): void;
}

/**
 * The bytes of request bodies in the server's memory. A body is held until its request is over: what was parsed of it lives as long, and a
 * sandbox may take its time.
 */
export class HeldBodies {
  readonly #max: { readonly perOwner: number; readonly server: number };
  /** An owner is in here only while something of theirs is held. */
  readonly #owners = new Map<string, number>();
  #total = 0;

  constructor(max = { perOwner: limits.heldBodyBytesPerOwnerMax, server: limits.heldBodyBytesMax }) {
    this.#max = max;
  }

  /**
   * Until it is disposed of.
   *
   * @param op - what is asked for, as the error names it
   * @param whose - asked when the first byte has come; undefined on a server without keys, where only the whole server's limit holds
   */
  hold(op: string, whose: () => Owner | undefined): HeldBody {
    let owner: Owner | undefined;
    let held = 0;
    let over = false;
    const keepOnly = (bytes: number) => {
      if (bytes >= held) return;
      this.#change(owner, bytes - held);
      held = bytes;
    };
    return {
      add: (bytes) => {
        if (over) throw new MitosError("canceled", { cause: "the request is over" });
        if (held === 0) owner = whose();
        const cost = bytes + pieceOverheadBytes;
        this.#check(op, owner, cost);
        this.#change(owner, cost);
        held += cost;
        return cost;
      },
      keepOnly,
      [Symbol.dispose]: () => {
        over = true;
        keepOnly(0);
      },
    };
  }

  #check(op: string, owner: Owner | undefined, bytes: number): void {
    const own = (this.#owners.get(ownerName(owner)) ?? 0) + bytes;
    if (owner && own > this.#max.perOwner) throw tooMuch(op, "of this owner", this.#max.perOwner);
    const isSmall = owner && own <= limits.heldBodyBytesPerOwnerMin;
    if (this.#total + bytes > this.#max.server && !isSmall) throw tooMuch(op, "on this server", this.#max.server);
  }

  #change(owner: Owner | undefined, bytes: number): void {
    const name = ownerName(owner);
    const own = (this.#owners.get(name) ?? 0) + bytes;
    if (own > 0) this.#owners.set(name, own);
    else this.#owners.delete(name);
    this.#total += bytes;
  }
}

function tooMuch(op: string, whose: string, limit: number): MitosError {
  return new MitosError("quota_exceeded", {
    message: "too many request bodies are under way",
    cause: `requests ${whose} may hold ${limit} bytes together until they are answered`,
    remediation: "Wait until some of them are answered, then send the request again. The raw file routes hold nothing of a file.",
    context: { op, dimension: "body_bytes", limit },
    retryAfterMs,
  });
}
