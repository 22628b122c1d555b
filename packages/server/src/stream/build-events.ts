/** Answers that tell what happens while something is built, as lines of JSON. */

import type { BuildEvent, BuildOptions } from "@mitos/engine";
import { type BuildEndJson, type BuildEventJson, MitosError } from "@mitos/protocol";
import type { FastifyReply, FastifyRequest } from "fastify";
import type { ServerContext } from "../context.ts";
import { isOurFault, toMitosError } from "../errors.ts";
import { requestSignal } from "../http/signal.ts";
import { buildEventJson } from "../shapes.ts";
import { follow } from "./follow.ts";
import { JsonLines } from "./lines.ts";
import { orSilence } from "./silence.ts";

/** How long an answer may take to begin: what fails sooner, and before the first event, has the status of its error. */
const beginMsMax = 1000;
const queuedEventsMax = 1000;
const queuedTextMax = 1024 * 1024;

interface Exchange {
  readonly request: FastifyRequest;
  readonly reply: FastifyReply;
}

/** Whether the client asks for a stream of events. */
export function wantsEvents({ headers: { accept = "" } }: FastifyRequest): boolean {
  return accept.split(",").some((one) => /^application\/x-ndjson *(?:;|$)/i.test(one.trim()) && !/; *q=0(?:\.0*)? *(?:;|$)/i.test(one));
}

/**
 * Answers with the events of `act`, each as it comes, and with its result or its failure as the last line. A client that leaves ends it.
 *
 * @param done - members of the last line
 */
export async function answerEvents<Result>(
  context: ServerContext,
  { request, reply }: Exchange,
  act: (options: Pick<BuildOptions, "signal" | "onEvent">) => Promise<Result>,
  done: (result: Result) => Omit<BuildEndJson & { kind: "done" }, "kind">,
): Promise<FastifyReply> {
  using client = requestSignal(request, reply, context.shutdown);
  const lines = new JsonLines(reply);
  const events = new EventQueue();
  const acting = act({ signal: client.signal, onEvent: (event) => events.push(event) }).finally(() => events.end());
  acting.catch(() => {}); // awaited below, when its events are through
  try {
    await writeEvents(context, lines, events).catch((error: unknown) => {
      // A client that has gone; how the build ends is what counts.
      if (!client.signal.aborted) throw error;
    });
    await lines.write(lineNow({ kind: "done", ...done(await acting) }));
  } catch (error) {
    const told = context.shutdown.aborted ? context.shutdown.reason : error;
    if (!lines.begun) throw told;
    await lines.write(lineNow({ kind: "failed", error: errorBody(context, request, told) })).catch(() => {});
  } finally {
    lines.end();
  }
  return reply;
}

/** Answers with events that somebody else's request has caused, as fast as the client reads them. */
export async function answerPastEvents(
  context: ServerContext,
  { request, reply }: Exchange,
  open: (signal: AbortSignal) => AsyncIterable<BuildEvent>,
): Promise<FastifyReply> {
  using client = requestSignal(request, reply, context.shutdown);
  const lines = new JsonLines(reply);
  try {
    const events = follow(open(client.signal), { client: client.signal, shutdown: context.shutdown });
    await writeEvents(context, lines, events, { withEnd: true });
    lines.begin();
  } catch (error) {
    if (!lines.begun) throw error;
    await lines.write({ error: errorBody(context, request, error) }).catch(() => {});
  } finally {
    lines.end();
  }
  return reply;
}

async function writeEvents(
  { eventSilenceMs }: ServerContext,
  lines: JsonLines,
  events: AsyncIterable<BuildEvent>,
  { withEnd = false } = {},
): Promise<void> {
  const firstMs = Math.min(beginMsMax, eventSilenceMs);
  for await (const event of orSilence(events, () => (lines.begun ? eventSilenceMs : firstMs))) {
    if (event === undefined) await lines.write(lineNow({ kind: "alive" }));
    else if (withEnd || !isEnd(event)) await lines.write(buildEventJson(event));
  }
}

function isEnd({ kind }: BuildEvent): boolean {
  return kind === "done" || kind === "failed";
}

function lineNow(line: { kind: "alive" } | BuildEndJson): BuildEventJson {
  return { at_ms: Date.now(), ...line };
}

function errorBody({ log }: ServerContext, { id }: FastifyRequest, error: unknown) {
  const mitos = toMitosError(error);
  if (!isOurFault(mitos)) return mitos.toEnvelope().error;
  log.error({ requestId: id, err: mitos.detail.reason ?? mitos }, "a build or its answer failed");
  return new MitosError("internal", { cause: `request ${id}` }).toEnvelope().error;
}

/**
 * Events on their way from a build, which waits for nobody, to a client, which may be slow: of each layer's progress only the last one, and of
 * output and warnings so much; how many were left out is said in their place.
 */
export class EventQueue implements AsyncIterable<BuildEvent> {
  #events: BuildEvent[] = [];
  #textLength = 0;
  #leftOut = 0;
  #ended = false;
  #wake: (() => void) | undefined;

  push(event: BuildEvent): void {
    if (event.kind === "layer") this.#events = this.#events.filter((other) => other.kind !== "layer" || other.digest !== event.digest);
    const isText = event.kind === "log" || event.kind === "warning";
    if (isText && (this.#events.length >= queuedEventsMax || this.#textLength >= queuedTextMax)) {
      this.#leftOut += 1;
      return;
    }
    this.#sayWhatIsMissing(event.atMs);
    this.#add(event);
  }

  end(): void {
    this.#sayWhatIsMissing(Date.now());
    this.#ended = true;
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<BuildEvent, void, undefined> {
    for (;;) {
      const event = this.#events.shift();
      if (event) {
        this.#textLength -= textLength(event);
        yield event;
      } else if (this.#ended) return;
      else await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  #add(event: BuildEvent): void {
    this.#events.push(event);
    this.#textLength += textLength(event);
    this.#wake?.();
  }

  #sayWhatIsMissing(atMs: number): void {
    if (this.#leftOut === 0) return;
    const text = `${this.#leftOut} lines of output were left out here, since they were read more slowly than they came`;
    this.#leftOut = 0;
    this.#add({ atMs, kind: "warning", text });
  }
}

function textLength(event: BuildEvent): number {
  return event.kind === "log" || event.kind === "warning" ? event.text.length : 0;
}
