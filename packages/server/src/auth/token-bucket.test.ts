import { describe, expect, it } from "vitest";
import { TokenBuckets } from "./token-bucket.ts";

describe("a token bucket", () => {
  it("gives its burst at once, then one token at a time, and says when", () => {
    let nowMs = 0;
    const buckets = new TokenBuckets(10, () => nowMs);
    expect([1, 2, 3].map(() => buckets.take("a", 2, 2))).toEqual([0, 0, 500]);
    nowMs = 499;
    expect(buckets.take("a", 2, 2)).toBe(1);
    nowMs = 500;
    expect([1, 2].map(() => buckets.take("a", 2, 2))).toEqual([0, 500]);
    expect(buckets.take("b", 2, 2)).toBe(0);
  });

  it("fills up to its burst and no further, also when the clock is set back", () => {
    let nowMs = 10_000;
    const buckets = new TokenBuckets(10, () => nowMs);
    buckets.take("a", 1, 2);
    nowMs = 100_000;
    expect([1, 2, 3].map(() => buckets.take("a", 1, 2))).toEqual([0, 0, 1000]);
    nowMs = 0;
    expect(buckets.take("a", 1, 2)).toBe(1000);
  });

  it("shares a table that does not grow over its size, and forgets what was used longest ago", () => {
    const buckets = new TokenBuckets(2, () => 0);
    for (const name of ["a", "b", "a", "c"]) buckets.take(name, 1, 2);
    expect(buckets.size).toBe(2);
    expect(buckets.take("a", 1, 2)).toBeGreaterThan(0);
  });
});
