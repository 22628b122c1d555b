/** What a trace shows of the engine: against the mock driver and a link to a guest in memory, with spans kept in memory. */

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { toSandboxId } from "@mitos/protocol";
import { guest } from "@mitos/protocol/proto";
import { context, SpanStatusCode, trace } from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import { InMemorySpanExporter, type ReadableSpan, SimpleSpanProcessor, TracerProvider } from "@opentelemetry/sdk-trace";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Machine } from "./driver.ts";
import type { Guest, GuestHooks } from "./guest.ts";
import { LinkClient } from "./link/client.ts";
import { FakeGuest } from "./link/fake-guest.ts";
import { frameType } from "./link/frame.ts";
import { Bench, sandbox } from "./testing.ts";
import { traceGuests } from "./tracing.ts";

const { method } = guest.Agent;
const exporter = new InMemorySpanExporter();

beforeAll(() => {
  trace.setGlobalTracerProvider(new TracerProvider({ spanProcessors: [new SimpleSpanProcessor({ exporter })] }));
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
});

beforeEach(() => exporter.reset());
afterAll(() => {
  trace.disable();
  context.disable();
});

/** Runs below a span, as a request does. @returns the spans that ended meanwhile, in order */
async function inRequest(work: () => Promise<unknown>): Promise<ReadableSpan[]> {
  exporter.reset();
  await trace.getTracer("test").startActiveSpan("request", async (span) => {
    await work();
    span.end();
  });
  return exporter.getFinishedSpans().filter(({ name }) => name !== "request");
}

const parentOf = (spans: readonly ReadableSpan[], name: string) => {
  const parent = spans.find((span) => span.name === name)?.parentSpanContext?.spanId;
  return spans.find((span) => span.spanContext().spanId === parent)?.name;
};

describe("an action of the engine", () => {
  it("shows the steps of a fork, in order and below it", async () => {
    await using bench = await Bench.open();
    await bench.engine.create(sandbox("parent"));
    const ids = [toSandboxId("child")];
    const spans = await inRequest(() =>
      bench.engine.fork({ source: toSandboxId("parent"), ids, inheritSecrets: false, env: { KEY: "s3cret" } }),
    );
    const steps = ["admission", "quiesce", "snapshot", "restore", "adopt"].map((step) => `engine.${step}`);
    expect(spans.map(({ name }) => name)).toEqual([...steps, "engine.fork"]);
    for (const step of steps) expect(parentOf(spans, step)).toBe(step === "engine.quiesce" ? "engine.snapshot" : "engine.fork");
    expect(spans.at(-1)?.attributes).toEqual({ "mitos.sandbox.id": "parent", "mitos.fork.count": 1 });
    expect(JSON.stringify(spans.map(({ attributes }) => attributes))).not.toContain("s3cret");
  });

  it("shows the steps of pause and resume", async () => {
    await using bench = await Bench.open();
    await bench.engine.create(sandbox("sleeper"));
    const spans = await inRequest(async () => {
      await bench.engine.pause(toSandboxId("sleeper"));
      await bench.engine.resume(toSandboxId("sleeper"));
    });
    expect(spans.map(({ name }) => name.replace("engine.", ""))).toEqual([
      "quiesce",
      "snapshot",
      "pause",
      "admission",
      "checkSnapshot",
      "restore",
      "adopt",
      "resume",
    ]);
  });

  it("that fails says with which code, and nothing of the message", async () => {
    await using bench = await Bench.open();
    const spans = await inRequest(() => bench.engine.pause(toSandboxId("no-such")).catch(() => {}));
    expect(spans.map(({ name, status, events }) => ({ name, status, events }))).toEqual([
      { name: "engine.pause", status: { code: SpanStatusCode.ERROR, message: "not_found" }, events: [] },
    ]);
  });
});

it("a machine that is made to wait begins a trace of its own, and the create that takes it shows no start", async () => {
  await using bench = await Bench.open({ poolSize: 1 });
  const filling = await inRequest(async () => {
    await bench.engine.create(sandbox("first"));
    bench.clock.advance(1_000);
    await expect.poll(() => bench.engine.counts().pool.waiting).toBe(1);
  });
  const [fill] = filling.filter(({ name }) => name === "engine.fillPool");
  expect(fill?.parentSpanContext).toBeUndefined();
  for (const step of ["admission", "checkSnapshot", "restore", "greet", "warm"]) {
    const below = filling.filter(
      ({ name, parentSpanContext }) => name === `engine.${step}` && parentSpanContext?.spanId === fill?.spanContext().spanId,
    );
    expect(below, step).toHaveLength(1);
  }
  const spans = await inRequest(() => bench.engine.create(sandbox("second")));
  expect(spans.map(({ name }) => name)).toEqual(["engine.checkSnapshot", "engine.adopt", "engine.create"]);
});

it("a fork that a guest asks for begins a trace of its own", async () => {
  let hooks: GuestHooks | undefined;
  const connect = traceGuests((_machine, given) => {
    hooks = given;
    return {} as Guest;
  });
  connect({} as Machine, { onForkSelf: async () => ["child"] } as unknown as GuestHooks);
  const [span] = await inRequest(async () => expect(await hooks?.onForkSelf(1, "")).toEqual(["child"]));
  expect([span?.name, span?.parentSpanContext]).toEqual(["engine.forkSelf", undefined]);
});

describe("a call over the link", () => {
  async function call(end: (fake: FakeGuest, channel: number, traceparent: string) => void): Promise<string> {
    const fake = new FakeGuest();
    const link = new LinkClient(fake.transport);
    await link.hello();
    let seen = "";
    fake.handler = async ({ number }) => {
      const frame = fake.sent(frameType.open)[0]!;
      seen = fromBinary(guest.OpenSchema, frame.payload).traceparent;
      end(fake, number, seen);
    };
    const { messages } = link.duplex(method.exec, { msg: { case: "start", value: { shellCommand: "true" } } });
    for await (const _message of messages);
    link.close();
    return seen;
  }
  const endWith = (status: Parameters<typeof create<typeof guest.StatusSchema>>[1]) => (fake: FakeGuest, channel: number) =>
    fake.raw({ type: frameType.end, flags: 0, channel, payload: toBinary(guest.StatusSchema, create(guest.StatusSchema, status)) });

  it("carries its span to the agent, and shows what the agent has measured below it", async () => {
    let traceparent = "";
    const timing = { firstMessageUs: 1n, secondMessageUs: 2n, endUs: 3n };
    const spans = await inRequest(async () => {
      traceparent = await call(endWith({ timing }));
    });
    const [agent, link] = spans as [ReadableSpan, ReadableSpan];
    expect(spans.map(({ name }) => name)).toEqual(["agent.Exec", "link.Exec"]);
    expect(parentOf(spans, "agent.Exec")).toBe("link.Exec");
    expect(traceparent).toBe(`00-${link.spanContext().traceId}-${link.spanContext().spanId}-01`);
    expect(agent.events.map(({ name }) => name)).toEqual(["started", "first output"]);
  });

  it("that is left when its program has ended still shows what the agent says of it later", async () => {
    const fake = new FakeGuest();
    const link = new LinkClient(fake.transport);
    await link.hello();
    const exit = toBinary(guest.ExecOutputSchema, create(guest.ExecOutputSchema, { msg: { case: "exit", value: {} } }));
    let channel = 0;
    fake.handler = async (call) => {
      channel = call.number;
      await call.send(exit);
    };
    const whenLeft = await inRequest(async () => {
      for await (const _exit of link.duplex(method.exec, {}, { isLast: () => true }).messages) break;
    });
    expect(whenLeft).toEqual([]);
    endWith({ timing: { firstMessageUs: 1n, secondMessageUs: 0n, endUs: 3n } })(fake, channel);
    await expect.poll(() => link.openChannels).toBe(0);
    const spans = exporter.getFinishedSpans();
    expect(spans.map(({ name }) => name)).toEqual(["request", "agent.Exec", "link.Exec"]);
    expect([parentOf(spans, "agent.Exec"), parentOf(spans, "link.Exec")]).toEqual(["link.Exec", "request"]);
    expect(fake.sent(frameType.reset)).toEqual([]);
    link.close();
  });

  it("does not believe an agent that claims more time than has passed", async () => {
    const timing = { firstMessageUs: 2n ** 63n, secondMessageUs: 0n, endUs: 2n ** 64n - 1n };
    const spans = await inRequest(() => call(endWith({ timing, code: "Not a code\n" })).catch(() => {}));
    const agent = spans.find(({ name }) => name === "agent.Exec")!;
    expect(agent.duration[0]).toBeLessThan(60);
    expect(agent.events).toEqual([]);
    expect(spans.find(({ name }) => name === "link.Exec")?.attributes).toEqual({ "error.type": "unknown" });
  });

  it("outside a trace makes no span and sends nothing for it", async () => {
    expect(await call(endWith({}))).toBe("");
    expect(exporter.getFinishedSpans()).toEqual([]);
  });
});
