import { mkdir, readFile, stat } from "node:fs/promises";
import type { Accel, Log } from "../../actions.ts";
import type { Driver, Machine, MachineSpec, RestoreSpec, Snapshot, SnapshotOptions } from "../../driver.ts";
import { protocolVersion } from "../../link/client.ts";
import { closeCgroups, openCgroups } from "../host/cgroup.ts";
import { type Facts, readCpu } from "../host/facts.ts";
import { removeHostFoldersIfEmpty } from "../host/layout.ts";
import { findGuest } from "../host/parts.ts";
import { isAliveNow } from "../host/processes.ts";
import { ReadyKeepers } from "../host/ready.ts";
import { findAssets } from "./assets.ts";
import { Bases } from "./bases.ts";
import { Disks } from "./disks.ts";
import type { Host } from "./host.ts";
import { Images } from "./images.ts";
import { openLayout } from "./layout.ts";
import { MicrovmMachine, notAMachine } from "./machine.ts";
import { newBaseFromBytes } from "./new-base.ts";
import { reattach } from "./reattach.ts";
import { saveMachine } from "./save.ts";
import { type Details, openSaved, readDetails } from "./saved.ts";
import { bootMachine, type Expected, restoreMachine, startReady } from "./start.ts";
import { sweep } from "./sweep.ts";
import { discardVmm, type Vmm } from "./vmm.ts";

export { probeMicrovm } from "./probe.ts";

export interface MicrovmOptions {
  readonly dataDir: string;
  /** Short, private, gone at the next boot of the host: `defaultRuntimeDir(dataDir)`. */
  readonly runtimeDir: string;
  readonly log: Log;
  readonly accel: Accel;
  /** Else `$MITOS_GUEST`, or what the set-up has built. */
  readonly guest?: string | undefined;
  /** Machines with this much memory of their own are forked by a new base. Default: where that pays. */
  readonly newBaseFromBytes?: number | undefined;
  /** How long the copying for it may take. Default: a minute for each GiB of the machine's memory, and half a minute. */
  readonly newBaseTimeoutMs?: number | undefined;
}

/** @throws MissingPart when set-up has not laid out what virtual machines need */
export async function createMicrovmDriver(options: MicrovmOptions): Promise<Driver> {
  const { dataDir, runtimeDir, accel, log } = options;
  await mkdir(dataDir, { recursive: true, mode: 0o700 });
  const guest = await findGuest(options.guest);
  const [assets, cpu, layout, tscKhz] = await Promise.all([findAssets(guest), readCpu(), openLayout(dataDir, runtimeDir), readTscKhz()]);
  const [cgroups, images, bases, disks] = await Promise.all([
    openCgroups(layout.cgroupParent),
    Images.open({ dir: layout.images, hostRoot: assets.hostRoot }),
    Bases.open(layout.bases),
    Disks.open({ dir: layout.disks, emptyDisk: assets.emptyDisk }),
  ]);
  const host: Host = {
    layout,
    assets,
    images,
    bases,
    disks,
    saved: new Map(),
    accel,
    cgroups,
    tscKhz,
    newBaseFromBytes: options.newBaseFromBytes ?? newBaseFromBytes,
    newBaseTimeoutMs: options.newBaseTimeoutMs,
    guestPath: guest.path,
    userNamespace: process.getuid?.() !== 0,
    log,
  };
  const engineBuild = `${assets.vmm.build}, ${accel}, Linux ${assets.kernel.release} ${assets.kernel.hash.slice(0, 12)}`;
  // An emulated processor is the same on every host.
  const processor = accel === "tcg" ? `emulated ${process.arch}` : cpu;
  return new MicrovmDriver(host, { driver: "microvm", engineBuild, agentHash: guest.hash, protocolVersion, cpu: processor });
}

class MicrovmDriver implements Driver {
  readonly name = "microvm";
  readonly isolation;
  readonly #host: Host;
  readonly #facts: Facts;
  readonly #ready: ReadyKeepers<Expected, Vmm>;
  readonly #machines = new Set<MicrovmMachine>();
  readonly readyStarts = { hits: 0, misses: 0 };

  constructor(host: Host, facts: Facts) {
    this.isolation = `microvm-${host.accel}` as const;
    this.#host = host;
    this.#facts = facts;
    this.#ready = new ReadyKeepers({
      key: ({ shape }) => JSON.stringify([shape.base, shape.image, shape.resources.memSizeMiB, shape.resources.vcpuCount]),
      create: (expected) => startReady(host, expected),
      discard: (vmm) => discardVmm(host, vmm),
      isAlive: ({ pid }) => isAliveNow(pid),
      log: host.log,
    });
  }

  async boot(spec: MachineSpec): Promise<Machine> {
    return this.#follow(await bootMachine(this.#host, spec));
  }

  /** Images have all owners in them. */
  async ownersOf() {
    return [];
  }

  async restore(snapshot: Snapshot, spec: RestoreSpec): Promise<Machine> {
    // Whoever restores has let the content be checked just now, once for all children.
    const opened = await openSaved(this.#host, snapshot, this.#facts, { content: false });
    try {
      const { machine, wasReady } = await restoreMachine(this.#host, this.#ready, snapshot, opened, spec);
      this.readyStarts[wasReady ? "hits" : "misses"] += 1;
      return this.#follow(machine);
    } finally {
      this.#ready.refill();
    }
  }

  async snapshot(machine: Machine, dir: string, options: SnapshotOptions): Promise<Snapshot> {
    return saveMachine(this.#host, this.#own(machine), dir, { ...options, facts: this.#facts });
  }

  async checkSnapshot(snapshot: Snapshot): Promise<void> {
    await (await openSaved(this.#host, snapshot, this.#facts, { content: true })).intact;
  }

  prepare(like: Machine, count: number): void {
    const { shape, disk } = this.#own(like).vmm;
    this.#ready.want({ shape: { ...shape, boots: false }, disk: disk === undefined ? undefined : { id: disk, isWritten: true } }, count);
  }

  async reattach(machineId: string) {
    const found = await reattach(this.#host, machineId);
    return found instanceof MicrovmMachine ? this.#follow(found) : found;
  }

  async sweep(keep: ReadonlySet<string>, snapshots: readonly Snapshot[] = []): Promise<void> {
    await this.#ready.settled();
    await sweep(this.#host, keep, new Set(this.#ready.ids()));
    await this.#collect(snapshots, undefined);
  }

  async collectRoots({ roots, snapshots }: Parameters<Driver["collectRoots"]>[0]): Promise<void> {
    // Monitors that wait for states which are gone.
    const needed = new Set((await this.#saved(snapshots)).map(({ base }) => base));
    for (const { vmm } of this.#machines) needed.add(vmm.shape.base);
    await this.#ready.forget(({ shape }) => !needed.has(shape.base));
    await this.#collect(snapshots, roots);
  }

  /** What of the data directory no machine and no snapshot stands on goes. Uses keep what somebody is just becoming. */
  async #collect(snapshots: readonly Snapshot[], roots: Parameters<Driver["collectRoots"]>[0]["roots"] | undefined): Promise<void> {
    const { images, bases, disks } = this.#host;
    const kept =
      <T>(ofMachine: (machine: MicrovmMachine) => T | undefined, ofSaved: (details: Details) => T) =>
      async () => {
        // First: one that is paused meanwhile is of neither then.
        const running = [...this.#machines].map(ofMachine).filter((id) => id !== undefined);
        return new Set([...running, ...(await this.#saved(snapshots)).map(ofSaved)]);
      };
    await images.removeUnused(
      kept(
        ({ vmm }) => vmm.shape.image,
        ({ image }) => image,
      ),
      roots,
    );
    await bases.removeUnused(
      kept(
        ({ vmm }) => vmm.shape.base,
        ({ base }) => base,
      ),
    );
    await disks.removeUnused(
      kept(
        ({ vmm }) => vmm.disk,
        ({ disk }) => disk,
      ),
    );
  }

  /** What snapshots stand on: those that the engine knows, and those of ours whose folder is still there. */
  async #saved(snapshots: readonly Snapshot[]): Promise<Details[]> {
    const { saved } = this.#host;
    const details: Details[] = [];
    for (const [dir, known] of saved) {
      if (await stat(dir).catch(() => undefined)) details.push(known);
      else saved.delete(dir);
    }
    // One that cannot be read needs nothing until it is repaired.
    const read = await Promise.all(
      snapshots.filter(({ dir }) => !saved.has(dir)).map((snapshot) => readDetails(snapshot).catch(() => undefined)),
    );
    return [...details, ...read.filter((found) => found !== undefined)];
  }

  async close(): Promise<void> {
    await this.#ready.close();
    for (const machine of this.#machines) machine.release();
    if (this.#host.cgroups) await closeCgroups(this.#host.cgroups);
    await removeHostFoldersIfEmpty(this.#host.layout);
  }

  #follow(machine: MicrovmMachine): MicrovmMachine {
    this.#machines.add(machine);
    machine.exited.then(
      () => this.#machines.delete(machine),
      () => undefined,
    );
    return machine;
  }

  #own(machine: Machine): MicrovmMachine {
    if (!(machine instanceof MicrovmMachine)) throw notAMachine(this.#host);
    return machine;
  }
}

/** As the processor gives it; what the kernel makes of it later is its own. */
async function readTscKhz(): Promise<number> {
  const text = await readFile("/proc/cpuinfo", "utf8");
  const mhz = Number(/^cpu MHz\s*:\s*([\d.]+)/m.exec(text)?.[1] ?? 2000);
  return Math.round(mhz * 1000);
}
