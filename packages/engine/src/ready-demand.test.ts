import { expect, it } from "vitest";
import { ReadyDemand } from "./ready-demand.ts";

it("follows how many are started at once, within bounds, and forgets it start by start", () => {
  const demand = new ReadyDemand();
  expect([1, 2, 5, 1, 1, 1, 1].map((started) => demand.after("python", started))).toEqual([2, 2, 5, 4, 3, 2, 2]);
  expect([100, 6, 1].map((started) => demand.after("python", started))).toEqual([8, 7, 6]);
  expect(demand.after("node", 1)).toBe(2);
});
