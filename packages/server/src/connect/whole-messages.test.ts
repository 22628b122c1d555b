import { limits } from "@mitos/protocol";
import { describe, expect, it, vi } from "vitest";
import { collect, envelope } from "../testing/harness.ts";
import { wholeMessages } from "./whole-messages.ts";

async function* inPieces(body: Buffer, pieceBytes: number): AsyncGenerator<Buffer> {
  for (let at = 0; at < body.length; at += pieceBytes) yield body.subarray(at, at + pieceBytes);
}

const texts = (pieces: Uint8Array[]) => pieces.map((piece) => Buffer.from(piece).toString("latin1"));

describe("messages of a body", () => {
  const [one, two, empty] = [envelope({ one: 1 }), envelope({ two: "x".repeat(100) }, 1), envelope("")];

  it.each([1, 4, 7, 1000])("come whole, whatever the pieces: %i bytes", async (size) => {
    const pieces = await collect(wholeMessages(inPieces(Buffer.concat([one, two, empty, one]), size)));
    expect(Buffer.concat(pieces)).toEqual(Buffer.concat([one, two, empty, one]));
    if (size < 5) expect(texts(pieces)).toEqual(texts([one, two, empty, one]));
  });

  it("come when they are whole, and not with what follows", async () => {
    let asked = 0;
    const source = (async function* () {
      for (const piece of [one.subarray(0, 3), Buffer.concat([one.subarray(3), two.subarray(0, 9)]), two.subarray(9)]) {
        asked += 1;
        yield piece;
      }
    })();
    const messages = wholeMessages(source);
    expect([texts([(await messages.next()).value!]), asked]).toEqual([texts([one]), 2]);
    expect(texts([(await messages.next()).value!])).toEqual(texts([two]));
    expect((await messages.next()).done).toBe(true);
  });

  it("pass cut off as they are, and at once when they announce too much", async () => {
    expect(texts(await collect(wholeMessages(inPieces(two.subarray(0, 50), 7))))).toEqual(texts([two.subarray(0, 50)]));
    expect(texts(await collect(wholeMessages(inPieces(one.subarray(0, 2), 1))))).toEqual(texts([one.subarray(0, 2)]));
    const large = Buffer.alloc(6);
    large.writeUInt32BE(limits.messageBytesMax + 1, 1);
    const endless = (async function* () {
      for (;;) yield large;
    })();
    expect((await wholeMessages(endless).next()).value).toEqual(large);
  });

  it("are copied a few times at most, in however many pieces they come", async () => {
    const concat = vi.spyOn(Buffer, "concat");
    const body = envelope("x".repeat(20_000));
    expect(await collect(wholeMessages(inPieces(body, 1)))).toEqual([body]);
    const copied = concat.mock.calls.flatMap(([pieces]) => pieces).reduce((sum, { byteLength }) => sum + byteLength, 0);
    concat.mockRestore();
    expect(copied).toBeLessThan(3 * body.length);
  });
});
