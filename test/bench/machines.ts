import { readdir, readFile, readlink, stat } from "node:fs/promises";
import path from "node:path";
import { defaultRuntimeDir, hostLayout } from "../../packages/engine/src/drivers/host/layout.ts";
import { readPid } from "../../packages/engine/src/drivers/host/shim.ts";
import { stateOf, ticksOf, treeOf } from "../support/host-processes.ts";
import { until } from "../support/until.ts";

const ticksPerSecond = 100;
/** Starts and ends that are under way show within this time, and so does what is made ready a while after a start. */
const looksInARow = 10;
const lookMs = 40;
/** After a large fork eight machines are made ready, one after the other, on a host that may be busy with a hundred. */
const atRestMsMax = 120_000;

/** One machine, by its folder. */
export interface HostMachine {
  readonly dir: string;
  /** Whether it is a machine: a sandbox's, or one that waits for a create. Else it is made ahead for one, being made or being removed. */
  readonly isNamed: boolean;
}

/** The machines of one data directory, seen from outside: by the folders of its runtime directory and by /proc. */
export class HostMachines {
  readonly #machinesDir: string;
  readonly #idsDir: string;

  private constructor(machinesDir: string, idsDir: string) {
    this.#machinesDir = machinesDir;
    this.#idsDir = idsDir;
  }

  static async of(dataDir: string): Promise<HostMachines> {
    const { machines, ids } = await hostLayout(dataDir, await defaultRuntimeDir(dataDir));
    return new HostMachines(machines, ids);
  }

  async list(): Promise<readonly HostMachine[]> {
    const named = new Set<string>();
    for (const name of await readdir(this.#idsDir)) {
      // One that ends just now has no name any more.
      const target = await readlink(path.join(this.#idsDir, name)).catch(() => "");
      named.add(path.basename(target));
    }
    const keepers = await readdir(this.#machinesDir);
    return keepers.map((keeperId) => ({ dir: path.join(this.#machinesDir, keeperId), isNamed: named.has(keeperId) }));
  }

  /** Those of sandboxes. */
  async ofSandboxes(): Promise<readonly HostMachine[]> {
    const named = (await this.list()).filter(({ isNamed }) => isNamed);
    const waits = await Promise.all(named.map(isStopped));
    return named.filter((_, index) => !waits[index]);
  }

  /** Resolves when nothing is being made or removed: every machine is a sandbox's or waits, stopped. */
  async atRest(): Promise<void> {
    let looks = 0;
    const isAtRest = async () => {
      const others = (await this.list()).filter(({ isNamed }) => !isNamed);
      looks = (await Promise.all(others.map(isStopped))).every(Boolean) ? looks + 1 : 0;
      await new Promise((resolve) => setTimeout(resolve, lookMs));
      return looks >= looksInARow;
    };
    await until("every machine is a sandbox's or waits", isAtRest, atRestMsMax);
  }
}

async function isStopped({ dir }: HostMachine): Promise<boolean> {
  // What has no sentry yet, or none any more, is in the making or ends.
  const sentry = await readPid(path.join(dir, "sentry.pid")).catch(() => undefined);
  return sentry !== undefined && stateOf(sentry) === "T";
}

/** Shim, sentry, gofer, and those in which the sentry runs the guest's code. */
export async function processesOf({ dir }: HostMachine): Promise<readonly number[]> {
  const shim = await readPid(path.join(dir, "shim.pid"));
  return treeOf(shim);
}

/**
 * Memory that would be free without this machine: of each of its processes what is anonymous, and its share of the programs' files that are mapped
 * (`Pss_Anon` and `Pss_File` of smaps_rollup); and once each memory file that one of them has open, by its blocks. Those files are what the sandbox
 * itself sees as memory: several of the processes map them, so that their part in smaps would be counted several times or not at all.
 *
 * @throws when a process cannot be looked into, so that no figure is silently too small
 */
export async function uniqueBytes(machine: HostMachine): Promise<number> {
  const memoryFiles = new Map<string, number>();
  let bytes = 0;
  for (const pid of await processesOf(machine)) {
    const rollup = await readFile(`/proc/${pid}/smaps_rollup`, "latin1");
    bytes += kibOf(rollup, "Pss_Anon") * 1024 + kibOf(rollup, "Pss_File") * 1024;
    for (const name of await readdir(`/proc/${pid}/fd`)) {
      const file = `/proc/${pid}/fd/${name}`;
      if (!(await readlink(file).catch(() => "")).startsWith("/memfd:")) continue;
      const { dev, ino, blocks } = await stat(file);
      memoryFiles.set(`${dev}:${ino}`, blocks * 512);
    }
  }
  for (const fileBytes of memoryFiles.values()) bytes += fileBytes;
  return bytes;
}

/** Processor time that these machines have used since they were started. Processes that have ended count no more. */
export async function cpuMs(machines: readonly HostMachine[]): Promise<number> {
  const processes = (await Promise.all(machines.map(processesOf))).flat();
  return (processes.reduce((sum, pid) => sum + ticksOf(pid), 0) * 1000) / ticksPerSecond;
}

/** Which part of one processor these machines use, counted over a while in which nobody asks anything of them. */
export async function cpuShare(machines: readonly HostMachine[], ms: number): Promise<number> {
  const before = await cpuMs(machines);
  const started = performance.now();
  await new Promise((resolve) => setTimeout(resolve, ms));
  const used = (await cpuMs(machines)) - before;
  return used / (performance.now() - started);
}

function kibOf(rollup: string, field: string): number {
  const kib = new RegExp(`^${field}:\\s+(\\d+) kB`, "m").exec(rollup)?.[1];
  if (kib === undefined) throw new Error(`smaps_rollup of this kernel has no ${field}`);
  return Number(kib);
}
