import { type Subject, TimeoutError, toE2BError } from "./errors.ts";

export interface RequestOpts {
  /** Default: 60,000; 0 = none. */
  requestTimeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

const requestTimeoutMsDefault = 60_000;

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
  const deadline = new AbortController();
  const either = signal ? AbortSignal.any([signal, deadline.signal]) : deadline.signal;
  signal?.throwIfAborted();
  const { promise: stopped, reject } = Promise.withResolvers<never>();
  const stop = () => reject(either.reason);
  either.addEventListener("abort", stop, { once: true });
  const timer = requestTimeoutMs > 0 ? setTimeout(() => deadline.abort(), requestTimeoutMs) : undefined;
  const work = run(either);
  work.catch(() => undefined); // may fail after the race is over
  try {
    return await Promise.race([work, stopped]);
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    if (deadline.signal.aborted) {
      throw new TimeoutError(`the request took longer than ${requestTimeoutMs} ms; pass a larger requestTimeoutMs`, { cause: error });
    }
    throw toE2BError(error, subject);
  } finally {
    clearTimeout(timer);
    either.removeEventListener("abort", stop);
  }
}
