import { describe, expect, it } from "vitest";
import { Output } from "./output.ts";

function told(...parts: (string | Uint8Array)[]): string[] {
  const texts: string[] = [];
  const output = new Output((_, text) => texts.push(text));
  for (const part of parts) output.add("stdout", Buffer.from(part));
  output.end();
  return texts;
}

describe("output of a step", () => {
  it("is told in whole lines, as soon as they are whole, and what is left at its end", () => {
    expect(told("one\ntw", "o", "\nthree\nfour\nfi", "ve")).toEqual(["one\n", "two\nthree\nfour\n", "five"]);
  });

  it("keeps characters together that come in pieces, and replaces what is none", () => {
    const bytes = Buffer.from("größe\n");
    expect(told(bytes.subarray(0, 3), bytes.subarray(3))).toEqual(["größe\n"]);
    expect(told(Uint8Array.of(0x61, 0xff, 0x0a))).toEqual(["a\ufffd\n"]);
  });

  it("is told in pieces when a line has no end", () => {
    const texts = told("x".repeat(20_000), "x".repeat(20_000));
    expect(texts.length).toBeGreaterThan(1);
    expect(texts.join("")).toBe("x".repeat(40_000));
  });

  it("has an end that is kept, of both streams together", () => {
    const output = new Output(() => {});
    output.add("stdout", Buffer.from("a".repeat(5_000)));
    output.add("stderr", Buffer.from("no such file\n"));
    output.end();
    expect(output.tail).toMatch(/^a{4083}no such file$/);
  });
});
