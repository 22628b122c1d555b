import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { expect, it } from "vitest";
import { toGuestExit, toMachineExit } from "./exit.ts";

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

it.each([
  ["", "exited", "does not say why"],
  ["[    1.5] Kernel panic - not syncing: Out of memory: compulsory panic_on_oom is enabled\n", "oom_killed", "its limit of 512 MiB"],
  [
    "[    6.5] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000004\n[ 6.6] CPU: 0\n",
    "exited",
    "Attempted to kill init",
  ],
  ["mitos: cannot boot: mount /dev/vda: \x1b[31mNo such device\n", "exited", "it could not boot: mount /dev/vda:"],
])("takes what a virtual machine said on its console, %j, for %s: %s", async (said, reason, detail) => {
  const dir = mkdtempSync(path.join(os.tmpdir(), "mitos-exit-"));
  writeFileSync(path.join(dir, "machine.log"), said);
  const resources = { vcpuCount: 1, memSizeMiB: 512, processesMax: 64 };
  const exit = await toGuestExit(dir, { reason: "exited", exit_code: 0 }, resources);
  expect(exit).toMatchObject({ reason, detail: expect.stringContaining(detail) });
  expect(exit.detail).not.toContain("\x1b");
  // Whoever ended it from outside knows better.
  expect(await toGuestExit(dir, { reason: "deadline" }, resources)).toMatchObject({ reason: "deadline", detail: "its time was over" });
  rmSync(dir, { recursive: true });
});
