import { mkdir, writeFile } from "node:fs/promises";
import path from "node:path";
import type { MachineResources } from "../../driver.ts";
import { type Cgroups, memoryLimitBytes } from "../host/cgroup.ts";

const cpuPeriodUs = 100_000;
/** A VMM has a thread for each processor and a few more; the guest's processes are none of the host's. */
const tasksMax = 64;

/**
 * The cgroup of one VMM, with its limits.
 *
 * @returns the files by which a process joins it
 */
export async function makeCgroup(cgroups: Cgroups, keeperId: string, resources: MachineResources): Promise<string[]> {
  if (cgroups.version === 2) await delegate(cgroups);
  const joined: string[] = [];
  for (const hierarchy of cgroups.hierarchies) {
    const limits = limitsOf(cgroups, path.basename(hierarchy), resources);
    if (!limits) continue;
    const folder = path.join(hierarchy, cgroups.parent, keeperId);
    await mkdir(folder, { recursive: true });
    for (const [file, value] of limits) await writeFile(path.join(folder, file), value);
    joined.push(path.join(folder, "cgroup.procs"));
  }
  return joined;
}

/** Files and what is written to them, in order. Undefined: a hierarchy that limits nothing of ours. */
function limitsOf({ version, swapLimit }: Cgroups, controller: string, resources: MachineResources): [string, string][] | undefined {
  const memory = String(memoryLimitBytes(resources));
  const quota = String(resources.vcpuCount * cpuPeriodUs);
  const tasks: [string, string] = ["pids.max", String(tasksMax)];
  if (version === 2) {
    return [
      ["memory.max", memory],
      ...(swapLimit ? [["memory.swap.max", "0"] as [string, string]] : []),
      tasks,
      ["cpu.max", `${quota} ${cpuPeriodUs}`],
    ];
  }
  switch (controller) {
    case "memory":
      return [["memory.limit_in_bytes", memory], ...(swapLimit ? [["memory.memsw.limit_in_bytes", memory] as [string, string]] : [])];
    case "pids":
      return [tasks];
    case "cpu":
      return [
        ["cpu.cfs_period_us", String(cpuPeriodUs)],
        ["cpu.cfs_quota_us", quota],
      ];
    default:
      return undefined;
  }
}

/** Controllers are given to a child by its parent. */
async function delegate({ hierarchies: [root], parent }: Cgroups): Promise<void> {
  if (!root) return;
  for (const folder of [root, path.join(root, parent)]) await writeFile(path.join(folder, "cgroup.subtree_control"), "+memory +pids +cpu");
}
