import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { limits } from "@mitos/protocol";
import { afterAll, beforeEach, expect, it } from "vitest";
import { readConsole } from "./console.ts";

const dir = mkdtempSync(path.join(os.tmpdir(), "mitos-console-"));
const file = path.join(dir, "machine.log");
beforeEach(() => rmSync(file, { force: true }));
afterAll(() => rmSync(dir, { recursive: true }));

it.each([
  ["nothing", Buffer.alloc(0)],
  ["a line", Buffer.from("Linux version 6.1\n")],
  ["what is no text", Buffer.from([0, 0xff, 0x0a])],
  ["as much as there may be", Buffer.alloc(limits.consoleBytesMax, "x")],
])("the console of a machine that has said %s is all of it", async (_what, said) => {
  writeFileSync(file, said);
  expect(Buffer.from(await readConsole(dir)).equals(said)).toBe(true);
});

it("the console of a machine that has said more is the end of it", async () => {
  const end = Buffer.alloc(limits.consoleBytesMax, "e");
  writeFileSync(file, Buffer.concat([Buffer.alloc(1000, "b"), end]));
  expect(Buffer.from(await readConsole(dir)).equals(end)).toBe(true);
});

it("there is no console of a machine that is gone, and none behind a link", async () => {
  await expect(readConsole(dir)).rejects.toMatchObject({ code: "unavailable" });
  symlinkSync("/etc/hostname", file);
  await expect(readConsole(dir)).rejects.toMatchObject({ code: "unavailable" });
});
