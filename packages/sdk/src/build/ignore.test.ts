import { describe, expect, it } from "vitest";
import { ignoreRules, patternsOf } from "./ignore.ts";

describe("the rules of .dockerignore", () => {
  it.each([
    ["node_modules", ["node_modules", "node_modules/a/b"], ["src/node_modules", "node_modules2"]],
    ["/node_modules/", ["node_modules", "node_modules/a"], ["src/node_modules"]],
    ["**/node_modules", ["node_modules", "src/node_modules/x"], ["src/node_modules2"]],
    ["*.md", ["README.md"], ["docs/README.md"]],
    ["**/*.md", ["README.md", "docs/a/README.md"], ["README.mdx"]],
    ["*/temp*", ["a/temporary", "b/temp/x"], ["temp", "a/b/temp"]],
    ["temp?", ["tempa", "tempb/x"], ["temp", "temp/a"]],
    ["[a-c].txt", ["a.txt", "c.txt"], ["d.txt"]],
    ["[^a-c].txt", ["d.txt"], ["a.txt"]],
    ["a\\*b", ["a*b"], ["axb"]],
    ["docs/**", ["docs/a", "docs/a/b"], ["docs2/a"]],
    ["./src/../lib", ["lib/x"], ["src"]],
    ["a.b+c(d)", ["a.b+c(d)"], ["axb+c(d)"]],
    ["[x", ["[x"], ["x"]],
    [".", [], ["a"]],
  ])("%s leaves out %j, and not %j", (pattern, ignored, kept) => {
    const rules = ignoreRules([pattern]);
    expect(ignored.filter((path) => !rules.isIgnored(path))).toEqual([]);
    expect(kept.filter((path) => rules.isIgnored(path))).toEqual([]);
  });

  it("let the last pattern that fits count", () => {
    const rules = ignoreRules(["*", "!src", "src/secret", "!src/secret/readme"]);
    const kept = ["a", "src", "src/a", "src/secret", "src/secret/key", "src/secret/readme"].filter((path) => !rules.isIgnored(path));
    expect(kept).toEqual(["src", "src/a", "src/secret/readme"]);
    expect(ignoreRules(["!src", "*"]).isIgnored("src")).toBe(true);
  });

  it("are the lines that are neither empty nor comments", () => {
    expect(patternsOf("\uFEFF# all\n\n  a  \r\n!b\n #c\n")).toEqual(["a", "!b", "#c"]);
  });
});
