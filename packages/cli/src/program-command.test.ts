import { Option } from "commander";
import { describe, expect, it } from "vitest";
import { separate } from "./program-command.ts";

const options = [
  new Option("--pool <name>"),
  new Option("--timeout <seconds>"),
  new Option("-n, --namespace <name>"),
  new Option("--keep"),
];

describe("the words of a line that runs a program", () => {
  it.each([
    ["echo hello --pool python", "--pool python", "echo hello"],
    ["--pool python echo hello", "--pool python", "echo hello"],
    ["--pool=python echo --keep", "--pool=python --keep", "echo"],
    ["echo --pool a --timeout 5 --keep", "--pool a --timeout 5 --keep", "echo"],
    ["grep -n word file", "", "grep -n word file"],
    ["-n ns grep -n word", "-n ns", "grep -n word"],
    ["tool --pool a image", "", "tool --pool a image"],
    ["tool --timeout", "", "tool --timeout"],
    ["tool --verbose --keep", "--keep", "tool --verbose"],
    ["tool --help", "", "tool --help"],
    ["--bogus tool", "--bogus", "tool"],
    ["-- printf %s --pool a", "", "printf %s --pool a"],
    ["--keep -- tool --keep", "--keep", "tool --keep"],
    ["git checkout -- file", "", "git checkout -- file"],
    ["git checkout -- --keep", "", "git checkout -- --keep"],
    ["", "", ""],
  ])("of `%s` mitos takes `%s`, and the program is `%s`", (line, own, program) => {
    const words = (text: string) => text.split(" ").filter(Boolean);
    expect(separate(words(line), options, 0)).toEqual({ own: words(own), program: words(program) });
  });

  it("leave room for what stands in front of the program", () => {
    const own = ["sb-1", "--keep"];
    expect(separate(["sb-1", "--keep", "ls", "-n"], options, 1)).toEqual({ own, program: ["ls", "-n"] });
    expect(separate(["sb-1", "--keep", "--", "--keep"], options, 1)).toEqual({ own, program: ["--keep"] });
  });
});
