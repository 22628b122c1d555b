/** Time as the engine sees it, so that tests can move it. */
export interface Clock {
  nowMs(): number;
  /** Calls `wake` once, `delayMs` from now or later. The answer cancels it. */
  after(delayMs: number, wake: () => void): () => void;
}

export const systemClock: Clock = {
  nowMs: () => Date.now(),
  after(delayMs, wake) {
    const timer = setTimeout(wake, delayMs);
    timer.unref();
    return () => clearTimeout(timer);
  },
};
