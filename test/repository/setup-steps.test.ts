import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, it, vi } from "vitest";

const runScript = path.resolve(import.meta.dirname, "../../scripts/lib/run.mjs");

let folder: string;
let setUp: ChildProcess | undefined;
beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), "setup-steps-"));
});
afterEach(() => {
  setUp?.kill("SIGKILL");
  rmSync(folder, { recursive: true, force: true });
});

/** A set-up in a process of its own. What it imports is there, and `waiting(name)`: a command that writes its process id down and waits. */
function start(steps: string): ChildProcess {
  const code = `import { captureBeside, fail, step, stepsBeside } from ${JSON.stringify(runScript)};
    const waiting = (name) => ["sh", ["-c", 'echo $$ > "$1"; exec sleep 1000', "sh", ${JSON.stringify(folder)} + "/" + name]];
    ${steps}`;
  setUp = spawn(process.execPath, ["--input-type=module", "--eval", code], { stdio: ["ignore", "ignore", "pipe"] });
  return setUp;
}

/** The process that has written its id down. */
function writtenDown(name: string): Promise<number> {
  const read = () => {
    const text = readFileSync(path.join(folder, name), "utf8");
    expect(text).toMatch(/\n$/);
    return Number(text);
  };
  return vi.waitFor(read, { timeout: 60_000, interval: 20 });
}

const isRunning = (pid: number) => () => process.kill(pid, 0);

it("a set-up that is told to end ends the steps that work beside each other, and says so", async () => {
  const beside = start(`await stepsBeside({
    one: (options) => captureBeside(...waiting("one"), options),
    two: (options) => captureBeside(...waiting("two"), options),
  }).catch(fail);`);
  let said = "";
  beside.stderr!.setEncoding("utf8").on("data", (text: string) => (said += text));
  const started = [await writtenDown("one"), await writtenDown("two")];
  beside.kill("SIGTERM");
  expect(await once(beside, "close")).toEqual([1, null]);
  expect(said).toMatch(/error: interrupted by SIGTERM\nnext: {2}Run the command again/);
  for (const pid of started) expect(isRunning(pid)).toThrow(/ESRCH/);
});

it("a step by itself stands in no signal's way", async () => {
  const alone = start(`await step("one", () => { process.stderr.write("working"); return new Promise((end) => setTimeout(end, 1e6)); });`);
  await once(alone.stderr!, "data");
  alone.kill("SIGTERM");
  expect(await once(alone, "close")).toEqual([null, "SIGTERM"]);
});
