import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { completionScript, shells } from "./completion.ts";
import { buildProgram } from "./program.ts";
import { start } from "./testing.ts";

const dir = mkdtempSync(path.join(os.tmpdir(), "mitos-completion-"));
const program = await buildProgram("all");
afterAll(() => rmSync(dir, { recursive: true }));

const isHere = (shell: string) => spawnSync(shell, ["-c", "true"]).status === 0;

/** Each is loaded by its own shell where the machine has that; bash is everywhere. */
const here = shells.filter((shell) => shell === "bash" || isHere(shell));

it.each(here)("is understood by %s", async (shell) => {
  const { code, out, err } = await start(["completion", shell], { HOME: dir }).ended;
  expect({ code, err }).toEqual({ code: 0, err: "" });
  expect(out).toBe(completionScript(shell, program));
  expect(spawnSync(shell, ["-n"], { input: out, encoding: "utf8" })).toMatchObject({ status: 0, stderr: "" });
});

it.each(shells)("for %s names every command and every flag", (shell) => {
  const script = completionScript(shell, program);
  const visit = (command: typeof program): void => {
    for (const { long } of command.options) expect(script).toMatch(new RegExp(`(--|-l )${long!.slice(2)}\\b`));
    for (const child of command.commands) {
      expect(script).toMatch(new RegExp(`\\b${child.name()}\\b`));
      visit(child);
    }
  };
  visit(program);
});

describe("in bash", () => {
  let script: string;
  beforeAll(() => {
    script = completionScript("bash", program);
  });

  /** What the shell offers at the end of the line, as after a Tab. */
  function offered(line: string): string[] {
    const words = ["mitos", ...line.split(" ")];
    const probe = `${script}\nCOMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); _mitos; printf '%s\\n' "\${COMPREPLY[@]}"; complete -p mitos >/dev/null`;
    const { status, stdout, stderr } = spawnSync("bash", ["--norc", "-c", probe, "bash", ...words], { encoding: "utf8" });
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    return stdout.split("\n").filter(Boolean);
  }

  it.each([
    ["sand", ["sandbox"]],
    ["sandbox p", ["pause", "preview"]],
    ["--pool node sandbox e", ["exec"]],
    ["auth keys ", ["create", "ls", "revoke"]],
    ["sandbox ls --out", ["--output"]],
    ["sandbox ls --output ", ["table", "json"]],
    ["sandbox ls -o j", ["json"]],
    ["serve --engine g", ["gvisor"]],
    ["completion ", ["bash", "zsh", "fish"]],
    ["--server sandbox f", ["fork"]],
    ["cp ", []],
    ["run --cwd ", []],
  ])("`mitos %s` is completed to %j", (line, wanted) => {
    expect(offered(line)).toEqual(wanted);
  });
});
