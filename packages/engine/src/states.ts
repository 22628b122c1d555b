import { MitosError } from "@mitos/protocol";
import type { SandboxState } from "./actions.ts";
import type { SandboxRecord } from "./store/sandboxes.ts";

/**
 * What can be done to a sandbox.
 *
 * `runtime` is everything inside it: exec, files, code, tunnels. The states in which an action also succeeds without doing anything
 * (`pause` of a paused sandbox) are in the table.
 */
export type Action = "get" | "runtime" | "fork" | "pause" | "resume" | "setTimeout" | "meter" | "console" | "terminate";

/**
 * Which action is allowed in which state: the one table for server, SDK and docs.
 *
 * `fork`, `pause` and `resume` wait for one another: one that finds the sandbox on its way (`starting`, `pausing`, `resuming`) is judged by
 * the state that this leads to.
 */
export const allowedStates = {
  get: ["starting", "running", "pausing", "paused", "resuming", "failed"],
  runtime: ["running"],
  fork: ["running", "paused"],
  pause: ["running", "paused"],
  resume: ["running", "paused"],
  setTimeout: ["running", "pausing", "paused", "resuming"],
  meter: ["running"],
  console: ["running"],
  terminate: ["starting", "running", "pausing", "paused", "resuming", "failed"],
} as const satisfies Record<Action, readonly SandboxState[]>;

/** From which state a sandbox may go where. `ended` is final; `failed` waits to be deleted. */
export const nextStates = {
  starting: ["running", "ended", "failed"],
  running: ["running", "pausing", "ended", "failed"],
  pausing: ["running", "paused", "ended", "failed"],
  paused: ["paused", "resuming", "ended", "failed"],
  resuming: ["running", "paused", "ended", "failed"],
  failed: ["ended"],
  ended: [],
} as const satisfies Record<SandboxState, readonly SandboxState[]>;

/** @throws idle_timeout, oom_killed, sandbox_not_running: by why the action is not allowed */
export function requireState(record: SandboxRecord, action: Action): void {
  if ((allowedStates[action] as readonly SandboxState[]).includes(record.state)) {
    if (action === "get" && record.state === "failed" && record.end?.cause === "oom_killed") throw endedError(record);
    return;
  }
  requireAlive(record);
  throw new MitosError("sandbox_not_running", {
    cause: `sandbox ${record.id} is ${record.state}; ${action} needs it ${allowedStates[action].join(" or ")}`,
    context: { sandbox: record.id },
  });
}

/** @throws idle_timeout, oom_killed, sandbox_not_running for what has ended or failed */
export function requireAlive(record: SandboxRecord): void {
  if (record.state === "ended" || record.state === "failed") throw endedError(record);
}

/** Why nothing can be done any more to a sandbox that has ended or failed. */
export function endedError(record: SandboxRecord): MitosError {
  const cause = `sandbox ${record.id} has ${record.state === "failed" ? "failed" : "ended"}: ${describeEnd(record) ?? "unknown"}`;
  const context = { sandbox: record.id };
  if (record.end?.cause === "oom_killed") {
    return new MitosError("oom_killed", { cause: `${cause} (limit ${record.resources.memSizeMiB} MiB)`, context });
  }
  return new MitosError(record.state === "ended" ? "idle_timeout" : "sandbox_not_running", { cause, context });
}

/** The public `endReason`. */
export function describeEnd(record: SandboxRecord): string | null {
  if (!record.end) return null;
  const { cause, detail } = record.end;
  return detail ? `${cause}: ${detail}` : cause;
}
