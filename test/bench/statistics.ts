/** What samples say together, and how they are collected. */

/**
 * The smallest sample that at least this share of all are not above, so that a quantile was really measured. Of fewer than a hundred samples the
 * 99th percentile is the largest.
 */
export function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? Number.NaN;
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

/** What a piece of work took, in ms. */
export async function timedMs(work: () => unknown): Promise<number> {
  const started = performance.now();
  await work();
  return performance.now() - started;
}

/** Samples by the name of what was measured, in the order in which the names first came. */
export class Samples {
  readonly #values = new Map<string, number[]>();

  record(name: string, value: number): void {
    const values = this.#values.get(name);
    if (values) values.push(value);
    else this.#values.set(name, [value]);
  }

  async timed<T>(name: string, work: () => T | Promise<T>): Promise<T> {
    const started = performance.now();
    const result = await work();
    this.record(name, performance.now() - started);
    return result;
  }

  of(name: string): readonly number[] {
    return this.#values.get(name) ?? [];
  }

  median(name: string): number {
    return median(this.of(name));
  }

  [Symbol.iterator](): IterableIterator<readonly [name: string, values: readonly number[]]> {
    return this.#values.entries();
  }
}
