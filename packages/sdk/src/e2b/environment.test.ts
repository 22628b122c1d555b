import { expect, it } from "vitest";
import { environmentCells } from "./environment.ts";
import { InvalidArgumentError } from "./errors.ts";

it.each(["", "a b", "1A", "A=B", "A\nB", "$(id)", "A;id"])("the name %j of a variable is refused, so that no name is code", (name) => {
  for (const language of ["python", "javascript", "bash"])
    expect(() => environmentCells(language, { [name]: "x" })).toThrow(InvalidArgumentError);
});

it("a language without a way to set variables is refused", () => {
  for (const language of ["r", "constructor"]) expect(() => environmentCells(language, { A: "x" })).toThrow(InvalidArgumentError);
});
