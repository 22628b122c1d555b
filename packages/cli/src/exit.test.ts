import { catalogue } from "@mitos/protocol";
import { AgentRunError } from "@mitos/sdk";
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

it("an id that is none is wrong usage", () => {
  expect(toFailure(new AgentRunError("no id", { code: "invalid_sandbox_id", remediation: "Use one." })).exitCode).toBe(2);
});

it("whoever types commands is told commands, where a server names its routes", () => {
  const remedies = Object.entries(catalogue).filter(([, { remediation }]) => remediation.includes("/v1/"));
  expect(remedies).not.toEqual([]);
  for (const [code, { remediation }] of remedies) {
    expect(toFailure(new AgentRunError("no", { code, remediation })).nextStep, code).toMatch(/`mitos \w+/);
  }
  expect(toFailure(new AgentRunError("no", { code: "not_found", remediation: "Look elsewhere." })).nextStep).toBe("Look elsewhere.");
});
