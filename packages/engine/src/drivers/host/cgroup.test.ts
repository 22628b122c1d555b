import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { allowBurst, type Cgroups, ociResources } from "./cgroup.ts";

const resources = { vcpuCount: 2, memSizeMiB: 128, processesMax: 64 };
const id = "0123456789ab";

let dir: string;

beforeEach(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), "mitos-cgroup-"));
});

afterEach(() => rm(dir, { recursive: true }));

/** A folder for the machine in each hierarchy, with these files of the kernel in it. */
async function cgroupsWith(version: 1 | 2, files: readonly string[]): Promise<{ cgroups: Cgroups; folder: string }> {
  const hierarchies = version === 2 ? [dir] : ["memory", "cpu"].map((controller) => path.join(dir, controller));
  for (const hierarchy of hierarchies) await mkdir(path.join(hierarchy, "mitos", id), { recursive: true });
  const folder = path.join(hierarchies.at(-1) as string, "mitos", id);
  for (const file of files) await writeFile(path.join(folder, file), "0");
  const memory = hierarchies[0] as string;
  return { cgroups: { version, hierarchies, memory, pids: undefined, swapLimit: false, parent: "mitos" }, folder };
}

describe("the processor limit of a machine", () => {
  it.each([
    { version: 1, file: "cpu.cfs_burst_us" },
    { version: 2, file: "cpu.max.burst" },
  ] as const)("may once use as much more as its limit in one period, by cgroups of version $version", async ({ version, file }) => {
    const { cgroups, folder } = await cgroupsWith(version, [file]);
    await allowBurst(cgroups, id, resources);
    expect(await readFile(path.join(folder, file), "utf8")).toBe("200000");
    expect(ociResources(resources, cgroups)).toMatchObject({ cpu: { quota: 200_000, period: 100_000 } });
  });

  it("is left as it is by a kernel that knows no burst", async () => {
    const { cgroups, folder } = await cgroupsWith(1, ["cpu.cfs_quota_us"]);
    await allowBurst(cgroups, id, resources);
    expect(await readdir(folder)).toEqual(["cpu.cfs_quota_us"]);
  });

  it("is left as it is on a host without that controller", async () => {
    const { cgroups } = await cgroupsWith(1, []);
    await allowBurst({ ...cgroups, hierarchies: [cgroups.memory] }, id, resources);
    expect(await readdir(path.join(cgroups.memory, "mitos", id))).toEqual([]);
  });

  it("is left as it is where the host refuses it", async () => {
    const { cgroups, folder } = await cgroupsWith(2, []);
    await mkdir(path.join(folder, "cpu.max.burst"));
    await allowBurst(cgroups, id, resources);
    expect(await readdir(folder)).toEqual(["cpu.max.burst"]);
  });
});
