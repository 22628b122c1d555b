import { catalogue } from "@mitos/protocol";
import { describe, expect, it } from "vitest";
import { AgentRunError, errorForCode } from "../errors.ts";
import {
  AuthenticationError,
  FileNotFoundError,
  InvalidArgumentError,
  NotEnoughSpaceError,
  NotFoundError,
  RateLimitError,
  SandboxError,
  SandboxNotFoundError,
  ServiceBusyError,
  type Subject,
  TimeoutError,
  toE2BError,
} from "./errors.ts";

const subjects: Subject[] = ["sandbox", "template", "file", "process", "code"];
const error = (code: string, cause = "what happened") => errorForCode("it failed", { code, cause, remediation: "Do this.", status: 418 });

it.each(Object.keys(catalogue))("%s becomes an error that says what happened and what to do, with ours as its cause", (code) => {
  for (const subject of subjects) {
    const original = error(code);
    const mapped = toE2BError(original, subject) as Error;
    expect(mapped).not.toBeInstanceOf(AgentRunError);
    expect(mapped.cause).toBe(original);
    expect(mapped.message).toBe("it failed: what happened. Do this.");
    expect(mapped.name).toBe(mapped.constructor.name);
    if (mapped instanceof SandboxError) expect(mapped.statusCode).toBe(418);
  }
});

it.each([
  ["unauthorized", "sandbox", AuthenticationError],
  ["not_found", "sandbox", SandboxNotFoundError],
  ["not_found", "template", NotFoundError],
  ["not_found", "file", FileNotFoundError],
  ["not_found", "process", NotFoundError],
  ["idle_timeout", "sandbox", SandboxNotFoundError],
  ["idle_timeout", "process", SandboxNotFoundError],
  ["idle_timeout", "file", TimeoutError],
  ["oom_killed", "code", TimeoutError],
  ["sandbox_not_running", "process", SandboxNotFoundError],
  ["exec_timeout", "process", TimeoutError],
  ["invalid_input", "file", InvalidArgumentError],
  ["timeout_too_large", "sandbox", InvalidArgumentError],
  ["invalid_sandbox_id", "sandbox", InvalidArgumentError],
  ["rate_limited", "sandbox", RateLimitError],
  ["quota_exceeded", "sandbox", RateLimitError],
  ["sandbox_exhausted", "file", NotEnoughSpaceError],
  ["unavailable", "sandbox", ServiceBusyError],
  ["unavailable", "file", TimeoutError],
  ["transport_error", "sandbox", SandboxError],
  ["a_code_of_a_newer_server", "sandbox", SandboxError],
  ["constructor", "sandbox", SandboxError],
] as const)("%s of a %s is a %o", (code, subject, Class) => {
  expect((toE2BError(error(code), subject) as Error).constructor).toBe(Class);
});

describe("a sandbox that the server does not know", () => {
  it.each([
    ["file", TimeoutError],
    ["process", SandboxNotFoundError],
    ["code", TimeoutError],
  ] as const)("is not taken for a missing %s", (subject, Class) => {
    expect((toE2BError(error("not_found", "no sandbox has the id sb-1"), subject) as Error).constructor).toBe(Class);
  });
});

it("classes are related as in E2B", () => {
  expect(new FileNotFoundError("x")).toBeInstanceOf(NotFoundError);
  expect(new SandboxNotFoundError("x")).toBeInstanceOf(NotFoundError);
  expect(new TimeoutError("x")).toBeInstanceOf(SandboxError);
  expect(new AuthenticationError("x")).not.toBeInstanceOf(SandboxError);
  expect(new ServiceBusyError("x")).not.toBeInstanceOf(SandboxError);
  expect(new ServiceBusyError("x").statusCode).toBe(503);
});

it("an error of somebody else's stays what it is", () => {
  const own = new RangeError("mine");
  expect(toE2BError(own, "file")).toBe(own);
});
