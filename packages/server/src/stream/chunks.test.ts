import { limits } from "@mitos/protocol";
import { describe, expect, it } from "vitest";
import { ChunkCutter } from "./chunks.ts";

/** A small repeatable generator, so that a failure can be seen again. */
function random(seed: number) {
  let state = seed;
  return (below: number) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fff_ffff;
    return (state >>> 8) % below;
  };
}

function cut(pieces: readonly Uint8Array[]): Uint8Array[] {
  const cutter = new ChunkCutter();
  return [...pieces.flatMap((piece) => [...cutter.push(piece)]), ...cutter.end()];
}

describe("cutting output", () => {
  it("changes no byte, whatever the bytes and however they arrive", () => {
    for (let seed = 1; seed <= 200; seed += 1) {
      const next = random(seed);
      const pieces = Array.from({ length: 20 }, () => Uint8Array.from({ length: next(300) }, () => next(256)));
      expect(Buffer.concat(cut(pieces)).equals(Buffer.concat(pieces)), `seed ${seed}`).toBe(true);
    }
  });

  it("keeps characters whole, whatever the cuts on the way", () => {
    const text = Buffer.from("aä€😀\n".repeat(20_000));
    for (let seed = 1; seed <= 10; seed += 1) {
      const next = random(seed);
      const pieces: Uint8Array[] = [];
      for (let at = 0; at < text.length; ) {
        const size = 1 + next(90_000);
        pieces.push(text.subarray(at, at + size));
        at += size;
      }
      const chunks = cut(pieces);
      const strict = new TextDecoder("utf-8", { fatal: true });
      expect(chunks.map((chunk) => strict.decode(chunk)).join("") === text.toString(), `seed ${seed}`).toBe(true);
      expect(Math.max(...chunks.map(({ length }) => length))).toBeLessThanOrEqual(limits.outputChunkBytesMax);
    }
  });

  it("holds back an unfinished character only until the end", () => {
    expect(cut([Uint8Array.of(0xe2, 0x82)])).toEqual([Uint8Array.of(0xe2, 0x82)]);
    expect(cut([Uint8Array.of(0xff, 0x80), Uint8Array.of(0x80)])).toHaveLength(2);
  });
});
