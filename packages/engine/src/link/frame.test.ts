import { describe, expect, it } from "vitest";
import { encodeFrames, type Frame, FrameReader, framePieces, frameType, headerBytes, noPayload } from "./frame.ts";
import { seededRandom } from "./seeded-random.ts";
import { LinkViolation } from "./violation.ts";

function readAll(chunks: Iterable<Uint8Array>): Frame[] {
  const frames: Frame[] = [];
  const reader = new FrameReader((type, flags, channel, payload) => frames.push({ type, flags, channel, payload }));
  for (const chunk of chunks) reader.push(chunk);
  return frames;
}

function* cut(bytes: Uint8Array, size: () => number): Generator<Uint8Array> {
  for (let at = 0; at < bytes.byteLength; ) {
    const end = at + size();
    yield bytes.subarray(at, end);
    at = end;
  }
}

const plain = (frames: readonly Frame[]) => frames.map((frame) => ({ ...frame, payload: Buffer.from(frame.payload).toString("base64") }));

const frames: Frame[] = [
  { type: frameType.open, flags: 0, channel: 2, payload: Buffer.from("abc") },
  { type: frameType.data, flags: 1, channel: 0xffff_fffe, payload: Buffer.alloc(65_536, 7) },
  { type: frameType.end, flags: 0, channel: 2, payload: noPayload },
  { type: frameType.data, flags: 0, channel: 2, payload: Buffer.alloc(300, 9) },
];

describe("frames", () => {
  it.each([1, 2, 9, 10, 11, 1_000, 65_536, 200_000])("come out as they went in when they arrive in chunks of %d bytes", (size) => {
    expect(plain(readAll(cut(encodeFrames(frames), () => size)))).toEqual(plain(frames));
  });

  it("have the header that docs/link.md describes", () => {
    const [frame] = [{ type: frameType.data, flags: 1, channel: 0x01020304, payload: Buffer.from("hi") }];
    expect([...encodeFrames([frame as Frame])]).toEqual([0, 0, 0, 2, 0x11, 1, 1, 2, 3, 4, 104, 105]);
  });

  it("are not changed by what is read into the same memory after them", () => {
    const bytes = encodeFrames(frames);
    const got = readAll([bytes]);
    bytes.fill(0xff);
    expect(plain(got)).toEqual(plain(frames));
  });

  it.each([1, 8_192, 65_000])("with a body of %d bytes of its own are the same bytes as in one piece", (length) => {
    const body = Buffer.alloc(length, 5);
    const apart: Frame[] = [
      frames[0] as Frame,
      { type: frameType.data, flags: 0, channel: 4, payload: Buffer.from("head"), body },
      frames[3] as Frame,
    ];
    const pieces = framePieces(apart);
    expect(Buffer.concat(pieces)).toEqual(Buffer.from(encodeFrames(apart)));
    expect(pieces.includes(body)).toBe(length >= 8_192);
    const [, whole] = readAll(pieces);
    expect(whole?.payload).toEqual(Buffer.concat([Buffer.from("head"), body]));
  });

  it.each([
    ["a payload of 65,537 bytes", [0, 1, 0, 1, 0x11, 0, 0, 0, 0, 2]],
    ["a payload of 4 GiB", [255, 255, 255, 255, 0x11, 0, 0, 0, 0, 2]],
    ["an unknown type", [0, 0, 0, 0, 0x7f, 0, 0, 0, 0, 2]],
    ["an unknown flag", [0, 0, 0, 0, 0x11, 2, 0, 0, 0, 2]],
  ])("with %s are refused before their payload", (_, header) => {
    expect(() => readAll([Uint8Array.from(header)])).toThrow(LinkViolation);
    expect(() => readAll(cut(Uint8Array.from(header), () => 3))).toThrow(LinkViolation);
  });

  it("survive any cutting, and any bytes end in frames or LinkViolation (fuzz smoke)", () => {
    const { seed, next } = seededRandom();
    for (let run = 0; run < 300; run += 1) {
      const many = Array.from({ length: 1 + (next() % 20) }, () => ({
        type: frameType.data,
        flags: next() % 2,
        channel: next(),
        payload: Buffer.alloc(next() % 3 === 0 ? 0 : next() % 3_000, next()),
      }));
      const whole = encodeFrames(many);
      expect(plain(readAll(cut(whole, () => 1 + (next() % 4_000)))), `seed ${seed}`).toEqual(plain(many));

      for (let flips = 0; flips < 3; flips += 1) whole[next() % whole.byteLength] = next();
      let bytes = 0;
      try {
        for (const frame of readAll(cut(whole, () => 1 + (next() % 500)))) bytes += headerBytes + frame.payload.byteLength;
      } catch (error) {
        expect(error, `seed ${seed}`).toBeInstanceOf(LinkViolation);
      }
      expect(bytes, `seed ${seed}`).toBeLessThanOrEqual(whole.byteLength);
    }
  });
});
