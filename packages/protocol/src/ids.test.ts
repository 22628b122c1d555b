import { describe, expect, it } from "vitest";
import { isId, isImageReference, isTemplateId } from "./ids.ts";

const digest = `sha256:${"0a".repeat(32)}`;

describe("a template's id", () => {
  it.each(["python", "my_Template-1", "x".repeat(64)])("is a name: %s", (id) => {
    expect([isId(id), isTemplateId(id), isImageReference(id)]).toEqual([true, true, false]);
  });

  it.each([
    "python:3.12",
    "python:3.12-slim",
    `python@${digest}`,
    `python:3.12@${digest}`,
    "library/python:3.12",
    "registry.example/x/y",
    "registry.example:5000/x/y:1",
    `registry.example/x/y@${digest}`,
    "localhost/x",
    "localhost:5000/x",
    "builder:5000/x",
    "my--repo/a__b.c:V_1",
    `a:${"t".repeat(128)}`,
  ])("is an image reference: %s", (id) => {
    expect([isTemplateId(id), isImageReference(id)]).toEqual([true, true]);
  });

  it.each([
    [
      "paths",
      ["..", ".", "../../etc", "a/../b:1", "registry.example/../x", "./x:1", "/abs", "/abs:1", "a\\b", "a\\b:1", "registry.example/x/"],
    ],
    ["empty segments", ["a//b:1", "registry.example//x", "x/:1", ":1", `@${digest}`, "registry.example/"]],
    [
      "what a registry has no place for",
      ["a/b", "Python:3.12", "registry.example/X", "a b:1", "with space", "a:b:c", "a:.b", "a:-b", "a:", "a..b:1", "-a:1"],
    ],
    ["digests of other kinds", ["a@sha256:00", `a@${digest.toUpperCase()}`, `a@md5:${"0".repeat(32)}`, `a@${digest}x`]],
    ["control characters", ["a:1\n", "a:1\0", "\na:1", "a\t:1", "ä:1"]],
    ["handles of live forks", ["live:sandbox-1"]],
    ["too much", ["x".repeat(65), `a:${"t".repeat(129)}`, `registry.example/${"x/".repeat(120)}y`, `r.example/${"a".repeat(246)}`]],
    ["other types", ["", undefined, null, 7, {}]],
  ])("is none of: %s", (_, ids) => {
    expect(ids.filter((id) => isTemplateId(id))).toEqual([]);
  });

  it("is told from a path in linear time", () => {
    const hostile = [`${"a-".repeat(127)}!`, `${"a.".repeat(127)}!`, `${"a/".repeat(127)}!`, `${"a_".repeat(127)}!`, "-".repeat(100_000)];
    expect(hostile.filter(isTemplateId)).toEqual([]);
  });
});
