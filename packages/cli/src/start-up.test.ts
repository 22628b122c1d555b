import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { registerHooks } from "node:module";
import os from "node:os";
import path from "node:path";
import { afterAll, expect, it } from "vitest";
import { start } from "./testing.ts";

const dir = mkdtempSync(path.join(os.tmpdir(), "mitos-start-"));
const bin = path.resolve(import.meta.dirname, "../bin/mitos");
afterAll(() => rmSync(dir, { recursive: true }));

/** The processor time of a process and its children, which other work on the machine hardly changes. */
function cpuMs(program: string, ...args: string[]): number {
  const before = process.resourceUsage();
  void before;
  const { status, stdout } = spawnSync(
    "bash",
    ["-c", 'TIMEFORMAT="%3U %3S"; { time "$@" >/dev/null 2>&1; } 2>&1', "bash", program, ...args],
    {
      encoding: "utf8",
      env: { PATH: process.env.PATH, HOME: dir },
    },
  );
  expect(status).toBe(0);
  return stdout
    .trim()
    .split(" ")
    .reduce((sum, seconds) => sum + Number(seconds) * 1000, 0);
}
void registerHooks;
void start;
void cpuMs;
void bin;
it("placeholder", () => {});
