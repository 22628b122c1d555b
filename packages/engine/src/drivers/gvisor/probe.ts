import { randomBytes } from "node:crypto";
import { mkdir, mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { resourceDefaults } from "@mitos/protocol";
import type { ProbeResult } from "../../driver.ts";
import { LinkClient } from "../../link/client.ts";
import { closeCgroups, openCgroups } from "../host/cgroup.ts";
import { findGuest, type Guest, MissingPart } from "../host/parts.ts";
import { findRunsc, type Runsc, requireFlags } from "./find.ts";
import { createGvisorDriver, type GvisorOptions } from "./index.ts";

const probeVersion = 1;

interface CachedProbe {
  readonly key: string;
  readonly result: ProbeResult;
}

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
  const bootId = (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim();
  const key = JSON.stringify([probeVersion, bootId, runsc.fileId, runsc.build, guest.hash, process.getuid?.()]);
  const file = path.join(dataDir, "gvisor", "probe.json");
  const cached = await readCached(file);
  if (cached?.key === key) return cached.result;
  try {
    await requireFlags(runsc);
    await tryIt(options);
  } catch (error) {
    return notUsable(error);
  }
  const result = usable(runsc, await weaknesses());
  await writeCached(file, { key, result });
  return result;
}

/** In folders of its own, so that nothing of the real ones is touched. */
async function tryIt(options: GvisorOptions): Promise<void> {
  await mkdir(options.dataDir, { recursive: true, mode: 0o700 });
  const dataDir = await mkdtemp(path.join(options.dataDir, "probe-"));
  const runtimeDir = `${options.runtimeDir}-p`;
  try {
    const driver = await createGvisorDriver({ ...options, dataDir, runtimeDir });
    try {
      await driver.sweep(new Set());
      const spec = (name: string) => ({
        machineId: `${name}-${randomBytes(4).toString("hex")}`,
        root: { kind: "host" as const },
        resources: { ...resourceDefaults, memSizeMiB: 256 },
        hostName: "probe",
      });
      const booted = await driver.boot(spec("boot"));
      const link = new LinkClient(booted.transport);
      await link.hello();
      await link.quiesce();
      const snapshot = await driver.snapshot(booted, path.join(dataDir, "snapshot"), { leaveRunning: false, durable: false });
      const restored = await driver.restore(snapshot, spec("rest"));
      await new LinkClient(restored.transport).hello();
      await restored.end("probed");
    } finally {
      await driver.sweep(new Set());
      await driver.close();
    }
  } finally {
    await Promise.all([dataDir, runtimeDir].map((dir) => rm(dir, { recursive: true, force: true })));
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
    return [
      "Allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0, kernel.apparmor_restrict_unprivileged_userns=0), or start the server as root.",
    ];
  }
  if (/seccomp|ptrace|operation not permitted/i.test(detail)) {
    return [
      "In a container, give it the rights that gVisor needs (docker: --privileged, or --security-opt seccomp=unconfined and CAP_SYS_ADMIN, CAP_SYS_PTRACE).",
    ];
  }
  return ["Start the server with --log-level debug to see what runsc said."];
}

async function readCached(file: string): Promise<CachedProbe | undefined> {
  try {
    return JSON.parse(await readFile(file, "utf8")) as CachedProbe;
  } catch {
    return undefined;
  }
}

async function writeCached(file: string, cached: CachedProbe): Promise<void> {
  const partial = `${file}.${randomBytes(4).toString("hex")}`;
  await mkdir(path.dirname(file), { recursive: true, mode: 0o700 });
  await writeFile(partial, JSON.stringify(cached), { mode: 0o600 });
  await rename(partial, file);
}
