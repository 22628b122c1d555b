import { limits } from "@mitos/protocol";

/**
 * Cuts the output of one stream into chunks of at most 32 KiB, without cutting a UTF-8 character in two where that can be avoided: some
 * clients decode every chunk by itself. An unfinished character at the end of a piece is held back until the next one.
 */
export class ChunkCutter {
  #held: Uint8Array = new Uint8Array(0);

  *push(data: Uint8Array): Generator<Uint8Array> {
    const joined = this.#held.length > 0 ? Buffer.concat([this.#held, data]) : data;
    const whole = joined.length - unfinishedTail(joined);
    this.#held = joined.slice(whole);
    for (let start = 0; start < whole; ) {
      let end = Math.min(start + limits.outputChunkBytesMax, whole);
      if (end < whole) end -= unfinishedTail(joined.subarray(start, end));
      yield joined.subarray(start, end);
      start = end;
    }
  }

  /** What is still held back, at the end of the stream. */
  *end(): Generator<Uint8Array> {
    if (this.#held.length > 0) yield this.#held;
    this.#held = new Uint8Array(0);
  }
}

/** How many bytes at the end begin a UTF-8 character that is not complete: 0 to 3; 0 where the bytes are not UTF-8. */
function unfinishedTail(bytes: Uint8Array): number {
  for (let back = 1; back <= 3 && back <= bytes.length; back += 1) {
    const byte = bytes[bytes.length - back]!;
    if (byte < 0x80) return 0;
    if (byte < 0xc0) continue;
    const needs = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2;
    return back < needs && byte < 0xf8 ? back : 0;
  }
  return 0;
}
