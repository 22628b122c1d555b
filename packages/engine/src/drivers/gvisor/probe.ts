import { randomBytes } from "node:crypto";
import path from "node:path";
import type { ProbeResult } from "../../driver.ts";
import { closeCgroups, openCgroups } from "../host/cgroup.ts";
import { findGuest, type Guest, MissingPart } from "../host/parts.ts";
import { allowNamespaces, cachedProbe, tryMachinesBeside } from "../host/probe.ts";
import { findRunsc, type Runsc, requireFlags } from "./find.ts";
import { createGvisorDriver, type GvisorOptions } from "./index.ts";

const probeVersion = 2;

/**
 * Whether this machine can run gVisor sandboxes, found by doing it: one is booted, saved and restored, and both must answer. A good answer is kept
 * in the data directory until the host boots again or runsc or the agent change; a bad one is asked for anew each time.
 *
 * Must not run beside a driver of the same data directory.
 */
export async function probeGvisor(options: GvisorOptions): Promise<ProbeResult> {
  const { dataDir } = options;
  let runsc: Runsc;
  let guest: Guest;
  try {
    [runsc, guest] = await Promise.all([findRunsc(options.runsc), findGuest(options.guest)]);
  } catch (error) {
    return notUsable(error);
  }
  const parts = [probeVersion, runsc.fileId, runsc.build, guest.hash];
  try {
    return await cachedProbe(path.join(dataDir, "gvisor", "probe.json"), parts, async () => {
      await requireFlags(runsc);
      await tryMachinesBeside(options, (folders) => createGvisorDriver({ ...options, ...folders }));
      return usable(runsc, await weaknesses());
    });
  } catch (error) {
    return notUsable(error);
  }
}

async function weaknesses(): Promise<string[]> {
  if (process.getuid?.() !== 0) {
    return [
      "Without root there are no cgroups: memory is watched by each sandbox's shim and can overshoot for a moment; processor time and the number of processes are not limited by the host.",
    ];
  }
  const name = `mitos-probe-${randomBytes(4).toString("hex")}`;
  const cgroups = await openCgroups(name);
  if (!cgroups) {
    return [
      "The cgroup file system cannot be written: memory is watched by each sandbox's shim, and processor time is not limited by the host.",
    ];
  }
  await closeCgroups(cgroups);
  return [];
}

function usable(runsc: Runsc, weaknesses: readonly string[]): ProbeResult {
  return {
    usable: true,
    isolation: "gvisor",
    detail: `${runsc.build}: a sandbox was booted, saved and restored on this machine`,
    remedies: [],
    weaknesses,
  };
}

function notUsable(error: unknown): ProbeResult {
  const missing = error instanceof MissingPart;
  const detail = error instanceof Error ? error.message.split("\n", 1)[0]! : String(error);
  const remedies = missing ? [error.remedy] : remediesFor(detail);
  return { usable: false, isolation: "gvisor", detail, remedies, weaknesses: [] };
}

/** What commonly keeps gVisor from running, by what it says then. */
function remediesFor(detail: string): string[] {
  if (/user namespace|clone.*operation not permitted|unshare/i.test(detail)) {
    return [allowNamespaces];
  }
  if (/seccomp|ptrace|operation not permitted/i.test(detail)) {
    return [
      "In a container, give it the rights that gVisor needs (docker: --privileged, or --security-opt seccomp=unconfined and CAP_SYS_ADMIN, CAP_SYS_PTRACE).",
    ];
  }
  return ["Start the server with --log-level debug to see what runsc said."];
}
