import { expect, it } from "vitest";
import { AgentRunError } from "../errors.ts";
import { SandboxError, TimeoutError } from "./errors.ts";
import { request } from "./request.ts";

const never = () => new Promise<never>(() => {});

it("ends at requestTimeoutMs, and tells what it ran", async () => {
  let given: AbortSignal | undefined;
  const work = (signal: AbortSignal) => {
    given = signal;
    return never();
  };
  await expect(request("file", { requestTimeoutMs: 5 }, work)).rejects.toBeInstanceOf(TimeoutError);
  expect(given?.aborted).toBe(true);
});

it("ends with the reason of the caller's signal, before and while it runs", async () => {
  const controller = new AbortController();
  const reason = new Error("enough");
  const running = request("file", { signal: controller.signal }, never);
  controller.abort(reason);
  await expect(running).rejects.toBe(reason);
  await expect(request("file", { signal: controller.signal }, async () => 1)).rejects.toBe(reason);
});

it("has no time-out with 0, and gives what came", async () => {
  expect(await request("file", { requestTimeoutMs: 0 }, () => new Promise((resolve) => setTimeout(resolve, 5, "late")))).toBe("late");
});

it("takes a time-out that is longer than a timer can be", async () => {
  const late = () => new Promise((resolve) => setTimeout(resolve, 20, "late"));
  for (const requestTimeoutMs of [2 ** 31, Number.POSITIVE_INFINITY])
    expect(await request("file", { requestTimeoutMs }, late)).toBe("late");
});

it("maps our errors and leaves others", async () => {
  const ours = new AgentRunError("no", { code: "conflict" });
  await expect(request("file", {}, () => Promise.reject(ours))).rejects.toBeInstanceOf(SandboxError);
  await expect(request("file", {}, () => Promise.reject(new RangeError("x")))).rejects.toBeInstanceOf(RangeError);
});
