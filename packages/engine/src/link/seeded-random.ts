/** For tests: numbers that a printed seed repeats. MITOS_TEST_SEED sets it. */
export function seededRandom(): { readonly seed: number; next(): number } {
  const seed = Number(process.env.MITOS_TEST_SEED ?? Math.floor(Math.random() * 0xffff_ffff)) >>> 0;
  console.log(`seed ${seed}`);
  let state = seed || 1;
  return {
    seed,
    next: () => {
      // xorshift32
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      state >>>= 0;
      return state;
    },
  };
}
