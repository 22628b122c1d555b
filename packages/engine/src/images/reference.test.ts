import { describe, expect, it } from "vitest";
import { checkHost, formatReference, parseReference, parseRepository } from "./reference.ts";

const hex = "a".repeat(64);

describe("an image reference", () => {
  it.each([
    ["python", "docker.io/library/python:latest"],
    ["python:3.12-slim", "docker.io/library/python:3.12-slim"],
    ["team/tool", "docker.io/team/tool:latest"],
    ["docker.io/python:3", "docker.io/library/python:3"],
    ["index.docker.io/python:3", "docker.io/library/python:3"],
    ["registry-1.docker.io/team/tool:1", "docker.io/team/tool:1"],
    ["Registry.Example:5000/team/tool:V1", "registry.example:5000/team/tool:V1"],
    ["localhost/tool", "localhost/tool:latest"],
    ["localhost:5000/tool", "localhost:5000/tool:latest"],
    [`python@sha256:${hex}`, `docker.io/library/python@sha256:${hex}`],
    [`python:3@sha256:${hex}`, `docker.io/library/python:3@sha256:${hex}`],
  ])("%s means %s", (text, full) => {
    const reference = parseReference(text, "docker.io");
    expect(formatReference(reference)).toBe(full);
    expect(parseReference(full, "elsewhere.example")).toEqual(reference);
  });

  it("is completed by the configured registry, which has no library of official images", () => {
    expect(formatReference(parseReference("python", "registry.example:5000"))).toBe("registry.example:5000/python:latest");
    expect(formatReference(parseReference("docker.io/python", "registry.example:5000"))).toBe("docker.io/library/python:latest");
  });

  it.each([
    "",
    "UPPER",
    "a//b",
    "/a",
    "a/",
    "a:b:c",
    "../a",
    "a/../b",
    "https://registry.example/a",
    "python@sha256:abc",
    "a b",
    "live:sandbox-1",
    "999.999.999.999/a",
    "a.b:99999/c",
  ])("%j is refused with invalid_input", (text) =>
    expect(() => parseReference(text, "docker.io")).toThrow(expect.objectContaining({ code: "invalid_input" })),
  );

  it("of a repository has a host and no more", () => {
    expect(parseRepository("registry.example/team/tool")).toEqual({ host: "registry.example", path: "team/tool" });
    expect(parseRepository("team/tool")).toBeUndefined();
  });

  it.each(["https://registry.example", "registry.example/path", "registry", "user@registry.example", "a.b:123456", "a.b:99999"])(
    "%s is not the host of a registry",
    (host) => expect(() => checkHost(host, "registry")).toThrow(expect.objectContaining({ code: "invalid_input" })),
  );
});
