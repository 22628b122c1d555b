import { mkdir, mkdtemp, rm } from "node:fs/promises";
import path from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { defaultRuntimeDir, keeperOf, nameKeeper, newKeeperId } from "../host/layout.ts";
import { openLayout } from "./layout.ts";

let base: string;
beforeEach(async () => {
  base = await mkdtemp("/tmp/mitos-layout-");
});
afterEach(() => rm(base, { recursive: true, force: true }));

it("gives each data directory a short runtime directory of its own", async () => {
  await mkdir(path.join(base, "a"));
  await mkdir(path.join(base, "b"));
  const [first, second] = [await defaultRuntimeDir(path.join(base, "a")), await defaultRuntimeDir(path.join(base, "b"))];
  expect(first).not.toBe(second);
  expect(first.length).toBeLessThan(80);
  expect(await defaultRuntimeDir(path.join(base, "a", "..", "a"))).toBe(first);
});

it("refuses a runtime directory in which socket paths would be too long", async () => {
  await expect(openLayout(base, `/tmp/${"x".repeat(80)}`)).rejects.toMatchObject({ code: "invalid_input" });
});

it("refuses a runtime directory that others can enter", async () => {
  await mkdir(path.join(base, "open"));
  await expect(openLayout(base, path.join(base, "open"))).rejects.toMatchObject({ code: "internal" });
});

it("knows which container a machine is, and takes no name twice", async () => {
  const layout = await openLayout(base, path.join(base, "run"));
  const containerId = newKeeperId();
  await nameKeeper(layout, "m1", containerId);
  expect(await keeperOf(layout, "m1")).toBe(containerId);
  expect(await keeperOf(layout, "m2")).toBeUndefined();
  await expect(nameKeeper(layout, "m1", newKeeperId())).rejects.toMatchObject({ code: "conflict" });
  await expect(nameKeeper(layout, "../m", containerId)).rejects.toMatchObject({ code: "invalid_input" });
});
