import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, realpathSync } from "node:fs";
import path from "node:path";
import { engineUnderTest } from "../support/engine-under-test.ts";

/** What a data directory has on this host, counted from outside and without any of the server's code. */
export interface HostAccount {
  /** Containers with a sentry or a shim that lives. */
  machines: string[];
  machineFolders: string[];
  machineNames: string[];
  /** What gVisor keeps of each container; other engines keep nothing of the kind. */
  runscStates: string[];
  cgroups: string[];
  /** Snapshot folders on disk and tmpfs, by kind: `template-…`, `pause-…`, `fork-…`. */
  snapshots: string[];
  /** Whatever is still being made. */
  partial: string[];
}

export function accountOf(dataDir: string): HostAccount {
  const real = realpathSync(dataDir);
  const hash = sha256(real, 8);
  const uid = process.getuid?.() ?? 0;
  const runtimeDir = runtimeDirOf(dataDir);
  const disk = path.join(real, "snapshots");
  const snapshotFolders = [disk, `/dev/shm/mitos-${uid}-${sha256(disk, 16)}`]
    .flatMap((dir) => list(dir))
    .filter((name) => name !== "owner");
  const machineFolders = list(path.join(runtimeDir, "m"));
  return {
    machines: [...new Set(processIds().flatMap((pid) => containerOf(pid, runtimeDir)))].sort(),
    machineFolders: machineFolders.sort(),
    machineNames: list(path.join(runtimeDir, "ids")),
    runscStates: list(path.join(runtimeDir, "r")).filter((name) => name.endsWith(".state")),
    cgroups: [...new Set(cgroupRoots().flatMap((root) => folders(path.join(root, `mitos-${hash}`))))].sort(),
    snapshots: snapshotFolders.filter((name) => !name.includes(".partial-")).sort(),
    partial: [...snapshotFolders, ...list(path.join(real, engineUnderTest))].filter((name) => name.includes(".partial-")),
  };
}

/** The host process of a machine (gVisor's sentry, a microVM's VMM), and its shim. */
export function processesOf(dataDir: string, machineName: string): { machine: number; shim: number } {
  const dir = path.join(runtimeDirOf(dataDir), "ids", machineName);
  const pid = (name: string) => Number(readFileSync(path.join(dir, name), "utf8").trim());
  return { machine: pid(engineUnderTest === "gvisor" ? "sentry.pid" : "vmm.pid"), shim: pid("shim.pid") };
}

function runtimeDirOf(dataDir: string): string {
  const uid = process.getuid?.() ?? 0;
  const hash = sha256(realpathSync(dataDir), 8);
  if (uid === 0) return `/run/mitos-${hash}`;
  return process.env.XDG_RUNTIME_DIR ? path.join(process.env.XDG_RUNTIME_DIR, `mitos-${hash}`) : `/tmp/mitos-${uid}-${hash}`;
}

function sha256(text: string, length: number): string {
  return createHash("sha256").update(text).digest("hex").slice(0, length);
}

function list(dir: string): string[] {
  return existsSync(dir) ? readdirSync(dir) : [];
}

function folders(dir: string): string[] {
  if (!existsSync(dir)) return [];
  return readdirSync(dir, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map((entry) => entry.name);
}

function cgroupRoots(): string[] {
  const mount = "/sys/fs/cgroup";
  return [mount, ...folders(mount).map((name) => path.join(mount, name))];
}

function processIds(): string[] {
  return readdirSync("/proc").filter((name) => /^\d+$/.test(name));
}

function containerOf(pid: string, runtimeDir: string): string[] {
  try {
    const command = readFileSync(`/proc/${pid}/cmdline`, "latin1");
    const found = new RegExp(`${runtimeDir}/m/([0-9a-f]{12})`).exec(command)?.[1];
    return found ? [found] : [];
  } catch {
    return []; // it has ended meanwhile
  }
}
