/**
 * One span for each request, which continues the caller's W3C trace. What an attribute holds is the route and never the path or the query: those
 * name files. Without an OpenTelemetry SDK in the process nothing is made and nothing is kept.
 */

import type { IncomingHttpHeaders } from "node:http";
import { isId } from "@mitos/protocol";
import { context, propagation, type Span, SpanKind, SpanStatusCode, trace } from "@opentelemetry/api";
import type { AnyRequest } from "./guard.ts";

const tracer = trace.getTracer("mitos.server");

const spans = new WeakMap<AnyRequest, Span>();

/** Serves a request inside its span. @returns what ends the span, with the status of the answer */
export function traceRequest(request: AnyRequest, serve: () => void): (status: number) => void {
  const parent = propagation.extract(context.active(), request.headers as IncomingHttpHeaders);
  const method = request.method ?? "";
  const span = tracer.startSpan(method, { kind: SpanKind.SERVER, attributes: { "http.request.method": method } }, parent);
  spans.set(request, span);
  context.with(trace.setSpan(parent, span), serve);
  return (status) => {
    span.setAttribute("http.response.status_code", status);
    // What the client did wrong is no error of the server's.
    if (status >= 500) span.setStatus({ code: SpanStatusCode.ERROR });
    span.end();
  };
}

/** What is known only when the request has found its way. */
export function describeRequest(request: AnyRequest, { route, sandbox, requestId }: RequestFacts): void {
  const span = spans.get(request);
  if (!span?.isRecording()) return;
  span.updateName(`${request.method} ${route}`);
  span.setAttribute("http.route", route);
  if (requestId) span.setAttribute("mitos.request.id", requestId);
  if (isId(sandbox)) span.setAttribute("mitos.sandbox.id", sandbox);
}

interface RequestFacts {
  readonly route: string;
  readonly sandbox?: unknown;
  readonly requestId?: string;
}
