import { afterEach, expect, it, vi } from "vitest";
import { toFailure } from "./exit.ts";

afterEach(() => vi.unstubAllEnvs());

it("a defect of ours is one line and what to do, and its stack is shown only when asked for", () => {
  vi.stubEnv("MITOS_DEBUG", "");
  const defect = new TypeError("undefined is not a function\nsecond line");
  expect(toFailure(defect)).toEqual({
    exitCode: 1,
    message: "mitos itself failed: undefined is not a function",
    cause: undefined,
    nextStep: expect.stringContaining("MITOS_DEBUG=1"),
  });
  vi.stubEnv("MITOS_DEBUG", "1");
  expect(toFailure(defect).cause).toBe(defect.stack);
  expect(toFailure("not even an error")).toMatchObject({ exitCode: 1, message: "mitos itself failed: not even an error" });
});
