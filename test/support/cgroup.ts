import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";

/** What the cgroups of one process limit, by either version. */
export class CgroupOf {
  readonly #lines: readonly string[][];

  private constructor(lines: readonly string[][]) {
    this.#lines = lines;
  }

  /** @throws when it is not in one whose name is `name`, for whatever controller */
  static async process(pid: number, name: string): Promise<CgroupOf> {
    const all = (await readFile(`/proc/${pid}/cgroup`, "utf8")).trim().split("\n");
    const lines = all.filter((line) => line.endsWith(`/${name}`));
    if (lines.length === 0) throw new Error(`process ${pid} is in no cgroup ${name}: ${all}`);
    return new CgroupOf(lines.map((line) => line.split(":")));
  }

  /** Of the first of these files that the kernel has. Undefined: it has none. */
  async limit(controller: string, ...files: readonly string[]): Promise<string | undefined> {
    const file = files.map((each) => path.join(this.#folder(controller), each)).find((each) => existsSync(each));
    return file && (await readFile(file, "utf8")).trim();
  }

  #folder(controller: string): string {
    const [, , below] =
      this.#lines.find(([, names]) => names?.split(",").includes(controller)) ?? this.#lines.find(([id]) => id === "0") ?? [];
    const folder = [`/sys/fs/cgroup/${controller}${below}`, `/sys/fs/cgroup${below}`].find((dir) => existsSync(dir));
    if (below === undefined || !folder) throw new Error(`no cgroup for ${controller}: ${this.#lines}`);
    return folder;
  }
}

/** Linux has `cpu.max.burst` and `cpu.cfs_burst_us` since 5.14; what is expected there of an older one is that there is no such file. */
export function burstWhereKnown(value: string): string | undefined {
  const [major = 0, minor = 0] = os.release().split(".").map(Number);
  return major > 5 || (major === 5 && minor >= 14) ? value : undefined;
}
