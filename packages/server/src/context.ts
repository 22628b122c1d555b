import type { Actions, Engine, Log } from "@mitos/engine";
import type { Audit } from "./audit.ts";
import type { Auth } from "./auth/auth.ts";
import type { BuildSlots } from "./build-slots.ts";
import type { AnyRequest } from "./http/guard.ts";
import type { HeldBody } from "./http/held-bodies.ts";
import type { Metrics } from "./metrics.ts";
import type { StreamCap } from "./stream/cap.ts";

/** What every route has at hand. */
export interface ServerContext {
  /** Whoever asks: for the server itself. What is done for a request goes through `engineFor`. */
  readonly engine: Engine;
  /** Undefined on a server without keys. */
  readonly auth: Auth | undefined;
  /** The engine as the caller of a request may see and use it: what routes work with. */
  engineFor(request: AnyRequest): Actions;
  readonly log: Log;
  readonly version: string;
  /** Ceiling for every requested time-out; 0 = none. */
  readonly maxExecTimeoutSeconds: number;
  readonly streams: StreamCap;
  readonly builds: BuildSlots;
  /** Counts the body of a request, whose caller is known by then, until it is disposed of. */
  holdBody(request: AnyRequest, op: string): HeldBody;
  readonly audit: Audit;
  /** The audit log with the caller of a request on each line. */
  auditFor(request: AnyRequest): Pick<Audit, "record">;
  readonly metrics: Metrics;
  /** Aborted when the server goes down and the time for streams to finish is over. */
  readonly shutdown: AbortSignal;
  /** The server no longer takes new work. */
  isClosing(): boolean;
  /** How long a call waits for the next byte of its request. */
  readonly bodySilenceMs: number;
  /** How long a stream of events says nothing before it says that it is alive. */
  readonly eventSilenceMs: number;
}
