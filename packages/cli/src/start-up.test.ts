import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { bin } from "./testing.ts";

const dir = mkdtempSync(path.join(os.tmpdir(), "mitos-start-"));
/** The command as it is installed: it starts the pinned Node at once. */
const launcher = path.join(path.dirname(bin), "mitos");
const noServer = ["--server", "127.0.0.1:2", "sandbox", "ls"];
afterAll(() => rmSync(dir, { recursive: true }));

describe("a command loads", () => {
  /** Prints which modules have been loaded, when the process ends. */
  const witness = `
    import { registerHooks } from "node:module";
    const urls = [];
    registerHooks({ load(url, context, next) { urls.push(url); return next(url, context); } });
    process.on("exit", () => process.stdout.write("\\nloaded " + JSON.stringify(urls) + "\\n"));`;

  /** What of our packages is loaded: verbs by their names, packages by theirs. */
  function loaded(args: readonly string[]): { verbs: string[]; packages: string[] } {
    const options = `--import=data:text/javascript,${encodeURIComponent(witness)}`;
    const { stdout } = spawnSync(process.execPath, [bin, ...args], {
      encoding: "utf8",
      env: { PATH: process.env.PATH, HOME: dir, NODE_OPTIONS: options },
    });
    const urls = JSON.parse(/^loaded (.*)$/m.exec(stdout)![1]!) as string[];
    const matches = (pattern: RegExp) => [...new Set(urls.flatMap((url) => pattern.exec(url)?.[1] ?? []))].sort();
    return { verbs: matches(/\/cli\/src\/commands\/(\w+)\.ts$/), packages: matches(/\/packages\/(\w+)\//) };
  }

  it.each<[string, readonly string[], string[], string[]]>([
    ["nothing but itself for `version`", ["version"], ["version"], ["cli"]],
    ["no verb for `help`", ["help"], ["version"], ["cli"]],
    ["no SDK for its help", ["run", "--help"], ["run", "version"], ["cli"]],
    ["no SDK for wrong usage", ["cp", "a", "b"], ["cp", "version"], ["cli"]],
    ["the SDK, and neither engine nor server, to talk to one", noServer, ["fork", "run", "sandbox", "version"], ["cli", "protocol", "sdk"]],
  ])("%s", (_title, args, verbs, packages) => {
    expect(loaded(args)).toEqual({ verbs, packages });
  });
});

describe("a command starts", () => {
  const env = { PATH: process.env.PATH, HOME: dir };
  // TIMEFORMAT: user and system seconds of the process and its children. Other work on the machine hardly changes them.
  const timed = 'TIMEFORMAT="%3U %3S"; { time "$@" >/dev/null 2>&1; } 2>&1';

  function cpuMs(words: readonly string[]): number {
    const { stdout } = spawnSync("bash", ["-c", timed, "bash", ...words], { encoding: "utf8", env });
    return stdout
      .trim()
      .split(" ")
      .reduce((sum, seconds) => sum + Number(seconds) * 1000, 0);
  }

  /** The least of several rounds, in each of which everything is measured once. The first fills the cache of compiled code. */
  function ratioToBareNode(args: readonly string[]): number {
    const bare: number[] = [];
    const ours: number[] = [];
    for (let round = 0; round < 6; round++) {
      bare.push(cpuMs([process.execPath, "-e", "0"]));
      ours.push(cpuMs([launcher, ...args]));
    }
    return Math.min(...ours) / Math.min(...bare);
  }

  it.each<[string, readonly string[], number]>([
    ["version", ["version"], 5],
    ["a list from a server", noServer, 9],
  ])("with little more than Node's own processor time: %s", (_title, args, times) => {
    const ratio = ratioToBareNode(args);
    console.info(`mitos ${args.join(" ")}: ${ratio.toFixed(1)} times \`node -e 0\``);
    expect(ratio).toBeGreaterThan(0.5);
    expect(ratio).toBeLessThan(times);
  });
});

it.each([
  ["the launcher", [launcher]],
  ["whichever Node is on the PATH, if only to hand over to the pinned one", ["node", bin]],
])("is started by %s, with output, input and exit code", (_title, [program, ...words]) => {
  const mitos = (...args: string[]) =>
    spawnSync(program!, [...words, ...args], { encoding: "utf8", env: { PATH: process.env.PATH, HOME: dir } });
  const line = /^mitos \d+\.\d+\.\d+ \(commit ([0-9a-f]{12}|unknown), built from source, \w+\/\w+\)\n$/;
  expect(mitos("version")).toMatchObject({ status: 0, stdout: expect.stringMatching(line) });
  expect(mitos("bogus")).toMatchObject({ status: 2, stderr: expect.stringContaining("unknown command 'bogus'") });
});
