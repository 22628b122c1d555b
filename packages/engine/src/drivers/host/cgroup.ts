import { access, constants, mkdir, readdir, rmdir, writeFile } from "node:fs/promises";
import path from "node:path";
import { cgroupRoom } from "../../cgroup-room.ts";
import type { MachineResources } from "../../driver.ts";

const mount = "/sys/fs/cgroup";

/** What sentry, gofer and shim need beside the guest's own memory, so that `memSizeMiB` really can be used by programs. */
export const memoryOverheadMiB = 64;
/** Host tasks of the sentry itself and of the agent. */
const tasksOverhead = 512;
/** Every process or thread of the guest is two on the host, and a third while the sentry waits for the host in its name. */
const tasksPerProcess = 3;
const cpuPeriodUs = 100_000;

export interface Cgroups {
  readonly version: 1 | 2;
  /** Folders in which `<parent>/<container>` lies: one per controller (v1), or one. */
  readonly hierarchies: readonly string[];
  /** The one that tells memory and out-of-memory kills. */
  readonly memory: string;
  /** The one that counts tasks. Undefined: v1 without that controller. */
  readonly pids: string | undefined;
  readonly swapLimit: boolean;
  readonly parent: string;
}

/** Undefined where this user cannot make cgroups: then the shim watches memory itself. */
export async function openCgroups(parent: string): Promise<Cgroups | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  const found = (await isThere(path.join(mount, "cgroup.controllers"))) ? version2(parent) : await version1(parent);
  const cgroups = await found;
  if (!cgroups) return undefined;
  try {
    // Made here and not by runsc, which would try to remove it with its first container while others are in it.
    for (const hierarchy of cgroups.hierarchies) await mkdir(path.join(hierarchy, parent), { recursive: true });
    await access(path.join(cgroups.memory, parent), constants.W_OK);
  } catch {
    return undefined;
  }
  return { ...cgroups, swapLimit: await hasSwapLimit(cgroups) };
}

async function version2(parent: string): Promise<Cgroups> {
  return { version: 2, hierarchies: [mount], memory: mount, pids: mount, swapLimit: false, parent };
}

/** runsc makes a cgroup in every v1 hierarchy that is mounted, and in a unified one beside them only its own name. */
async function version1(parent: string): Promise<Cgroups | undefined> {
  const names = await readdir(mount).catch(() => []);
  const hierarchies: string[] = [];
  for (const name of names) {
    if (name !== "unified" && (await isThere(path.join(mount, name, "cgroup.procs")))) hierarchies.push(path.join(mount, name));
  }
  const memory = path.join(mount, "memory");
  const pids = hierarchies.find((hierarchy) => path.basename(hierarchy) === "pids");
  return hierarchies.includes(memory) ? { version: 1, hierarchies, memory, pids, swapLimit: false, parent } : undefined;
}

function hasSwapLimit(cgroups: Cgroups): Promise<boolean> {
  const file = cgroups.version === 1 ? "memory.memsw.limit_in_bytes" : "memory.swap.max";
  return isThere(path.join(cgroups.memory, cgroups.parent, file));
}

/** OCI `linux.resources`: over the memory limit a machine dies as a whole. */
export function ociResources(resources: MachineResources, cgroups: Cgroups): object {
  const limit = memoryLimitBytes(resources);
  const cpu = cpuLimit(resources);
  return {
    memory: { limit, ...(cgroups.swapLimit ? { swap: limit } : {}) },
    // The limit that programs meet is the sandbox's own (EAGAIN, see the agent's `limits.rs`); this one ends who got around it.
    pids: { limit: tasksPerProcess * resources.processesMax + tasksOverhead },
    cpu: { quota: cpu.quotaUs, period: cpu.periodUs },
  };
}

/** Processor time in microseconds: so much in each period. */
export function cpuLimit({ vcpuCount }: MachineResources): { readonly periodUs: number; readonly quotaUs: number } {
  return { periodUs: cpuPeriodUs, quotaUs: vcpuCount * cpuPeriodUs };
}

/**
 * Lets a machine save up the time of one period. It has more threads than processors, since its own work is done beside the programs'. What it does
 * after a pause would use up the period's time early, and then stand still for the rest of it. In the long run it gets no more.
 *
 * For a cgroup that has its limits already (runsc knows no burst). Linux has it since 5.14; where the host knows it not or refuses it, the limit holds without.
 */
export async function allowBurst({ version, hierarchies, parent }: Cgroups, id: string, resources: MachineResources): Promise<void> {
  const hierarchy = hierarchies.find((dir) => version === 2 || path.basename(dir) === "cpu");
  if (!hierarchy) return;
  const file = path.join(hierarchy, parent, id, version === 2 ? "cpu.max.burst" : "cpu.cfs_burst_us");
  await writeFile(file, String(cpuLimit(resources).quotaUs), { flag: "r+" }).catch(() => undefined);
}

export function memoryLimitBytes(resources: MachineResources): number {
  return (resources.memSizeMiB + memoryOverheadMiB) * 1024 * 1024;
}

/** How much more a container may take before it is over its limit, in bytes. */
export function memoryRoomOf({ version, memory, parent }: Cgroups, containerId: string): number {
  return cgroupRoom(version, path.join(memory, parent, containerId)) ?? Number.POSITIVE_INFINITY;
}

/** Where the shim reads whether a container was ended by a limit: fields of its `watch`. */
export function watchedFolders({ memory, pids, parent }: Cgroups, containerId: string): Record<string, string> {
  return {
    cgroup_memory: path.join(memory, parent, containerId),
    ...(pids ? { cgroup_pids: path.join(pids, parent, containerId) } : {}),
  };
}

/** Containers that still have a cgroup, whether they live or not. */
export async function listCgroups(cgroups: Cgroups): Promise<string[]> {
  const names = new Set<string>();
  for (const hierarchy of cgroups.hierarchies) {
    for (const entry of await readdir(path.join(hierarchy, cgroups.parent), { withFileTypes: true }).catch(() => [])) {
      if (entry.isDirectory()) names.add(entry.name);
    }
  }
  return [...names];
}

/** Removes what is left of a container. Its processes must have ended: a cgroup with a process in it cannot be removed. */
export async function removeCgroup(cgroups: Cgroups, containerId: string): Promise<void> {
  for (const hierarchy of cgroups.hierarchies) await removeFolder(path.join(hierarchy, cgroups.parent, containerId));
}

/** Removes the common parent when nobody is in it any more. */
export async function closeCgroups(cgroups: Cgroups): Promise<void> {
  for (const hierarchy of cgroups.hierarchies) await rmdir(path.join(hierarchy, cgroups.parent)).catch(() => undefined);
}

/** A killed process leaves its cgroup a moment after it has been reaped. */
async function removeFolder(dir: string): Promise<void> {
  for (let attempt = 0; ; attempt += 1) {
    try {
      await rmdir(dir);
      return;
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "ENOENT") return;
      if (code !== "EBUSY" || attempt >= 200) throw error;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
}

async function isThere(file: string): Promise<boolean> {
  return access(file).then(
    () => true,
    () => false,
  );
}
