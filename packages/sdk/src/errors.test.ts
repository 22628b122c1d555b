import { describe, expect, it } from "vitest";
import {
  AgentRunError,
  ExecutionDeadlineError,
  errorForCode,
  IdleTimeoutError,
  NotFoundError,
  RateLimitedError,
  RequestCanceledError,
  redact,
  TimeoutTooLargeError,
  transportError,
  UnauthorizedError,
} from "./errors.ts";

const key = "supersecrettoken";

describe("an answer of a /v1 route", () => {
  it.each([
    ["idle_timeout", IdleTimeoutError],
    ["exec_timeout", ExecutionDeadlineError],
    ["canceled", RequestCanceledError],
    ["rate_limited", RateLimitedError],
    ["not_found", NotFoundError],
    ["unauthorized", UnauthorizedError],
    ["timeout_too_large", TimeoutTooLargeError],
    ["some_new_code", AgentRunError],
    ["constructor", AgentRunError],
  ])("with the code %s has its class, whatever the status", (code, type) => {
    const context = { requested_s: 1000, max_timeout_s: 100 };
    const error = AgentRunError.fromResponse(400, JSON.stringify({ error: { code, message: "m", cause: "c", remediation: "r", context } }));
    expect(error.constructor).toBe(type);
    expect(error).toMatchObject({ name: type.name, code, message: "m", errorCause: "c", remediation: "r", context, status: 400 });
  });

  it.each([
    [400, "bad_request"],
    [401, "unauthorized"],
    [403, "forbidden"],
    [404, "not_found"],
    [409, "conflict"],
    [413, "request_too_large"],
    [429, "rate_limited"],
    [500, "internal_error"],
    [503, "unavailable"],
    [599, "server_error"],
    [418, "request_failed"],
  ])("without an envelope and with status %i is %s, with a remedy", (status, code) => {
    const error = AgentRunError.fromResponse(status, "down");
    expect(error).toMatchObject({ code, status, errorCause: "down", message: `sandbox API request failed: HTTP ${status} (${code})` });
    expect(error.remediation).not.toBe("");
  });

  it("in the older form has its text as the cause", () => {
    expect(AgentRunError.fromResponse(500, '{"error":"boom"}')).toMatchObject({ code: "internal_error", errorCause: "boom" });
  });

  it("says when to try again, in the context, whoever of body and header knows it", () => {
    const body = (context?: object) => JSON.stringify({ error: { code: "quota_exceeded", message: "m", remediation: "r", context } });
    const limit = { op: "create", dimension: "sandboxes", limit: 2 };
    expect(AgentRunError.fromResponse(429, body(limit), undefined, "2").context).toEqual({ ...limit, retry_after_ms: 2000 });
    expect(AgentRunError.fromResponse(429, body({ retry_after_ms: 150 }), undefined, "1").context).toEqual({ retry_after_ms: 150 });
    expect(AgentRunError.fromResponse(429, "busy", undefined, "Wed, 21 Oct 2026 07:28:00 GMT").context).toEqual({});
  });

  it("never carries the key, wherever the server put it", () => {
    const envelope = { code: "internal", message: key, cause: `Bearer ${key}`, remediation: `use ${key}` };
    for (const body of [JSON.stringify({ error: envelope }), JSON.stringify({ error: key }), key]) {
      const error = AgentRunError.fromResponse(500, body, key);
      expect(`${error} ${error.stack} ${JSON.stringify(error)}`).not.toContain(key);
    }
  });
});

it.each([
  [
    "what fetch hides behind its own error",
    new TypeError("fetch failed", { cause: new Error("connect ECONNREFUSED ::1:1") }),
    "connect ECONNREFUSED ::1:1",
  ],
  [
    "the code of several attempts, which have no common text",
    Object.assign(new AggregateError([new Error("one"), new Error("other")]), { code: "ECONNREFUSED" }),
    "ECONNREFUSED",
  ],
  ["the error's own text otherwise", new Error("socket hang up", { cause: "unknown" }), "socket hang up"],
])("a request without an answer says %s", (_what, reason, said) => {
  expect(transportError("GET /", "http://localhost:1", reason).errorCause).toBe(`GET /: ${said}`);
});

it("the text form leaves out what is empty", () => {
  expect(String(errorForCode("m", { code: "x" }))).toBe("[x] m");
  expect(String(errorForCode("m", { code: "x", cause: "c", remediation: "r" }))).toBe("[x] m | cause: c | remediation: r");
});

it("redact leaves the text alone without a key", () => {
  expect(redact("a b", "")).toBe("a b");
  expect(redact("a b a", "a")).toBe("[REDACTED] b [REDACTED]");
});
