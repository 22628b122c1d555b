import { describe, expect, it } from "vitest";
import { BoundedText, wholeCharacters } from "./bounded-text.ts";

const bytes = (text: string) => new TextEncoder().encode(text);

function printed(pieces: readonly Uint8Array[], bytesMax: number): BoundedText {
  const text = new BoundedText(bytesMax);
  for (const piece of pieces) text.push(piece);
  return text;
}

describe("bounded text", () => {
  it.each(["", "short", "exactly ten"])("is all of it when it fits: %j", (text) => {
    const kept = printed([bytes(text)], 12);
    expect(kept).toMatchObject({ cut: false, bytes: text.length });
    expect(kept.text()).toBe(text);
  });

  it("keeps the beginning and the end, however it was cut into pieces", () => {
    const all = bytes(Array.from({ length: 1000 }, (_, index) => `${index}\n`).join(""));
    const pieces = {
      whole: [all],
      single: [...all].map((byte) => Uint8Array.of(byte)),
      odd: [all.subarray(0, 7), all.subarray(7, 3000), all.subarray(3000)],
    };
    for (const [name, cut] of Object.entries(pieces)) {
      const kept = printed(cut, 16);
      expect(kept, name).toMatchObject({ cut: true, bytes: 3890 });
      expect(kept.text(), name).toBe("0\n1\n2\n3\n\n[… 3874 bytes left out …]\n998\n999\n");
    }
  });

  it("cuts no character in two", () => {
    const kept = printed([bytes("aüüüüüüüüüüb")], 8);
    expect(kept.text()).toBe("aü\n[… 16 bytes left out …]\nüb");
  });
});

describe("the whole characters of bytes", () => {
  it.each([
    ["a", 1, 1],
    ["aü", 2, 1],
    ["aü", 3, 3],
    ["€", 1, 0],
    ["€", 2, 0],
    ["€", 3, 3],
    ["😀", 3, 0],
    ["😀", 4, 4],
  ])("of %s cut to %i bytes are %i", (text, length, whole) => {
    expect(wholeCharacters(bytes(text).subarray(0, length))).toBe(whole);
  });

  it("are all of what is no text", () => {
    expect(wholeCharacters(Uint8Array.of(0x80, 0x80, 0x80, 0x80))).toBe(4);
    expect(wholeCharacters(new Uint8Array())).toBe(0);
  });
});
