import type { ApiKey, Log } from "@mitos/engine";
import type { MitosError } from "@mitos/protocol";
import type { Counter } from "prom-client";
import { type Audit, auditOf, note } from "../audit.ts";
import { TokenBuckets } from "./token-bucket.ts";

/** Lines of all who have no key together, and of each key. Who is turned away for ever must not fill the disk. */
const pace = { perSecond: 1, burst: 100 } as const;
const keysMax = 10_000;
const withoutKey = "";

/** A request that was turned away at the door. */
export interface Refusal {
  readonly error: MitosError;
  /** Undefined = nobody whom the server knows. */
  readonly caller: ApiKey | undefined;
  readonly address: string;
  /** What was asked for, where that is known: of ours, not in the words of the request. */
  readonly op?: string;
}

/** Counts refused requests, and writes down those of callers that are unknown or may not do what they asked for. */
export class Refusals {
  readonly #audit: Audit;
  readonly #count: Counter<"code">;
  readonly #log: Log;
  readonly #lines: TokenBuckets;
  /** Since the last line; of all together. */
  #leftOut = 0;

  constructor(audit: Audit, count: Counter<"code">, log: Log, nowMs: () => number = Date.now) {
    this.#audit = audit;
    this.#count = count;
    this.#log = log;
    this.#lines = new TokenBuckets(keysMax, nowMs);
  }

  /** Nothing that the request has said itself is written: a key could stand anywhere in it. */
  note({ error, caller, address, op }: Refusal): void {
    this.#count.inc({ code: error.code });
    if (error.code !== "unauthorized" && error.code !== "forbidden") return;
    if (this.#lines.take(caller?.id ?? withoutKey, pace.perSecond, pace.burst) > 0) {
      this.#leftOut += 1;
      return;
    }
    const parts = [`code=${error.code}`, ...(op ? [`op=${op}`] : []), `from=${address}`];
    if (this.#leftOut > 0) parts.push(`left_out=${this.#leftOut}`);
    this.#leftOut = 0;
    const audit = caller ? auditOf(this.#audit, caller) : this.#audit;
    note(audit, this.#log, { sandbox_id: "", op: "refused", detail: parts.join(" "), ok: false });
  }
}
