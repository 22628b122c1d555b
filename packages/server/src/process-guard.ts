/** What nobody has caught, in the process of a server. */

import type { Log } from "@mitos/engine";
import { countUnhandledRejection } from "./metrics.ts";

/** The server lets its requests finish for five seconds; what is left then ends with the process. */
const endMsMax = 15_000;

export interface ProcessGuard extends Disposable {
  /** Aborted when an error was thrown past everybody: what was under way may be half done, so the process is to end, in order. */
  readonly broken: AbortSignal;
}

/**
 * A promise that fails while nobody waits for it is logged and counted, and the server goes on: a forgotten await is no reason to cut every
 * connection. An error that nobody catches is logged and breaks the guard; a process that has not ended by itself soon after is ended, with
 * exit code 1.
 */
export function guardProcess(log: Log): ProcessGuard {
  const broken = new AbortController();
  const onRejection = (reason: unknown) => {
    countUnhandledRejection();
    log.error({ err: toError(reason) }, "a promise failed that nobody waited for");
  };
  const onException = (error: unknown) => {
    log.error({ err: toError(error) }, "an error was caught by nobody, and the server ends");
    if (broken.signal.aborted) return;
    setTimeout(() => process.exit(1), endMsMax).unref();
    broken.abort(new Error("an error was caught by nobody"));
  };
  process.on("unhandledRejection", onRejection);
  process.on("uncaughtException", onException);
  return {
    broken: broken.signal,
    [Symbol.dispose]() {
      process.off("unhandledRejection", onRejection);
      process.off("uncaughtException", onException);
    },
  };
}

/** Of anything else that was thrown only the kind: it may hold whatever its maker had at hand. */
function toError(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : new Error(`what was thrown is no error, but of the type ${typeof thrown}`);
}
