/** Fractions of a token do not add up exactly. */
const rounding = 1e-6;

/** A table of token buckets, of bounded size. A bucket that is full again is as good as none, so forgetting the oldest costs little. */
export class TokenBuckets {
  readonly #buckets = new Map<string, { tokens: number; atMs: number }>();
  readonly #sizeMax: number;
  readonly #nowMs: () => number;

  constructor(sizeMax: number, nowMs: () => number) {
    this.#sizeMax = sizeMax;
    this.#nowMs = nowMs;
  }

  get size(): number {
    return this.#buckets.size;
  }

  /**
   * Takes one token.
   *
   * @param burst - how many a full bucket holds
   * @returns 0 when it was there; otherwise in how many milliseconds the next one will be
   */
  take(name: string, perSecond: number, burst: number): number {
    const nowMs = this.#nowMs();
    const bucket = this.#buckets.get(name) ?? { tokens: burst, atMs: nowMs };
    const elapsedMs = Math.max(0, nowMs - bucket.atMs);
    const tokens = Math.min(burst, bucket.tokens + (elapsedMs / 1000) * perSecond);
    const missing = 1 - tokens;
    const taken = missing <= rounding;
    // Put at the end: the first one is the one that was used longest ago.
    this.#buckets.delete(name);
    this.#buckets.set(name, { tokens: taken ? Math.max(0, -missing) : tokens, atMs: nowMs });
    if (this.#buckets.size > this.#sizeMax) this.#buckets.delete(this.#buckets.keys().next().value!);
    return taken ? 0 : Math.max(1, Math.ceil((missing / perSecond - rounding) * 1000));
  }
}
