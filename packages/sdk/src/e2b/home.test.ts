import { expect, it } from "vitest";
import { homeOf, inWorkspace, userOf } from "./home.ts";

it.each([
  [undefined, "/home/user", "/workspace"],
  [".", "/home/user", "/workspace"],
  ["a/b", "/home/user/a/b", "/workspace/a/b"],
  ["./a", "/home/user/a", "/workspace/a"],
  ["~", "/home/user", "/workspace"],
  ["~/a", "/home/user/a", "/workspace/a"],
  ["/home/user/a", "/home/user/a", "/workspace/a"],
  ["/home/username", "/home/username", "/home/username"],
  ["/tmp/x", "/tmp/x", "/tmp/x"],
])("%s is %s, which is watched as %s", (path, full, watched) => {
  expect(homeOf(path)).toBe(full);
  expect(inWorkspace(path ?? ".")).toBe(watched);
});

it("E2B's user is the sandbox's own", () => {
  expect(["user", undefined, "root", "nobody"].map(userOf)).toEqual([undefined, undefined, "root", "nobody"]);
});
