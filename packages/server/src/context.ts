import type { Engine, Log } from "@mitos/engine";
import type { Audit } from "./audit.ts";
import type { AnyRequest } from "./http/guard.ts";
import type { Metrics } from "./metrics.ts";
import type { StreamCap } from "./stream/cap.ts";

/** What every route has at hand. */
export interface ServerContext {
  readonly engine: Engine;
  /** The engine as the caller of a request may see and use it: what routes work with. */
  engineFor(request: AnyRequest): Engine;
  readonly log: Log;
  readonly version: string;
  /** Ceiling for every requested time-out; 0 = none. */
  readonly maxExecTimeoutSeconds: number;
  readonly streams: StreamCap;
  readonly audit: Audit;
  readonly metrics: Metrics;
  /** Aborted when the server goes down and the time for streams to finish is over. */
  readonly shutdown: AbortSignal;
  /** The server no longer takes new work. */
  isClosing(): boolean;
}
