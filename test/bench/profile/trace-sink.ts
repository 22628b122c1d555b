import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import { until } from "../../support/until.ts";

/** A span as OTLP has it in JSON. */
export interface Span {
  readonly name: string;
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly startTimeUnixNano: string;
  readonly endTimeUnixNano: string;
  readonly events?: readonly { readonly name: string; readonly timeUnixNano: string }[];
}

/** A collector of OpenTelemetry traces on loopback that keeps what it is sent. */
export class TraceSink implements AsyncDisposable {
  /** What a program is told by its environment to send its traces here, soon. */
  readonly env: Readonly<Record<string, string>>;
  readonly #server: Server;
  readonly #spans: Span[] = [];

  private constructor(server: Server) {
    this.#server = server;
    const { port } = server.address() as AddressInfo;
    this.env = { OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${port}`, OTEL_BSP_SCHEDULE_DELAY: "50" };
    server.on("request", (request, response) => {
      void text(request).then((body) => {
        this.#take(body);
        response.setHeader("content-type", "application/json").end("{}");
      });
    });
  }

  static async open(): Promise<TraceSink> {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return new TraceSink(server);
  }

  /**
   * The spans of a request that this program made, the newest of that name.
   *
   * @param parts - what must be among them: they are sent when they end, each by itself
   */
  async newest(root: string, parts: readonly string[]): Promise<readonly Span[]> {
    let trace: readonly Span[] = [];
    await until(`the trace of ${root} has come, with ${parts.join(", ")}`, () => {
      const { traceId } = this.#spans.findLast(({ name }) => name === root) ?? {};
      trace = this.#spans.filter((span) => span.traceId === traceId);
      return parts.every((part) => trace.some(({ name }) => name === part));
    });
    return trace;
  }

  /** Forgets what has come so far. */
  clear(): void {
    this.#spans.length = 0;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #take(body: string): void {
    const { resourceSpans = [] } = JSON.parse(body) as { resourceSpans?: { scopeSpans: { spans: Span[] }[] }[] };
    for (const { scopeSpans } of resourceSpans) for (const { spans } of scopeSpans) this.#spans.push(...spans);
  }
}
