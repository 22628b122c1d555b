import { readFileSync } from "node:fs";

const filesOf = {
  1: { limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", droppable: "total_inactive_file" },
  2: { limit: "memory.max", usage: "memory.current", droppable: "inactive_file" },
} as const;

/** What a cgroup may still take before it is over its memory limit, in bytes: file pages that can be dropped do not count as taken. Undefined without a limit. */
export function cgroupRoom(version: 1 | 2, dir: string): number | undefined {
  const files = filesOf[version];
  try {
    const limit = Number(readFileSync(`${dir}/${files.limit}`, "utf8"));
    if (!Number.isFinite(limit)) return undefined;
    const usage = Number(readFileSync(`${dir}/${files.usage}`, "utf8"));
    const fileBytes = Number(new RegExp(`^${files.droppable} (\\d+)$`, "m").exec(readFileSync(`${dir}/memory.stat`, "utf8"))?.[1] ?? 0);
    return Math.max(0, limit - usage + fileBytes);
  } catch {
    return undefined;
  }
}
