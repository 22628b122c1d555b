/** As long as a timer can be, some 24 days: one that is to wait for longer would fire at once. */
const timerMsMax = 2 ** 31 - 1;

/** What to give a timer for a time-out that may be any number of milliseconds. */
export function timerMs(timeoutMs: number): number {
  return Math.min(Math.ceil(timeoutMs), timerMsMax);
}
