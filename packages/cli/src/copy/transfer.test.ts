import { expect, it } from "vitest";
import { forEachFile } from "./transfer.ts";

it("copies no further file once one could not be copied", async () => {
  const begun: number[] = [];
  const copy = async (file: number) => {
    begun.push(file);
    await new Promise((resolve) => setImmediate(resolve));
    if (file === 1) throw new Error("the disk is full");
  };
  await expect(
    forEachFile(
      Array.from({ length: 100 }, (_, file) => file),
      copy,
    ),
  ).rejects.toThrow("the disk is full");
  const atFailure = begun.length;
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(begun).toHaveLength(atFailure);
});
