import type { SandboxId } from "@mitos/protocol";
import { expect, it } from "vitest";
import { labelOf, nameOf, parseLabel } from "./label.ts";

const id = (text: string) => text as SandboxId;

it.each(["sb-1", "sandbox-0a1b2c3d", "a", "9", "a".repeat(56)])("the id %s names its preview", (text) => {
  expect(nameOf(id(text))).toBe(text);
  expect(parseLabel(labelOf(id(text), 65_535))).toEqual({ name: text, port: 65_535 });
});

it.each([
  ["capitals", "SB-1"],
  ["an underscore", "sb_1"],
  ["a hyphen at its end", "sb-"],
  ["too many characters", "a".repeat(57)],
  ["the form of a label with a port", "p8080-sb"],
  ["the form of a hash", `h-${"0".repeat(32)}`],
  ["punycode", "xn--80ak6aa92e"],
  ["a reserved name", "api"],
])("an id with %s is named by its hash", (_what, text) => {
  expect(nameOf(id(text))).toMatch(/^h-[0-9a-f]{32}$/);
  const label = labelOf(id(text), 8080);
  expect(label.length).toBeLessThanOrEqual(63);
  expect(parseLabel(label)).toEqual({ name: nameOf(id(text)), port: 8080 });
});

it("ids that differ in case only have previews of their own", () => {
  expect(nameOf(id("Sb"))).not.toBe(nameOf(id("sB")));
});

it("case does not count in a label", () => {
  expect(parseLabel("P80-SB-1")).toEqual({ name: "sb-1", port: 80 });
});

it("a label without a port leaves it to the token", () => {
  expect(parseLabel("sb-1")).toEqual({ name: "sb-1", port: undefined });
});

it.each(["", "-a", "a-", "a_b", "a.b", "a".repeat(64), "p65536-a", "p99999-a", "ä"])("%j is no label", (text) => {
  expect(parseLabel(text)).toBeUndefined();
});
