/**
 * Spans of the engine's actions and their steps. They join the trace of whoever called; without an OpenTelemetry SDK in the process nothing is
 * made and nothing is kept. No attribute holds content, commands, environment values, secrets or paths.
 */

import { MitosError } from "@mitos/protocol";
import { type Attributes, context, ROOT_CONTEXT, type Span, SpanStatusCode, trace } from "@opentelemetry/api";
import type { Driver } from "./driver.ts";
import type { ConnectGuest, Guest } from "./guest.ts";

const tracer = trace.getTracer("mitos.engine");

/** Runs a step as a span below the one that is active. */
export function traced<T>(name: string, attributes: Attributes, work: () => Promise<T>): Promise<T> {
  return tracer.startActiveSpan(name, { attributes }, async (span) => {
    try {
      return await work();
    } catch (error) {
      fail(span, error);
      throw error;
    } finally {
      span.end();
    }
  });
}

/** The same for a step that waits for nothing. */
export function tracedSync<T>(name: string, attributes: Attributes, work: () => T): T {
  const span = tracer.startSpan(name, { attributes });
  try {
    return work();
  } catch (error) {
    fail(span, error);
    throw error;
  } finally {
    span.end();
  }
}

/** The same as a trace of its own: of what goes on by itself, whatever request has set it going. */
export function tracedApart<T>(name: string, attributes: Attributes, work: () => Promise<T>): Promise<T> {
  return context.with(ROOT_CONTEXT, () => traced(name, attributes, work));
}

/** The code alone: what an error says may quote its caller. */
export function fail(span: Span, error: unknown): void {
  const code = error instanceof MitosError ? error.code : "internal";
  span.setAttribute("error.type", code);
  span.setStatus({ code: SpanStatusCode.ERROR, message: code });
}

/** A driver whose steps are spans. */
export function traceDriver(driver: Driver): Driver {
  return {
    name: driver.name,
    isolation: driver.isolation,
    get readyStarts() {
      return driver.readyStarts;
    },
    boot: (spec) => traced("engine.boot", { "mitos.template.id": spec.hostName }, () => driver.boot(spec)),
    snapshot: (machine, dir, options) =>
      traced("engine.snapshot", { "mitos.snapshot.durable": options.durable }, async () => {
        const snapshot = await driver.snapshot(machine, dir, options);
        trace.getActiveSpan()?.setAttribute("mitos.snapshot.bytes", snapshot.bytes);
        return snapshot;
      }),
    ...(driver.snapshotRoom && { snapshotRoom: driver.snapshotRoom.bind(driver) }),
    checkSnapshot: (snapshot) => traced("engine.checkSnapshot", {}, () => driver.checkSnapshot(snapshot)),
    restore: (snapshot, spec) =>
      traced("engine.restore", { "mitos.sandbox.id": spec.hostName, "mitos.snapshot.bytes": snapshot.bytes }, () =>
        driver.restore(snapshot, spec),
      ),
    ownersOf: (root) => driver.ownersOf(root),
    prepare: (like, count) => driver.prepare(like, count),
    reattach: (machineId) => driver.reattach(machineId),
    sweep: (keep, snapshots) => driver.sweep(keep, snapshots),
    collectRoots: (keep) => traced("engine.collectRoots", {}, () => driver.collectRoots(keep)),
    close: () => driver.close(),
  };
}

/** Guests whose handshakes are spans. */
export function traceGuests(connectGuest: ConnectGuest): ConnectGuest {
  return (machine, hooks) => {
    const guest = connectGuest(machine, {
      ...hooks,
      // What arrives on a link would otherwise count to whatever request opened it.
      onForkSelf: (count, label) => tracedApart("engine.forkSelf", { "mitos.fork.count": count }, () => hooks.onForkSelf(count, label)),
    });
    return {
      runtime: guest.runtime,
      open: (adoption) =>
        traced(adoption ? "engine.adopt" : "engine.open", adoption ? { "mitos.sandbox.id": adoption.sandboxId } : {}, () =>
          guest.open(adoption),
        ),
      greet: () => traced("engine.greet", {}, () => guest.greet()),
      warm: () => traced("engine.warm", {}, () => guest.warm()),
      quiesce: () => traced("engine.quiesce", {}, () => guest.quiesce()),
      setOwners: (entries, options) =>
        traced("engine.setOwners", { "mitos.owners": entries.length }, () => guest.setOwners(entries, options)),
      changes: (signal) => guest.changes(signal),
      warmKernel: (language) => traced("engine.warmKernel", { "mitos.language": language }, () => guest.warmKernel(language)),
      close: (error) => guest.close(error),
    } satisfies Guest;
  };
}
