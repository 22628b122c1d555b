import type { Engine, SelfForkGate } from "@mitos/engine";
import { type Audit, audited, auditOf } from "./audit.ts";
import type { Auth } from "./auth/auth.ts";
import type { Metrics } from "./metrics.ts";
import { forkEvent } from "./routes/fork.ts";

/**
 * Holds forks that sandboxes ask for themselves to what a fork from outside is held to: the limits of a key, a line in the audit log, a figure.
 *
 * @returns ends it
 */
export function gateSelfForks(engine: Engine, auth: Auth | undefined, audit: Audit, metrics: Metrics): () => void {
  const gate: SelfForkGate = async (request, fork) => {
    const event = { ...forkEvent(request.source, request.ids), op: "fork_self" };
    const key = auth?.budgetKeyOf(request);
    const done = metrics.forkSeconds.startTimer({ kind: "self" });
    const result = await audited(key ? auditOf(audit, key) : audit, event, async () => {
      using _reserved = auth?.reserveSelfFork(request);
      return await fork();
    });
    done();
    return result;
  };
  return engine.gateSelfForks(gate);
}
