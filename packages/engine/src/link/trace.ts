/** A call to the agent as a span, with the part that the agent has measured as a span of its own below it. */

import type { guest } from "@mitos/protocol/proto";
import { type Context, context, type Span, SpanKind, SpanStatusCode, TraceFlags, trace } from "@opentelemetry/api";

const tracer = trace.getTracer("mitos.link");

export class CallTrace {
  /** W3C trace context for the agent and the program that it starts. */
  readonly traceparent: string;
  readonly #method: string;
  readonly #span: Span;
  readonly #inside: Context;
  readonly #beganMs = performance.now();

  /** Undefined unless the call belongs to a trace: a call of the engine's own makes none. */
  static begin(method: string): CallTrace | undefined {
    const parent = trace.getActiveSpan();
    if (!parent || !trace.isSpanContextValid(parent.spanContext())) return undefined;
    return new CallTrace(method);
  }

  private constructor(method: string) {
    this.#method = method;
    this.#span = tracer.startSpan(`link.${method}`, { kind: SpanKind.CLIENT });
    this.#inside = trace.setSpan(context.active(), this.#span);
    const { traceId, spanId, traceFlags } = this.#span.spanContext();
    this.traceparent = `00-${traceId}-${spanId}-${traceFlags & TraceFlags.SAMPLED ? "01" : "00"}`;
  }

  /**
   * How the call ended. The guest's clock is not asked and its figures are not believed beyond what passed here: its part is laid to the end of
   * ours, which is off by the way of one frame.
   */
  ended({ code, timing }: guest.Status): void {
    if (code) {
      this.#span.setAttribute("error.type", knownCode(code));
      this.#span.setStatus({ code: SpanStatusCode.ERROR });
    }
    if (!timing) return;
    const nowMs = Date.now();
    const totalMs = Math.min(Number(timing.endUs) / 1000, performance.now() - this.#beganMs);
    const startMs = nowMs - totalMs;
    const agent = tracer.startSpan(`agent.${this.#method}`, { kind: SpanKind.SERVER, startTime: startMs }, this.#inside);
    const names = this.#method === "Exec" ? ["started", "first output"] : ["first message", "second message"];
    for (const [index, us] of [timing.firstMessageUs, timing.secondMessageUs].entries()) {
      const atMs = Number(us) / 1000;
      if (atMs > 0 && atMs <= totalMs) agent.addEvent(names[index]!, startMs + atMs);
    }
    agent.end(nowMs);
  }

  /** The channel is gone. */
  end(): void {
    this.#span.end();
  }
}

/** The guest chooses the text: only a code's characters, and few of them. */
function knownCode(code: string): string {
  return /^[a-z_]{1,32}$/.test(code) ? code : "unknown";
}
