import { randomBytes } from "node:crypto";
import { mkdir, mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { resourceDefaults } from "@mitos/protocol";
import type { ProbeResult } from "../../driver.ts";
import { LinkClient } from "../../link/client.ts";
import { findGuest, MissingPart } from "../host/parts.ts";
import { findAssets } from "./assets.ts";
import { createMicrovmDriver, type MicrovmOptions } from "./index.ts";
import { probeKvm } from "./kvm.ts";

const probeVersion = 1;

interface CachedProbe {
  readonly key: string;
  readonly result: ProbeResult;
}

/**
 * Whether this machine can run virtual machines with this accelerator, found by doing it: one is booted, saved and restored, and both must answer. KVM
 * is timed first, since a device that opens proves nothing. A good answer is kept in the data directory until the host boots again or QEMU, the kernel
 * or the agent change; a bad one is asked for anew each time.
 *
 * Must not run beside a driver of the same data directory.
 */
export async function probeMicrovm(options: MicrovmOptions): Promise<ProbeResult> {
  const { dataDir, accel } = options;
  try {
    const guest = await findGuest(options.guest);
    if (accel === "kvm") {
      const kvm = await probeKvm(guest);
      if (!kvm.usable) return notUsable(options, kvm.detail, [kvm.remedy]);
    }
    const { vmm, kernel } = await findAssets(guest);
    const bootId = (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim();
    const key = JSON.stringify([probeVersion, bootId, vmm.root, vmm.build, kernel.hash, guest.hash, accel, process.getuid?.()]);
    const file = path.join(dataDir, "microvm", `probe-${accel}.json`);
    const cached = await readCached(file);
    if (cached?.key === key) return cached.result;
    await tryIt(options);
    const detail = `${vmm.build}, Linux ${kernel.release}: a virtual machine was booted, saved and restored on this machine`;
    const result: ProbeResult = { usable: true, isolation: `microvm-${accel}`, detail, remedies: [], weaknesses: weaknesses(options) };
    await writeCached(file, { key, result });
    return result;
  } catch (error) {
    const detail = error instanceof Error ? (error.message.split("\n", 1)[0] as string) : String(error);
    return notUsable(options, detail, error instanceof MissingPart ? [error.remedy] : remediesFor(detail));
  }
}

/** In folders of its own, so that nothing of the real ones is touched. */
async function tryIt(options: MicrovmOptions): Promise<void> {
  await mkdir(options.dataDir, { recursive: true, mode: 0o700 });
  const dataDir = await mkdtemp(path.join(options.dataDir, "probe-"));
  const runtimeDir = `${options.runtimeDir}-p`;
  try {
    const driver = await createMicrovmDriver({ ...options, dataDir, runtimeDir });
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

function weaknesses({ accel }: MicrovmOptions): string[] {
  return [
    ...(accel === "tcg"
      ? ["Without KVM the processor is emulated: programs run many times slower, and the walls are QEMU's, not the hardware's."]
      : []),
    ...(process.getuid?.() === 0
      ? []
      : ["Without root there are no cgroups: the host does not limit what the monitor of a sandbox uses beside its memory."]),
  ];
}

function notUsable({ accel }: MicrovmOptions, detail: string, remedies: readonly string[]): ProbeResult {
  return { usable: false, isolation: `microvm-${accel}`, detail, remedies, weaknesses: [] };
}

/** What commonly keeps virtual machines from running, by what is said then. */
function remediesFor(detail: string): string[] {
  if (/user namespace|namespace|operation not permitted|unshare/i.test(detail)) {
    return [
      "Allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0, kernel.apparmor_restrict_unprivileged_userns=0), or start the server as root.",
    ];
  }
  return ["Start the server with --log-level debug to see what QEMU said."];
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
