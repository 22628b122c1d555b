import { expect, it } from "vitest";
import { splitCommand } from "./split-command.ts";

it.each([
  ["", []],
  ["  python   app.py\t--port\n8080 ", ["python", "app.py", "--port", "8080"]],
  [`sh -c 'echo "a b"; exit'`, ["sh", "-c", 'echo "a b"; exit']],
  [`say "it's \\"here\\" \\\\ \\n $HOME"`, ["say", `it's "here" \\ \\n $HOME`]],
  [`a\\ b c\\'d`, ["a b", "c'd"]],
  [`--name="x y"'z'`, ["--name=x yz"]],
  [`'' ""`, ["", ""]],
  ["# not a comment; nor | a & pipe > *", ["#", "not", "a", "comment;", "nor", "|", "a", "&", "pipe", ">", "*"]],
])("%j is the words %j", (line, words) => {
  expect(splitCommand(line)).toEqual(words);
});

it.each(["echo 'a", 'echo "a', 'echo "a\\"', "echo \\"])("%s is refused: something is not closed", (line) => {
  expect(() => splitCommand(line)).toThrow(expect.objectContaining({ code: "invalid_input", remediation: expect.any(String) }));
});
