/**
 * What `work` comes to; or, as soon as the signal is aborted, a rejection with `reason`. The work goes on, and it is somebody else's to end it.
 * Its own failure counts for whoever waits until then.
 */
export async function orAborted<T>(work: Promise<T>, signal: AbortSignal | undefined, reason: () => unknown): Promise<T> {
  if (!signal) return work;
  const aborted = Promise.withResolvers<never>();
  const abort = (): void => aborted.reject(reason());
  signal.addEventListener("abort", abort, { once: true });
  if (signal.aborted) abort();
  try {
    return await Promise.race([work, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}
