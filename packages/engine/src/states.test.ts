import { MitosError } from "@mitos/protocol";
import { describe, expect, it } from "vitest";
import type { EndCause, SandboxState } from "./actions.ts";
import { type Action, allowedStates, nextStates, requireState } from "./states.ts";
import type { SandboxRecord } from "./store/sandboxes.ts";

function record(state: SandboxState, cause?: EndCause): SandboxRecord {
  const end = cause ? { cause, detail: "", atMs: 0 } : null;
  return { id: "a", state, end, resources: { memSizeMiB: 512 } } as unknown as SandboxRecord;
}

function codeOf(state: SandboxState, action: Action, cause?: EndCause): string {
  try {
    requireState(record(state, cause), action);
    return "ok";
  } catch (error) {
    return error instanceof MitosError ? error.code : String(error);
  }
}

describe("an action in the wrong state", () => {
  it.each([
    ["runtime", "paused", undefined, "sandbox_not_running"],
    ["runtime", "pausing", undefined, "sandbox_not_running"],
    ["runtime", "starting", undefined, "sandbox_not_running"],
    ["runtime", "ended", "time-out", "idle_timeout"],
    ["runtime", "ended", "idle", "idle_timeout"],
    ["runtime", "ended", "terminated", "idle_timeout"],
    ["runtime", "failed", "oom_killed", "oom_killed"],
    ["runtime", "ended", "oom_killed", "oom_killed"],
    ["runtime", "failed", "exited", "sandbox_not_running"],
    ["get", "failed", "oom_killed", "oom_killed"],
    ["get", "failed", "lost", "ok"],
    ["get", "ended", "terminated", "idle_timeout"],
    ["setTimeout", "paused", undefined, "ok"],
    ["setTimeout", "failed", "lost", "sandbox_not_running"],
    ["fork", "paused", undefined, "ok"],
    ["meter", "paused", undefined, "sandbox_not_running"],
    ["console", "running", undefined, "ok"],
    ["console", "paused", undefined, "sandbox_not_running"],
    ["console", "failed", "oom_killed", "oom_killed"],
  ] as const)("%s while %s (%s) is %s", (action, state, cause, code) => {
    expect(codeOf(state, action, cause)).toBe(code);
  });
});

describe("the states", () => {
  it("lead from every one but the last to an end, and from the end nowhere", () => {
    for (const [state, next] of Object.entries(nextStates)) {
      expect((next as readonly string[]).includes("ended"), state).toBe(state !== "ended");
    }
  });

  it("allow no action in `ended`", () => {
    for (const states of Object.values(allowedStates)) expect(states).not.toContain("ended");
  });
});
