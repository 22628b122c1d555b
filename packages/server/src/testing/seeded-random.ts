/** Numbers that a printed seed repeats, and what makes good input bad. MITOS_TEST_SEED sets the seed. */
export interface Dice {
  readonly seed: number;
  /** A whole number below `count`. */
  below(count: number): number;
  pick<T>(from: readonly T[]): T;
  /** A few random changes to the bytes. */
  mutate(bytes: Uint8Array): Buffer;
}

const awkward = [
  "\0",
  "%00",
  "%",
  "%ff",
  "%2e%2e/",
  "../",
  "\r\n",
  "é",
  "\ud83d\ude00",
  "-1",
  "1e309",
  "9".repeat(40),
  "null",
  "[[[[",
  '"',
  "\\",
  "A".repeat(5_000),
];

export function seededDice(): Dice {
  const seed = Number(process.env.MITOS_TEST_SEED ?? Math.floor(Math.random() * 0xffff_ffff)) >>> 0;
  console.log(`seed ${seed}`);
  let state = seed || 1;
  const below = (count: number) => {
    // xorshift32
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state % count;
  };
  const pick = <T>(from: readonly T[]): T => from[below(from.length)]!;
  const mutateOnce = (bytes: Buffer): Buffer => {
    const at = below(bytes.length + 1);
    switch (below(6)) {
      case 0:
        return bytes.subarray(0, at);
      case 1:
        return Buffer.concat([bytes.subarray(0, at), Buffer.from(pick(awkward)), bytes.subarray(at)]);
      case 2:
        return Buffer.concat([bytes.subarray(0, at), bytes.subarray(Math.min(bytes.length, at + 1 + below(8)))]);
      case 3:
        return Buffer.concat([bytes, bytes.subarray(at)]);
      case 4:
        return Buffer.concat([bytes.subarray(0, at), Buffer.from([below(256), below(256), below(256), below(256)]), bytes.subarray(at)]);
      default: {
        const copy = Buffer.from(bytes);
        if (copy.length > 0) copy[at % copy.length] = below(256);
        return copy;
      }
    }
  };
  const mutate = (bytes: Uint8Array): Buffer => {
    let changed = Buffer.from(bytes);
    for (let times = 1 + below(3); times > 0; times -= 1) changed = Buffer.from(mutateOnce(changed));
    return changed;
  };
  return { seed, below, pick, mutate };
}
