import type { Engine } from "@mitos/engine";
import { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { StreamCap } from "./stream/cap.ts";

export interface Metrics {
  readonly registry: Registry;
  readonly forkSeconds: Histogram<"kind">;
  readonly requests: Counter<"method" | "route" | "status">;
}

/** The few figures that a dashboard or an alert needs. Counts are read when they are asked for. */
export function createMetrics(engine: Engine, streams: StreamCap): Metrics {
  const registry = new Registry();
  const registers = [registry];
  new Gauge({
    name: "mitos_active_sandboxes",
    help: "Sandboxes that exist, by state",
    labelNames: ["state"],
    registers,
    collect() {
      this.reset();
      this.set({ state: "running" }, 0);
      for (const { state } of engine.list()) this.inc({ state });
    },
  });
  new Gauge({
    name: "mitos_templates",
    help: "Templates that exist",
    registers,
    collect() {
      this.set(engine.listTemplates().length);
    },
  });
  new Gauge({
    name: "mitos_open_streams",
    help: "Exec and output streams that are open",
    registers,
    collect() {
      this.set(streams.total);
    },
  });
  const ends = new Counter({
    name: "mitos_sandbox_ends_total",
    help: "Sandboxes that have ended or failed, by reason",
    labelNames: ["reason"],
    registers,
  });
  engine.onEnd(({ cause }) => ends.inc({ reason: cause }));
  return {
    registry,
    forkSeconds: new Histogram({
      name: "mitos_fork_duration_seconds",
      help: "Time from request to usable sandbox, from a template (create) or a running sandbox (live)",
      labelNames: ["kind"],
      buckets: [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30],
      registers,
    }),
    requests: new Counter({
      name: "mitos_http_requests_total",
      help: "Answered requests, by method, route and status",
      labelNames: ["method", "route", "status"],
      registers,
    }),
  };
}
