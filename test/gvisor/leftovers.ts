import { readdir, readFile } from "node:fs/promises";
import path from "node:path";

/**
 * Everything on this host that belongs to machines of a runtime directory and data directory: what a test must not leave behind. Found without the
 * driver's own code.
 */
export async function leftovers(dataDir: string, runtimeDir: string): Promise<string[]> {
  const found: string[] = [];
  for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
    const text = (await readFile(`/proc/${pid}/cmdline`, "latin1").catch(() => "")).replaceAll("\0", " ");
    if (text.includes(`${runtimeDir}/`)) found.push(`process ${pid}: ${text.slice(0, 120)}`);
  }
  for (const line of (await readFile("/proc/self/mountinfo", "utf8")).split("\n")) {
    if (line.includes(` ${runtimeDir}/`) || line.includes(` ${dataDir}/`)) found.push(`mount: ${line}`);
  }
  for (const dir of ["m", "r", "ids"]) {
    for (const name of await readdir(path.join(runtimeDir, dir)).catch(() => [])) found.push(`file: ${path.join(runtimeDir, dir, name)}`);
  }
  found.push(...(await cgroupsBelow("/sys/fs/cgroup", path.basename(runtimeDir).slice(-8))));
  for (const name of await readdir(path.join(dataDir, "gvisor")).catch(() => [])) {
    if (name.includes(".partial-")) found.push(`file: ${path.join(dataDir, "gvisor", name)}`);
  }
  return found;
}

/** Cgroups of single machines; `hash` names the data directory, as it does in the name of the runtime directory. */
async function cgroupsBelow(dir: string, hash: string): Promise<string[]> {
  const found: string[] = [];
  const controllers = (await readdir(dir, { withFileTypes: true }).catch(() => [])).filter((entry) => entry.isDirectory());
  for (const base of [dir, ...controllers.map((entry) => path.join(dir, entry.name))]) {
    const parent = path.join(base, `mitos-${hash}`);
    const entries = await readdir(parent, { withFileTypes: true }).catch(() => []);
    for (const entry of entries) if (entry.isDirectory()) found.push(`cgroup: ${path.join(parent, entry.name)}`);
  }
  return found;
}
