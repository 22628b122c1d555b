import type { Engine, EngineCounts, NodeUsage } from "@mitos/engine";
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import { account, type MeteringReport } from "./metering.ts";
import type { StreamCap } from "./stream/cap.ts";

/**
 * How something that runs in a sandbox came to its end: `ok`, `error` (the program's own failure), `timeout`, `canceled` (the client left),
 * `failed` (it could not be started, or the sandbox was lost).
 */
export type Outcome = "ok" | "error" | "timeout" | "canceled" | "failed";

export interface Metrics {
  readonly contentType: string;
  readonly forkSeconds: Histogram<"kind">;
  readonly execSeconds: Histogram<"outcome">;
  readonly runCodeSeconds: Histogram<"outcome">;
  readonly pauseSeconds: Histogram;
  readonly resumeSeconds: Histogram;
  readonly requests: Counter<"method" | "route" | "status">;
  readonly refusals: Counter<"code">;
  text(): Promise<string>;
}

const secondsBuckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300];

/**
 * What a dashboard or an alert needs; docs/observability.md lists it all. Counts are read when they are asked for, and series of a sandbox are
 * there as long as the sandbox is.
 */
export function createMetrics(engine: Engine, streams: StreamCap, version: string): Metrics {
  const registry = new Registry();
  const registers = [registry];
  const histogram = <Label extends string = never>(name: string, help: string, labelNames: Label[] = []) =>
    new Histogram<Label>({ name, help, labelNames, buckets: secondsBuckets, registers });

  new Gauge({ name: "mitos_build_info", help: "Always 1", labelNames: ["version", "isolation"], registers }).set(
    { version, isolation: engine.isolation },
    1,
  );
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
  addMetering(engine, registers);
  addCounts(engine, registers);

  return {
    contentType: registry.contentType,
    forkSeconds: new Histogram({
      name: "mitos_fork_duration_seconds",
      help: "Time from request to usable sandbox, from a template (create) or a running sandbox, asked for from outside (live) or by itself (self)",
      labelNames: ["kind"],
      buckets: [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30],
      registers,
    }),
    execSeconds: histogram("mitos_exec_duration_seconds", "Foreground programs, from the request to their end, by outcome", ["outcome"]),
    runCodeSeconds: histogram("mitos_run_code_duration_seconds", "Code runs, from the request to their end, by outcome", ["outcome"]),
    pauseSeconds: histogram("mitos_pause_duration_seconds", "Time until a sandbox was paused"),
    resumeSeconds: histogram("mitos_resume_duration_seconds", "Time until a paused sandbox ran again"),
    requests: new Counter({
      name: "mitos_http_requests_total",
      help: "Answered requests, by method, route and status",
      labelNames: ["method", "route", "status"],
      registers,
    }),
    refusals: new Counter({
      name: "mitos_auth_refusals_total",
      help: "Requests turned away for their key or its limits, by the error's code",
      labelNames: ["code"],
      registers,
    }),
    text: () => Registry.merge([registry, processMetrics().registry]).metrics(),
  };
}

/** From the same report as `GET /v1/metering`, which is made once a second at most. */
function addMetering(engine: Engine, registers: Registry[]): void {
  const gauge = (name: string, help: string, value: (report: MeteringReport) => number) =>
    new Gauge({
      name,
      help,
      registers,
      async collect() {
        this.set(value(account(await usageOf(engine))));
      },
    });
  gauge("mitos_memory_unique_bytes", "Memory that one sandbox alone uses, over all sandboxes", (report) => report.TotalUnique);
  gauge(
    "mitos_memory_shared_bytes",
    "Memory that the sandboxes of a template share, once for each template",
    (report) => report.UsedCoWAware - report.TotalUnique,
  );
  gauge("mitos_cow_memory_savings_bytes", "Memory that sharing saves", (report) => report.CoWSavings);
  gauge("mitos_metered_disk_bytes", "Snapshots of templates and paused sandboxes", (report) => report.DiskUsedCoWAware);
  new Gauge({
    name: "mitos_sandbox_memory_unique_bytes",
    help: "Memory that this sandbox alone uses",
    labelNames: ["sandbox", "template"],
    registers,
    async collect() {
      const { sandboxes } = await usageOf(engine);
      this.reset();
      for (const { id, templateId, memoryBytes } of sandboxes) this.set({ sandbox: id, template: templateId }, memoryBytes);
    },
  });
}

/** Figures of an engine that is closing are none, and no reason to fail all others. */
async function usageOf(engine: Engine): Promise<NodeUsage> {
  return engine.meterAll().catch(() => ({ sandboxes: [], templates: [] }));
}

function addCounts(engine: Engine, registers: Registry[]): void {
  const counter = <Label extends string = never>(
    name: string,
    help: string,
    rows: (counts: EngineCounts) => Row<Label>[],
    labelNames: Label[] = [],
  ) =>
    new Counter<Label>({
      name,
      help,
      labelNames,
      registers,
      collect() {
        this.reset();
        for (const { labels, value } of rows(engine.counts())) this.inc(labels, value);
      },
    });
  const byKind = (member: "count" | "bytes") => (counts: EngineCounts) =>
    Object.entries(counts.snapshots).map(([kind, snapshots]) => ({ labels: { kind }, value: snapshots[member] }));
  counter("mitos_snapshots_total", "Snapshots taken, by what for", byKind("count"), ["kind"]);
  counter("mitos_snapshot_bytes_total", "Bytes of the snapshots taken, by what for", byKind("bytes"), ["kind"]);
  const byName = <Label extends string>(label: Label, counts: Readonly<Record<string, number>>): Row<Label>[] =>
    Object.entries(counts).map(([name, value]) => ({ labels: { [label]: name } as Row<Label>["labels"], value }));
  counter("mitos_builds_total", "Builds of templates, by how they ended", ({ builds }) => byName("outcome", builds), ["outcome"]);
  counter(
    "mitos_build_steps_total",
    "Steps of builds that change files, by whether they were run or their layer was there (cached)",
    ({ steps }) => byName("result", steps),
    ["result"],
  );
  counter("mitos_links_lost_total", "Links to machines that ended although nobody closed them", ({ linksLost }) => [
    { labels: {}, value: linksLost },
  ]);
  counter("mitos_egress_denied_total", "Connections out of sandboxes, and look-ups for them, that no rule allows", ({ egressDenials }) => [
    { labels: {}, value: egressDenials },
  ]);
  const hitsAndMisses = ({ hits, misses }: { readonly hits: number; readonly misses: number }): Row<"result">[] => [
    { labels: { result: "hit" }, value: hits },
    { labels: { result: "miss" }, value: misses },
  ];
  counter(
    "mitos_pool_creates_total",
    "Creates from a template as it is, by whether a machine waited for them (hit) or not (miss)",
    ({ pool }) => hitsAndMisses(pool),
    ["result"],
  );
  new Gauge({
    name: "mitos_pool_machines",
    help: "Machines that wait for the next creates",
    registers,
    collect() {
      this.set(engine.counts().pool.waiting);
    },
  });
  counter(
    "mitos_pool_starts_total",
    "Machines started, by whether a container made ahead was there (hit) or not (miss)",
    ({ readyStarts }) => hitsAndMisses(readyStarts),
    ["result"],
  );
}

interface Row<Label extends string> {
  readonly labels: Partial<Record<Label, string>>;
  readonly value: number;
}

let ofProcess: { readonly registry: Registry; readonly unhandledRejections: Counter } | undefined;

/** Processor, memory, descriptors, garbage collection, event-loop lag and defects: once for the process, however many servers it has. */
function processMetrics() {
  if (!ofProcess) {
    const registry = new Registry();
    collectDefaultMetrics({ register: registry });
    const unhandledRejections = new Counter({
      name: "mitos_unhandled_rejections_total",
      help: "Promises that failed while nobody waited for them: defects of the server, each with a line in its log",
      registers: [registry],
    });
    ofProcess = { registry, unhandledRejections };
  }
  return ofProcess;
}

export function countUnhandledRejection(): void {
  processMetrics().unhandledRejections.inc();
}
