import { expect, it } from "vitest";
import { SandboxError } from "./errors.ts";
import { hostOf, withPath } from "./host.ts";

it("a port's host has no scheme, and a path may follow it", () => {
  expect(hostOf("http://127.0.0.1:8080", "sandbox-0a1b2c3d", 3000)).toBe("127.0.0.1:8080/v1/preview/p3000-sandbox-0a1b2c3d");
  expect(hostOf("https://mitos.example", "sb-1", 80)).toBe("mitos.example/v1/preview/p80-sb-1");
});

it.each(["SB-1", "sb_1", "sb-", "p80-x", "xn--a", "a".repeat(57), `h-${"0".repeat(32)}`])(
  "the id %s, which the server names by its hash, is refused",
  (id) => {
    expect(() => hostOf("http://127.0.0.1:8080", id, 80)).toThrow(SandboxError);
  },
);

it.each([
  ["/", "http://h/v1/preview/p1-s/?token=t.t"],
  ["", "http://h/v1/preview/p1-s/?token=t.t"],
  ["/a/b", "http://h/v1/preview/p1-s/a/b?token=t.t"],
  ["a?x=1&y=%2F#part", "http://h/v1/preview/p1-s/a?x=1&y=%2F&token=t.t#part"],
])("the path %j goes in front of the token", (path, url) => {
  expect(withPath("http://h/v1/preview/p1-s/?token=t.t", path)).toBe(url);
});

it("a preview of a domain keeps its own host", () => {
  expect(withPath("https://sb-1.mitos.example/?token=t.t", "/x")).toBe("https://sb-1.mitos.example/x?token=t.t");
});
