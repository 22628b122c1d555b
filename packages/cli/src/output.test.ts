import { afterEach, describe, expect, it, vi } from "vitest";
import { age, byteSize, table } from "./output.ts";
import { paint } from "./style.ts";

describe("a table", () => {
  it("has two spaces between its columns, a dash for what is missing, and nothing after the last column", () => {
    expect(
      table(
        ["NAME", "POOL"],
        [
          ["a-long-name", ""],
          ["b", undefined],
          ["c", "python"],
        ],
      ),
    ).toBe(["NAME         POOL", "a-long-name  -", "b            -", "c            python"].join("\n"));
  });

  it("is cut to the width of a terminal, the widest column first, and says so with an ellipsis", () => {
    const rows = [["sandbox-1", "a command that is far too long for the line"]];
    const lines = table(["NAME", "COMMAND"], rows, 30).split("\n");
    expect(lines).toEqual(["NAME       COMMAND", "sandbox-1  a command that is …"]);
    expect(table(["NAME", "COMMAND"], rows, 3).split("\n")[1]).toBe("sandbox…  a comma…");
  });
});

it("ages and sizes are short", () => {
  expect([0, 59.9, 60, 3599, 3600, 86_399, 86_400].map(age)).toEqual(["0s", "59s", "1m", "59m", "1h", "23h", "1d"]);
  expect([0, 1023, 1024, 1536, 5 * 2 ** 30].map(byteSize)).toEqual(["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 GiB"]);
});

describe("colours", () => {
  const terminal = { isTTY: true } as NodeJS.WriteStream;
  afterEach(() => vi.unstubAllEnvs());

  it.each([
    ["a terminal", terminal, {}, "\x1b[31mred\x1b[0m"],
    ["a pipe", {} as NodeJS.WriteStream, {}, "red"],
    ["NO_COLOR", terminal, { NO_COLOR: "1" }, "red"],
    ["a dumb terminal", terminal, { TERM: "dumb" }, "red"],
    ["a pipe, whatever FORCE_COLOR says", {} as NodeJS.WriteStream, { FORCE_COLOR: "1" }, "red"],
  ])("for %s", (_title, stream, env, wanted) => {
    for (const [name, value] of Object.entries({ NO_COLOR: "", TERM: "xterm", ...env })) vi.stubEnv(name, value);
    expect(paint(stream, "red", "red")).toBe(wanted);
  });
});
