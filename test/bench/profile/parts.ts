import type { Span } from "./trace-sink.ts";

export interface Part {
  readonly what: string;
  readonly ms: number;
}

/** How the documents call what a span covers beside the spans in it. */
const words: Readonly<Record<string, string>> = {
  "engine.create": "engine",
  "engine.fork": "engine",
  "engine.admission": "engine",
  "engine.checkSnapshot": "does the template still fit the host",
  "engine.quiesce": "the link becomes quiet",
  "engine.snapshot": "runsc saves the parent",
  "engine.restore": "runsc restores",
  "engine.adopt": "awake, and adopted",
};
const outside = "client, HTTP and server";
const link = "way to the agent and back";
const starting = "the agent starts a program";
const running = "it runs, and its end is told";
const inAgent = "agent and kernel";

/**
 * Where the time of one request has gone: each span of its trace without those in it, and beside the trace what its client waited for. Spans of a
 * request follow each other, so that the parts add up to the whole.
 */
export function partsOf(totalMs: number, trace: readonly Span[]): readonly Part[] {
  const parts = new Map<string, number>();
  const add = (what: string, ms: number) => parts.set(what, (parts.get(what) ?? 0) + Math.max(0, ms));
  const known = new Set(trace.map(({ spanId }) => spanId));
  const roots = trace.filter(({ parentSpanId }) => parentSpanId === undefined || !known.has(parentSpanId));
  add(outside, totalMs - sum(roots));
  const visit = (span: Span): void => {
    const children = trace.filter(({ parentSpanId }) => parentSpanId === span.spanId).toSorted((a, b) => startOf(a) - startOf(b));
    const ownMs = msOf(span) - sum(children);
    const startedMs = startedAfter(span);
    if (startedMs !== undefined) {
      add(starting, startedMs);
      add(running, ownMs - startedMs);
    } else {
      add(wordsFor(span.name), ownMs);
    }
    for (const child of children) visit(child);
  };
  for (const root of roots) visit(root);
  return [...parts].map(([what, ms]) => ({ what, ms }));
}

function wordsFor(name: string): string {
  if (name.startsWith("link.")) return link;
  if (name.startsWith("agent.")) return inAgent;
  return words[name] ?? outside;
}

/** After how long the agent said that it had started a program. */
function startedAfter({ name, events = [], startTimeUnixNano }: Span): number | undefined {
  if (name !== "agent.Exec") return undefined;
  const started = events.find((event) => event.name === "started");
  return started && Number(BigInt(started.timeUnixNano) - BigInt(startTimeUnixNano)) / 1e6;
}

function msOf({ startTimeUnixNano, endTimeUnixNano }: Span): number {
  return Number(BigInt(endTimeUnixNano) - BigInt(startTimeUnixNano)) / 1e6;
}

function startOf({ startTimeUnixNano }: Span): number {
  return Number(BigInt(startTimeUnixNano) / 1_000n);
}

function sum(spans: readonly Span[]): number {
  return spans.reduce((total, span) => total + msOf(span), 0);
}
