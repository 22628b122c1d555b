/** The OpenTelemetry SDK, loaded only when somebody asks for traces: nothing is sent anywhere otherwise. */

import { context, propagation, trace } from "@opentelemetry/api";
import type { SpanProcessor } from "@opentelemetry/sdk-trace";

export interface Telemetry {
  /** Sends what waits, and stops. */
  close(): Promise<void>;
}

export interface TelemetryOptions {
  readonly version: string;
  /** Where spans go. Default: to the collector of the usual variables (`OTEL_EXPORTER_OTLP_ENDPOINT`, …), as OTLP over HTTP. */
  readonly processor?: SpanProcessor | undefined;
}

/** How long a collector that does not answer is tried, which is also how long it can keep the server from ending. */
const timeoutMillis = 2000;

/** Often enough to look at a trace while working with it; the SDK's own default is five seconds. */
const scheduledDelayMillis = 1000;

/** Whether the environment asks for traces. */
export function wantsTelemetry(env: NodeJS.ProcessEnv): boolean {
  if (env.OTEL_SDK_DISABLED?.toLowerCase() === "true" || env.OTEL_TRACES_EXPORTER === "none") return false;
  return Boolean(env.OTEL_EXPORTER_OTLP_ENDPOINT || env.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT);
}

/** From now on this process makes spans. One at a time. */
export async function startTelemetry({ version, processor }: TelemetryOptions): Promise<Telemetry> {
  const [sdk, { AsyncLocalStorageContextManager }, { W3CTraceContextPropagator }, resources] = await Promise.all([
    import("@opentelemetry/sdk-trace"),
    import("@opentelemetry/context-async-hooks"),
    import("@opentelemetry/core"),
    import("@opentelemetry/resources"),
  ]);
  const ours = resources.resourceFromAttributes({ "service.name": "mitos", "service.version": version });
  const named = resources.detectResources({ detectors: [resources.envDetector] });
  const provider = new sdk.TracerProvider({
    resource: resources.defaultResource().merge(ours).merge(named),
    spanProcessors: [processor ?? (await toCollector())],
  });
  trace.setGlobalTracerProvider(provider);
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
  propagation.setGlobalPropagator(new W3CTraceContextPropagator());
  return {
    async close() {
      trace.disable();
      context.disable();
      propagation.disable();
      // What a collector that is gone does not take is lost.
      await provider.shutdown().catch(() => undefined);
    },
  };
}

async function toCollector(): Promise<SpanProcessor> {
  const [{ BatchSpanProcessor }, { OTLPTraceExporter }] = await Promise.all([
    import("@opentelemetry/sdk-trace"),
    import("@opentelemetry/exporter-trace-otlp-http"),
  ]);
  return new BatchSpanProcessor({ exporter: new OTLPTraceExporter({ timeoutMillis }), scheduledDelayMillis });
}
