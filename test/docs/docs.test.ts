/** Every block of every page, as a reader would run it: against a live server with the real engine. */

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { hostPackages } from "../support/python-packages.ts";
import { findPages } from "./markdown.ts";
import { isPrinted } from "./output.ts";
import { planOf } from "./programs.ts";
import { typeErrors } from "./types.ts";
import { Workbench } from "./workbench.ts";

const pages = findPages().map((page) => ({ file: page.file, ...planOf(page) }));

it("every block is run, or its page says why not", () => {
  for (const { file, notRun } of pages)
    for (const { line, reason } of notRun) process.stdout.write(`not run: ${file}:${line}: because ${reason}\n`);
  expect(pages.flatMap(({ mistakes }) => mistakes)).toEqual([]);
});

it("all TypeScript is correct in its types", async () => {
  const sources = pages.flatMap(({ file, programs, checkedOnly }) =>
    [...programs, ...checkedOnly]
      .filter(({ language }) => language === "ts")
      .map(({ line, code }) => ({ name: `${file}/block-of-line-${line}`, code })),
  );
  expect(sources.length).toBeGreaterThan(0);
  expect(await typeErrors(sources)).toEqual([]);
});

describe("run", () => {
  let live: LiveServer;
  beforeAll(async () => {
    live = await startLiveServer();
    // A first run fetches packages.
    await hostPackages("mitos-run-0.1.1");
  }, 10 * 60_000);
  afterAll(() => live?.close());

  describe.each(pages.filter(({ programs }) => programs.length > 0))("$file", ({ file, programs }) => {
    let workbench: Workbench;
    beforeAll(() => {
      workbench = new Workbench(live.url);
    });
    afterAll(async () => {
      await workbench.close();
      // What its samples have left.
      await Promise.all(live.engine.list().map(({ id }) => live.engine.terminate(id)));
    });

    it.each(programs)("the $language block of line $line does what the page says", async (program) => {
      const printed = await workbench.run(program).catch((error: Error) => {
        throw new Error(`${file}:${program.line}: ${error.message}`);
      });
      for (const output of program.outputs) {
        expect(isPrinted(output, printed), `${file}:${output.line} shows:\n${output.text}\nIt printed:\n${printed}`).toBe(true);
      }
    });
  });
});
