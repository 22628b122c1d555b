/** What a server tells about itself, with real sandboxes. */

import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { text as readText } from "node:stream/consumers";
import { toSandboxId } from "@mitos/protocol";
import type { Sandbox } from "@mitos/sdk";
import { startTelemetry, type Telemetry } from "@mitos/server";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import type { MeteringReport } from "../../packages/server/src/metering.ts";
import { collect, stream, text } from "../../packages/server/src/testing/harness.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { until } from "../support/until.ts";

const mebibyte = 1024 * 1024;

let live: LiveServer;
let parent: Sandbox;
let child: Sandbox;
beforeAll(async () => {
  live = await startLiveServer();
  parent = await live.create({ id: "obs-parent" });
  child = (await parent.fork())[0]!;
});
afterAll(() => live.close());

async function metering(): Promise<MeteringReport> {
  return (await (await fetch(`${live.url}/v1/metering`, { headers: { Connection: "close" } })).json()) as MeteringReport;
}

const rowOf = (report: MeteringReport, { id }: Sandbox) => report.Sandboxes.find(({ ID }) => ID === id)!;

describe("GET /v1/metering", () => {
  it("counts what two sandboxes of a template share once, and its sums add up", async () => {
    const report = await metering();
    expect(report.Sandboxes.map(({ ID }) => ID)).toEqual([child.id, parent.id].sort());
    const [a, b] = report.Sandboxes as [MeteringReport["Sandboxes"][0], MeteringReport["Sandboxes"][0]];
    for (const row of [a, b]) {
      expect(row.MemoryUnique).toBeGreaterThan(10 * mebibyte);
      // The programs that run a sandbox alone are more than that.
      expect(row.MemoryShared).toBeGreaterThan(10 * mebibyte);
      expect(row.MemoryShared).toBeLessThan(100 * mebibyte);
    }
    const [template] = report.Templates;
    expect(template).toMatchObject({ ForkCount: 2, SharedOnce: Math.max(a.MemoryShared, b.MemoryShared) });
    expect(report.TotalUnique).toBe(a.MemoryUnique + b.MemoryUnique);
    expect(report.UsedCoWAware).toBe(report.TotalUnique + template!.SharedOnce);
    expect(report.UsedNaive - report.UsedCoWAware).toBe(Math.min(a.MemoryShared, b.MemoryShared));
    expect(template!.DiskSharedOnce).toBeGreaterThan(mebibyte);
    expect(report.DiskUsedCoWAware).toBe(template!.DiskSharedOnce);
    expect(report.Stale).toEqual([]);
  });

  it("shows 100 MB that a sandbox allocates as its own, and not as its sibling's", async () => {
    const before = await metering();
    await child.runCode("block = b'x' * 100_000_000");
    await until(
      "the memory shows",
      async () => rowOf(await metering(), child).MemoryUnique > rowOf(before, child).MemoryUnique + 95_000_000,
    );
    const after = await metering();
    expect(rowOf(after, child).MemoryUnique).toBeGreaterThan(100_000_000);
    expect(rowOf(after, parent).MemoryUnique).toBeLessThan(rowOf(before, parent).MemoryUnique + 50_000_000);
  });

  it("shows a paused sandbox's snapshot as its disk, and no memory", async () => {
    await child.pause();
    await until("the pause shows", async () => rowOf(await metering(), child).MemoryUnique === 0);
    const { DiskUnique, MemoryShared } = rowOf(await metering(), child);
    expect(MemoryShared).toBe(0);
    expect(DiskUnique).toBeGreaterThan(100_000_000);
    await child.resume();
  });
});

describe("a trace", () => {
  let collector: Collector;
  let telemetry: Telemetry;
  beforeAll(async () => {
    collector = await Collector.start();
    vi.stubEnv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url);
    telemetry = await startTelemetry({ version: "test" });
  });
  afterAll(async () => {
    await telemetry.close();
    await collector.close();
    vi.unstubAllEnvs();
  });

  it("leads from the client's request through the engine into the program, and holds no command", async () => {
    const traceId = "4bf92f3577b34da6a3ce929d0e0e4736";
    const headers = { "X-Sandbox-Id": parent.id, traceparent: `00-${traceId}-00f067aa0ba902b7-01` };
    const command = "printf %s $TRACEPARENT; : s3cret";
    const frames = await collect((await stream(live, "ExecStream", [{ command }], { headers })).frames);
    const request = await collector.span(traceId, "POST /sandbox.v1.Sandbox/ExecStream");
    const link = await collector.span(traceId, "link.Exec");
    const agent = await collector.span(traceId, "agent.Exec");
    expect([request.parentSpanId, link.parentSpanId, agent.parentSpanId]).toEqual(["00f067aa0ba902b7", request.spanId, link.spanId]);
    expect(text(frames, "stdout")).toBe(`00-${traceId}-${link.spanId}-01`);
    expect(agent.events?.map(({ name }) => name)).toEqual(["started", "first output"]);
    expect(collector.text).not.toContain("s3cret");
  });

  it("of a fork shows its steps", async () => {
    const traceId = "4bf92f3577b34da6a3ce929d0e0e4737";
    const response = await fetch(`${live.url}/v1/sandboxes/${parent.id}/fork`, {
      method: "POST",
      headers: { "Content-Type": "application/json", Connection: "close", traceparent: `00-${traceId}-00f067aa0ba902b7-01` },
      body: JSON.stringify({ id: "obs-traced" }),
    });
    expect(response.status).toBe(200);
    // Ends last, so everything below it is there as well.
    const request = await collector.span(traceId, "POST /v1/sandboxes/:id/fork");
    const fork = await collector.span(traceId, "engine.fork");
    const spans = collector.trace(traceId);
    const below = (spanId: string) =>
      spans.filter(({ parentSpanId }) => parentSpanId === spanId).map(({ name }) => name.replace("engine.", ""));
    expect(below(fork.spanId).sort()).toEqual(["admission", "adopt", "restore", "snapshot"]);
    expect(below((await collector.span(traceId, "engine.snapshot")).spanId)).toEqual(["quiesce"]);
    expect(fork.parentSpanId).toBe(request.spanId);
    expect(request.attributes).toContainEqual({ key: "mitos.sandbox.id", value: { stringValue: parent.id } });
    await live.engine.terminate(toSandboxId("obs-traced"));
  });
});

interface OtlpSpan {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly name: string;
  readonly attributes: unknown[];
  readonly events?: readonly { readonly name: string }[];
}

/** As much of an OpenTelemetry collector as the test needs: OTLP over HTTP in JSON. */
class Collector {
  readonly #server = createServer();
  readonly #spans: OtlpSpan[] = [];
  text = "";
  url = "";

  static async start(): Promise<Collector> {
    const collector = new Collector();
    collector.#server.on("request", async (request, response) => {
      const body = await readText(request);
      collector.text += body;
      const { resourceSpans } = JSON.parse(body);
      for (const { scopeSpans } of resourceSpans) for (const { spans } of scopeSpans) collector.#spans.push(...spans);
      response.setHeader("Content-Type", "application/json").end("{}");
    });
    await new Promise<void>((resolve) => collector.#server.listen(0, "127.0.0.1", resolve));
    collector.url = `http://127.0.0.1:${(collector.#server.address() as AddressInfo).port}`;
    return collector;
  }

  async span(traceId: string, name: string): Promise<OtlpSpan> {
    const find = () => this.trace(traceId).find((span) => span.name === name);
    await until(`the collector has ${name}`, () => find() !== undefined);
    return find()!;
  }

  trace(id: string): OtlpSpan[] {
    return this.#spans.filter(({ traceId }) => traceId === id);
  }

  close(): Promise<void> {
    this.#server.closeAllConnections();
    return new Promise((resolve) => this.#server.close(() => resolve()));
  }
}
