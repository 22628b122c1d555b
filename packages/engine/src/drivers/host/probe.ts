import { randomBytes } from "node:crypto";
import { mkdir, mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { resourceDefaults } from "@mitos/protocol";
import type { Driver, ProbeResult } from "../../driver.ts";
import { LinkClient } from "../../link/client.ts";

/** What to do where an ordinary user is refused namespaces. */
export const allowNamespaces =
  "Allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0, kernel.apparmor_restrict_unprivileged_userns=0), or start the server as root.";

interface Folders {
  readonly dataDir: string;
  readonly runtimeDir: string;
}

/** As `tryMachines`, in folders of its own beside the real ones, so that nothing of those is touched. */
export async function tryMachinesBeside(real: Folders, open: (folders: Folders) => Promise<Driver>): Promise<void> {
  await mkdir(real.dataDir, { recursive: true, mode: 0o700 });
  const dataDir = await mkdtemp(path.join(real.dataDir, "probe-"));
  const runtimeDir = `${real.runtimeDir}-p`;
  try {
    await tryMachines(await open({ dataDir, runtimeDir }), dataDir);
  } finally {
    await Promise.all([dataDir, runtimeDir].map((dir) => rm(dir, { recursive: true, force: true })));
  }
}

/**
 * Boots a machine, saves it and restores it; both must answer. Nothing of them is left, whatever comes of it.
 *
 * @param driver - of a data directory that is nobody else's; closed afterwards
 * @throws the first thing that went wrong
 */
export async function tryMachines(driver: Driver, dataDir: string): Promise<void> {
  try {
    await driver.sweep(new Set());
    const booted = await driver.boot({ ...specOf("boot"), root: { kind: "host" } });
    const link = new LinkClient(booted.transport);
    await link.hello();
    await link.quiesce();
    const snapshot = await driver.snapshot(booted, path.join(dataDir, "snapshot"), { leaveRunning: false, durable: false });
    const restored = await driver.restore(snapshot, specOf("rest"));
    await new LinkClient(restored.transport).hello();
    await restored.end("probed");
  } finally {
    await driver.sweep(new Set());
    await driver.close();
  }
}

function specOf(name: string) {
  return {
    machineId: `${name}-${randomBytes(4).toString("hex")}`,
    resources: { ...resourceDefaults, memSizeMiB: 256 },
    hostName: "probe",
  };
}

interface CachedProbe {
  readonly key: string;
  readonly result: ProbeResult;
}

/**
 * Keeps a good answer in `file` until the host boots again or something of `parts` changes. What `probe` throws is not kept.
 *
 * @param parts - what the answer depends on
 */
export async function cachedProbe(file: string, parts: readonly unknown[], probe: () => Promise<ProbeResult>): Promise<ProbeResult> {
  const bootId = (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim();
  const key = JSON.stringify([bootId, process.getuid?.(), ...parts]);
  const cached = await readCached(file);
  if (cached?.key === key) return cached.result;
  const result = await probe();
  const partial = `${file}.${randomBytes(4).toString("hex")}`;
  await mkdir(path.dirname(file), { recursive: true, mode: 0o700 });
  await writeFile(partial, JSON.stringify({ key, result } satisfies CachedProbe), { mode: 0o600 });
  await rename(partial, file);
  return result;
}

async function readCached(file: string): Promise<CachedProbe | undefined> {
  try {
    return JSON.parse(await readFile(file, "utf8")) as CachedProbe;
  } catch {
    return undefined;
  }
}
