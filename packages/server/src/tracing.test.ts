import { SpanKind } from "@opentelemetry/api";
import { InMemorySpanExporter, type ReadableSpan, SimpleSpanProcessor } from "@opentelemetry/sdk-trace";
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest";
import { startTelemetry, type Telemetry, wantsTelemetry } from "./telemetry.ts";
import { get, send, streamAll, useServer } from "./testing/harness.ts";

const at = useServer();
const exporter = new InMemorySpanExporter();
let telemetry: Telemetry;
beforeAll(async () => {
  telemetry = await startTelemetry({ version: "test", processor: new SimpleSpanProcessor({ exporter }) });
});
afterAll(() => telemetry.close());
beforeEach(() => exporter.reset());

const traceId = "0af7651916cd43dd8448eb211c80319c";
const traceparent = `00-${traceId}-b7ad6b7169203331-01`;

async function spanOfRequest(): Promise<ReadableSpan> {
  await expect.poll(() => exporter.getFinishedSpans().length).toBe(1);
  return exporter.getFinishedSpans()[0]!;
}

it("a request is a span that continues the caller's trace, named by its route", async () => {
  await get(at, "/v1/sandboxes/sb-1/files?path=/secret/place", { traceparent });
  const span = await spanOfRequest();
  expect(span.name).toBe("GET /v1/sandboxes/:id/files");
  expect(span.kind).toBe(SpanKind.SERVER);
  expect(span.spanContext().traceId).toBe(traceId);
  expect(span.parentSpanContext?.spanId).toBe("b7ad6b7169203331");
  expect(span.attributes).toEqual({
    "http.request.method": "GET",
    "http.route": "/v1/sandboxes/:id/files",
    "http.response.status_code": 404,
    "mitos.request.id": expect.any(String),
    "mitos.sandbox.id": "sb-1",
  });
  expect(span.resource.attributes).toMatchObject({ "service.name": "mitos", "service.version": "test" });
});

it("an RPC is a span with its sandbox, and nothing of the command", async () => {
  await streamAll(at, "ExecStream", [{ command: "echo s3cret", env: [{ key: "TOKEN", value: "s3cret" }] }], { traceparent });
  const span = await spanOfRequest();
  expect(span.name).toBe("POST /sandbox.v1.Sandbox/ExecStream");
  expect(span.attributes).toMatchObject({ "mitos.sandbox.id": "sb-1", "mitos.request.id": expect.any(String) });
  expect(JSON.stringify([span.attributes, span.events])).not.toContain("s3cret");
});

it("a request without a trace begins one, and a malformed trace is ignored", async () => {
  await send(at, "GET", "/healthz", undefined, { traceparent: "00-nonsense-01" });
  const span = await spanOfRequest();
  expect(span.spanContext().traceId).toMatch(/^[0-9a-f]{32}$/);
  expect(span.parentSpanContext).toBeUndefined();
});

it.each<[NodeJS.ProcessEnv, boolean]>([
  [{}, false],
  [{ OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:4318" }, true],
  [{ OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "http://127.0.0.1:4318/v1/traces" }, true],
  [{ OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:4318", OTEL_SDK_DISABLED: "true" }, false],
  [{ OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:4318", OTEL_TRACES_EXPORTER: "none" }, false],
])("an environment %o asks for traces: %s", (env, wanted) => {
  expect(wantsTelemetry(env)).toBe(wanted);
});
