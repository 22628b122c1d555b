import { expect, it } from "vitest";
import { waiting } from "./waiting.ts";

it.each([2 ** 31 / 1000, 1e9])("waits with a time-out of %d s, which is longer than a timer can be", async (seconds) => {
  const work = () => new Promise((resolve) => setTimeout(resolve, 20, "done"));
  expect(await waiting("working", seconds, work)).toBe("done");
});
