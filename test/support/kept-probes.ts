import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import path from "node:path";

const keptDir = path.resolve(import.meta.dirname, "../../.cache/probes");
/** Below a data directory. */
const files = ["gvisor/probe.json", "microvm/probe-kvm.json", "microvm/probe-tcg.json"];

/**
 * Gives a new data directory what an engine of an earlier one has found out about this host, so that not every suite boots, saves and restores a
 * machine before its first. Whether it still holds is the engine's to see, as in a directory of its own.
 */
export function lendProbes(dataDir: string): void {
  copyProbes(keptDir, dataDir);
}

/** Keeps what the engine of this data directory has found out. */
export function keepProbes(dataDir: string): void {
  copyProbes(dataDir, keptDir);
}

function copyProbes(from: string, to: string): void {
  for (const name of files) {
    const [source, target] = [path.join(from, name), path.join(to, name)];
    if (!existsSync(source)) continue;
    mkdirSync(path.dirname(target), { recursive: true, mode: 0o700 });
    // In one step: other suites do the same.
    const partial = `${target}.${process.pid}`;
    writeFileSync(partial, readFileSync(source), { mode: 0o600 });
    renameSync(partial, target);
  }
}
