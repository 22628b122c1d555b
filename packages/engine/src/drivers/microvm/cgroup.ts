import { mkdir, writeFile } from "node:fs/promises";
import path from "node:path";
import type { MachineResources } from "../../driver.ts";
import { allowBurst, type Cgroups, cpuLimit } from "../host/cgroup.ts";

/** What the monitor needs beside the machine's memory. */
export const memoryOverheadMiB = 128;
/** Threads of the monitor: one for each processor of the machine, its own, and those that work on disks. */
const tasksOverhead = 128;

/**
 * A cgroup for one machine.
 *
 * @returns the `cgroup.procs` files that its monitor joins
 */
export async function makeCgroup(cgroups: Cgroups, keeperId: string, resources: MachineResources): Promise<string[]> {
  const bytes = (resources.memSizeMiB + memoryOverheadMiB) * 1024 * 1024;
  const tasks = resources.vcpuCount + tasksOverhead;
  const cpu = cpuLimit(resources);
  const folderIn = (hierarchy: string) => path.join(hierarchy, cgroups.parent, keeperId);
  const limits: Readonly<Record<string, readonly (readonly [file: string, value: string])[]>> =
    cgroups.version === 2
      ? {
          "": [
            ["memory.max", String(bytes)],
            ["pids.max", String(tasks)],
            ["cpu.max", `${cpu.quotaUs} ${cpu.periodUs}`],
          ],
        }
      : {
          memory: [["memory.limit_in_bytes", String(bytes)]],
          pids: [["pids.max", String(tasks)]],
          cpu: [
            ["cpu.cfs_period_us", String(cpu.periodUs)],
            ["cpu.cfs_quota_us", String(cpu.quotaUs)],
          ],
        };
  if (cgroups.version === 2) await delegateControllers(cgroups);
  const joined: string[] = [];
  for (const [controller, values] of Object.entries(limits)) {
    const hierarchy = cgroups.hierarchies.find((dir) => controller === "" || path.basename(dir) === controller);
    if (!hierarchy) continue;
    const folder = folderIn(hierarchy);
    await mkdir(folder, { recursive: true });
    for (const [file, value] of values) await writeFile(path.join(folder, file), value);
    joined.push(path.join(folder, "cgroup.procs"));
  }
  await allowBurst(cgroups, keeperId, resources);
  return joined;
}

/** Version 2 gives a folder only the controllers that its parent passes on. */
async function delegateControllers({ memory: mount, parent }: Cgroups): Promise<void> {
  for (const dir of [mount, path.join(mount, parent)]) await writeFile(path.join(dir, "cgroup.subtree_control"), "+memory +pids +cpu");
}
