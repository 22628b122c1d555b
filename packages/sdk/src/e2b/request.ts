import { timerMs } from "../timer.ts";
import { type Subject, TimeoutError, toE2BError } from "./errors.ts";

/** How long to wait for one request, and what cancels it. */
export interface RequestOpts {
  /** Default: 60,000; 0 = none. */
  requestTimeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

const requestTimeoutMsDefault = 60_000;

/** With the time-out of the sandbox's own options where a call has none. */
export function withTimeout({ requestTimeoutMs, signal }: RequestOpts, ownMs: number | undefined): RequestOpts {
  return { requestTimeoutMs: requestTimeoutMs ?? ownMs, signal };
}

/**
 * One request with E2B's time-out, cancellation and errors.
 *
 * @param run - is given a signal to pass on; whether it listens to it or not, the promise is settled when the signal fires
 * @throws TimeoutError after `requestTimeoutMs`; the reason of the caller's own signal; else an error of E2B's classes
 */
export async function request<T>(
  subject: Subject,
  { requestTimeoutMs = requestTimeoutMsDefault, signal }: RequestOpts,
  run: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  signal?.throwIfAborted();
  const deadline = new AbortController();
  const either = signal ? AbortSignal.any([signal, deadline.signal]) : deadline.signal;
  const timer = requestTimeoutMs > 0 ? setTimeout(() => deadline.abort(), timerMs(requestTimeoutMs)) : undefined;
  const work = run(either);
  work.catch(() => undefined); // may fail after the race is over
  try {
    return await Promise.race([work, rejectionOf(either)]);
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    if (deadline.signal.aborted) {
      throw new TimeoutError(`the request took longer than ${requestTimeoutMs} ms; pass a larger requestTimeoutMs`, { cause: error });
    }
    throw toE2BError(error, subject);
  } finally {
    clearTimeout(timer);
  }
}

function rejectionOf(signal: AbortSignal): Promise<never> {
  const rejection = new Promise<never>((_resolve, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
  rejection.catch(() => undefined); // may come after the race is over
  return rejection;
}
