/** The examples, as their READMEs say to start them, against a live server with the real engine. */

import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { pythonPackages } from "../support/python-packages.ts";
import { parsePage, root } from "./markdown.ts";
import { isPrinted } from "./output.ts";

let live: LiveServer;
let folder: string;
beforeAll(async () => {
  live = await startLiveServer();
  folder = mkdtempSync(path.join(os.tmpdir(), "mitos-examples-"));
});
afterEach(async () => {
  const left = live.engine.list().map(({ id }) => id);
  await Promise.all(left.map((id) => live.engine.terminate(id)));
  expect(left).toEqual([]);
});
afterAll(async () => {
  rmSync(folder, { recursive: true, force: true });
  await live?.close();
});

/** @returns what it printed on standard output */
async function run(name: string, ...args: string[]): Promise<string> {
  const env = { PATH: process.env.PATH, HOME: folder, MITOS_CONFIG_DIR: folder, MITOS_BASE_URL: live.url };
  const main = path.join(root, "examples", name, "main.ts");
  const { stdout } = await promisify(execFile)(process.execPath, [main, ...args], { cwd: folder, env });
  return stdout;
}

/** What the README shows of its output. */
function shownOutput(name: string): string {
  const file = path.join(root, "examples", name, "README.md");
  return parsePage(file, readFileSync(file, "utf8")).blocks.find(({ language }) => language === "text")!.code;
}

describe("tree-search", () => {
  it("is stuck with one branch, solves the level with two, and proves it", async () => {
    const printed = await run("tree-search");
    expect(isPrinted({ line: 1, text: shownOutput("tree-search"), figuresVary: false }, printed), printed).toBe(true);
    const [, path, board] = /Solved in 4 pushes, after \d+ forks: (.+)\n\n((?:#.*\n)+)/.exec(printed)!;
    expect(path!.split(", ")).toHaveLength(4);
    // Both boxes are on goals, which the level has two of.
    expect([board!.match(/\*/g)?.length, board!.includes("$"), board!.includes(".")]).toEqual([2, false, false]);
  });
});

describe("flaky-test-hunter", () => {
  it("tells flaky tests from broken and stable ones, with counts and logs", async () => {
    const printed = await run("flaky-test-hunter", "--runs", "8", "--batch", "4");
    expect(printed.match(/^forked 4, /gm)).toHaveLength(2);
    const verdicts = (verdict: string) => [...printed.matchAll(new RegExp(`^  ${verdict} +(\\w+)`, "gm"))].map(([, test]) => test);
    const really = ["test_catalogue_is_complete", "test_items_are_found_by_price", "test_sale_lowers_prices"];
    expect(verdicts("stable")).toEqual(expect.arrayContaining(really));
    // Which are flaky is chance, so the README is compared by the tests that it names.
    const named = [...shownOutput("flaky-test-hunter").matchAll(/^ {2}(?:flaky|broken|stable) +(\w+)/gm)].map(([, test]) => test);
    expect([...verdicts("flaky"), ...verdicts("broken"), ...verdicts("stable")].sort()).toEqual(named.sort());
    expect(verdicts("broken")).toContain("test_refunds");
    // This one depends on the order alone, which is each run's own and the same each time; the others on chance.
    expect(printed).toMatch(/^ {2}flaky {3}test_total_adds_up: failed [1-7] of 8$/m);
    expect(verdicts("flaky").length).toBeGreaterThan(1);
    for (const test of verdicts("flaky"))
      expect(printed).toMatch(new RegExp(`^${test}, in run\\(\\d\\), after .*\\nTraceback .*\\n(.*\\n)*?AssertionError: `, "m"));
    expect(printed).toMatch(/test_total_adds_up, in run\(\d\), after .*test_sale_lowers_prices/);
  });
});

describe("notebook-what-ifs", () => {
  it(
    "answers each what-if from the same loaded state, with plots side by side in one page",
    async () => {
      const out = path.join(folder, "what-ifs.html");
      const printed = await run("notebook-what-ifs", "--packages", await pythonPackages("plots"), "--out", "what-ifs.html");
      // The data are the same each time: all figures but the pause are.
      const shown = shownOutput("notebook-what-ifs").replace(/still for \d+ ms/, "still for … ms");
      expect(isPrinted({ line: 1, text: shown, figuresVary: false }, printed), printed).toBe(true);
      const html = readFileSync(out, "utf8");
      const plots = [...html.matchAll(/<img alt="([^"]+)" src="data:image\/png;base64,([^"]+)">/g)].map(([, , data]) =>
        Buffer.from(data!, "base64"),
      );
      expect(plots.map((plot) => plot.subarray(0, 8).toString("latin1"))).toEqual(Array(4).fill("\x89PNG\r\n\x1a\n"));
      expect(new Set(plots.map((plot) => plot.toString("base64"))).size).toBe(4);
      for (const title of ["as it is", "twice the panels"]) expect(html).toContain(`<b>${title}</b>`);
    },
    10 * 60_000,
  );
});
