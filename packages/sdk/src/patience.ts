/**
 * Node's fetch gives up on an answer that is silent for five minutes, which a long program is. Node exposes no switch, but the class of
 * its connection pool can be had from the global one; with a pool of that class that waits, silence is no error.
 * Elsewhere, or with a pool that somebody else installed (a proxy, a mock), the runtime's own behaviour stays.
 */

interface Timeouts {
  bodyTimeout: number;
  headersTimeout: number;
}

const globalPool = Symbol.for("undici.globalDispatcher.1");
let shared: object | undefined;

export function patientDispatcher(): object | undefined {
  shared ??= newDispatcher({ bodyTimeout: 0, headersTimeout: 0 });
  return shared;
}

export function newDispatcher(timeouts: Timeouts): object | undefined {
  // Looking at Response is what makes Node load its fetch, and with it the pool: without it the first request of a process finds none.
  if (typeof Response !== "function") return undefined;
  const pool = (globalThis as Record<symbol, unknown>)[globalPool] as { constructor: new (options: Timeouts) => object } | undefined;
  if (pool?.constructor?.name !== "Agent") return undefined;
  return new pool.constructor(timeouts);
}
