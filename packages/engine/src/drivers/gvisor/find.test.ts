import { expect, it } from "vitest";
import { findGuest, MissingPart } from "../host/parts.ts";
import { findRunsc, oldestRunsc, parseRunscVersion } from "./find.ts";

it.each([
  ["runsc version 0.0~20240729.0\nspec: 1.0.2-dev\n", { build: "runsc 0.0~20240729.0", date: 20_240_729 }],
  ["runsc version release-20250407.0\nspec: 1.1.0-rc.1\n", { build: "runsc release-20250407.0", date: 20_250_407 }],
  ["runsc version VERSION_MISSING\n", { build: "runsc VERSION_MISSING", date: undefined }],
  ["something else", undefined],
])("reads the version of runsc from %j", (text, expected) => {
  expect(parseRunscVersion(text)).toEqual(expected);
});

it("knows that the runsc of Debian 12 itself is too old, and that of its backports is not", () => {
  expect(parseRunscVersion("runsc version 0.0~20221219.0")!.date).toBeLessThan(oldestRunsc);
  expect(parseRunscVersion("runsc version 0.0~20240729.0")!.date).toBeGreaterThan(oldestRunsc);
});

it("says what to do when a part is missing", async () => {
  const missing = await findRunsc("/nowhere/runsc").catch((error: unknown) => error);
  expect(missing).toBeInstanceOf(MissingPart);
  expect((missing as MissingPart).message).toBe("/nowhere/runsc cannot be run");
  expect((missing as MissingPart).remedy).toContain("MITOS_RUNSC");
  await expect(findGuest("/nowhere/guest")).rejects.toMatchObject({ remedy: expect.stringContaining("MITOS_GUEST") });
  await expect(findRunsc("/bin/false")).rejects.toBeInstanceOf(MissingPart);
});
