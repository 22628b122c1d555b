import type { Engine, Log, SelfForkGate } from "@mitos/engine";
import { type Audit, auditOf, note } from "./audit.ts";
import type { Auth } from "./auth/auth.ts";
import { TokenBuckets } from "./auth/token-bucket.ts";
import type { Metrics } from "./metrics.ts";
import { forkEvent } from "./routes/fork.ts";

/** Lines about refusals, of each sandbox: a program that asks for ever must not fill the disk. What happens is bounded by the budget. */
const pace = { perSecond: 1, burst: 10 } as const;
const sandboxesMax = 10_000;

export interface SelfForkKeeping {
  readonly engine: Engine;
  /** Undefined on a server without keys. */
  readonly auth: Auth | undefined;
  readonly audit: Audit;
  readonly metrics: Metrics;
  readonly log: Log;
}

/**
 * Holds forks that sandboxes ask for themselves to what a fork from outside is held to: the limits of a key, a line in the audit log, a figure.
 *
 * @returns ends it
 */
export function gateSelfForks({ engine, auth, audit, metrics, log }: SelfForkKeeping): () => void {
  const refusals = new TokenBuckets(sandboxesMax, Date.now);
  const gate: SelfForkGate = async (request, fork) => {
    const key = auth?.budgetKeyOf(request);
    const write = (ok: boolean) => {
      const event = { ...forkEvent(request.source, request.ids), op: "fork_self", ok };
      note(key ? auditOf(audit, key) : audit, log, event);
    };
    const done = metrics.forkSeconds.startTimer({ kind: "self" });
    try {
      using _reserved = auth?.reserveSelfFork(request);
      const result = await fork();
      write(true);
      done();
      return result;
    } catch (error) {
      if (refusals.take(request.source, pace.perSecond, pace.burst) === 0) write(false);
      throw error;
    }
  };
  return engine.gateSelfForks(gate);
}
