/** Random choices that a printed seed repeats: `MITOS_SEED=… vitest run …`. */
export class Dice {
  readonly seed: number;
  #state: number;

  constructor() {
    this.seed = Number(process.env.MITOS_SEED ?? Math.floor(Math.random() * 0xffff_ffff)) >>> 0 || 1;
    this.#state = this.seed;
    console.log(`MITOS_SEED=${this.seed}`);
  }

  /** From 0 to below 1. */
  next(): number {
    // mulberry32
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 0x1_0000_0000;
  }

  pick<T>(items: readonly T[]): T {
    const item = items[Math.floor(this.next() * items.length)];
    if (item === undefined) throw new Error("nothing to pick from");
    return item;
  }

  shuffled<T>(items: readonly T[]): T[] {
    return items
      .map((item) => ({ item, at: this.next() }))
      .sort((a, b) => a.at - b.at)
      .map(({ item }) => item);
  }
}

/** How often the random tests go round: a few times by default, `MITOS_FAULT_ROUNDS` for a soak. */
export function roundsOr(standard: number): number {
  return Number(process.env.MITOS_FAULT_ROUNDS ?? standard);
}
