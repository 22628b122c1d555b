import { expect, it } from "vitest";
import { toMachineExit } from "./exit.ts";

it.each([
  [{ reason: "terminated by its owner", at_unix_ms: 5 }, "terminated"],
  [{ reason: "killed", signal: 9, oom: false }, "killed"],
  [{ reason: "killed", signal: 9, oom: true }, "oom_killed"],
  [{ reason: "oom_killed", oom: true }, "oom_killed"],
  [{ reason: "exited", exit_code: 3, oom: false }, "exited"],
  [{ reason: "exited", exit_code: 2, oom: false, process_limit: true }, "killed"],
  [{ reason: "deadline", oom: false }, "deadline"],
  [{}, "lost"],
  [{ reason: 7, at_unix_ms: "soon" }, "lost"],
])("takes what a shim said, %j, for %s", (told, reason) => {
  const exit = toMachineExit(told, { vcpuCount: 1, memSizeMiB: 512, processesMax: 64 });
  expect(exit.reason).toBe(reason);
  expect(exit.detail).not.toBe("");
  expect(Number.isFinite(exit.atUnixMs)).toBe(true);
});
