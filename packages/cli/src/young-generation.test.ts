import { execFileSync } from "node:child_process";
import path from "node:path";
import { expect, it } from "vitest";

const file = path.resolve(import.meta.dirname, "young-generation.ts");

/** What V8's space for new objects has grown to in a program that keeps much of what it makes for a while, in MiB. */
function grownMiB(begin: string): number {
  const program = `
    import v8 from "node:v8";
    import { keepYoungGenerationSmall } from ${JSON.stringify(file)};
    ${begin}
    let kept = [];
    for (let at = 0; at < 2e6; at += 1) {
      kept.push({ at });
      if (kept.length > 50_000) kept = [];
    }
    console.log(v8.getHeapSpaceStatistics().find((space) => space.space_name === "new_space").space_size / 2 ** 20);
  `;
  return Number(execFileSync(process.execPath, ["--input-type=module", "--eval", program], { encoding: "utf8" }));
}

it("the space for new objects stays at 4 MiB", () => {
  expect(grownMiB("")).toBeGreaterThan(4);
  expect(grownMiB("keepYoungGenerationSmall();")).toBe(4);
});
