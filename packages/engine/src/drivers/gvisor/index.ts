import { mkdir } from "node:fs/promises";
import { MitosError } from "@mitos/protocol";
import type { Log } from "../../actions.ts";
import type { Driver, Machine, MachineSpec, RestoreSpec, RootSource, Snapshot, SnapshotOptions } from "../../driver.ts";
import { protocolVersion } from "../../link/client.ts";
import { closeCgroups, memoryRoomOf, openCgroups } from "../host/cgroup.ts";
import { type Facts, readCpu } from "../host/facts.ts";
import { nameKeeper } from "../host/layout.ts";
import { findGuest } from "../host/parts.ts";
import { isAliveNow, sendSignal } from "../host/processes.ts";
import { ReadyKeepers } from "../host/ready.ts";
import { type Container, createContainer, discardContainer } from "./container.ts";
import { findNodeForMachines, findRunsc } from "./find.ts";
import type { Host } from "./host.ts";
import { openLayout, removeFoldersIfEmpty } from "./layout.ts";
import { activate, GvisorMachine, notAMachine } from "./machine.ts";
import { reattach } from "./reattach.ts";
import { Roots } from "./roots.ts";
import { runscCommands } from "./runsc.ts";
import { limitScratch } from "./scratch.ts";
import { readRoot, requireCompatible, saveMachine } from "./snapshot.ts";
import { type ContainerShape, shapeKey } from "./spec.ts";
import { sweep } from "./sweep.ts";

export { probeGvisor } from "./probe.ts";

export interface GvisorOptions {
  readonly dataDir: string;
  /** Short, private, gone at the next boot of the host: `defaultRuntimeDir(dataDir)`. */
  readonly runtimeDir: string;
  readonly log: Log;
  /** Else `$MITOS_RUNSC`, PATH, or what the set-up has fetched. */
  readonly runsc?: string | undefined;
  /** Else `$MITOS_GUEST`, or what the set-up has built. */
  readonly guest?: string | undefined;
}

/** @throws MissingPart when runsc or the guest binary is missing or does not fit */
export async function createGvisorDriver(options: GvisorOptions): Promise<Driver> {
  await mkdir(options.dataDir, { recursive: true, mode: 0o700 });
  const [runsc, guest, node, cpu, layout] = await Promise.all([
    findRunsc(options.runsc),
    findGuest(options.guest),
    findNodeForMachines(),
    readCpu(),
    openLayout(options.dataDir, options.runtimeDir),
  ]);
  const [cgroups, roots] = await Promise.all([openCgroups(layout.cgroupParent), Roots.open(layout.state, guest, node)]);
  const host: Host = {
    layout,
    runsc: runscCommands(runsc, layout.runscRoot, { cgroups: cgroups !== undefined }),
    guestPath: guest.path,
    cgroups,
    userNamespace: process.getuid?.() !== 0,
    log: options.log,
  };
  return new GvisorDriver(host, roots, { driver: "gvisor", engineBuild: runsc.build, agentHash: guest.hash, protocolVersion, cpu });
}

class GvisorDriver implements Driver {
  readonly name = "gvisor";
  readonly isolation = "gvisor";
  readonly #host: Host;
  readonly #roots: Roots;
  readonly #facts: Facts;
  readonly #ready: ReadyKeepers<ContainerShape, Container>;
  readonly #machines = new Set<GvisorMachine>();
  readonly readyStarts = { hits: 0, misses: 0 };

  constructor(host: Host, roots: Roots, facts: Facts) {
    this.#host = host;
    this.#roots = roots;
    this.#facts = facts;
    this.#ready = new ReadyKeepers({
      key: shapeKey,
      create: (shape) => createContainer(host, shape),
      discard: (container) => discardContainer(host, container),
      isAlive: ({ sentryPid }) => isAliveNow(sentryPid),
      // A created container costs about 5 % of a processor while it waits.
      rest: ({ sentryPid }) => sendSignal(sentryPid, "SIGSTOP"),
      wake: ({ sentryPid }) => sendSignal(sentryPid, "SIGCONT"),
      log: host.log,
    });
  }

  async boot(spec: MachineSpec): Promise<Machine> {
    const { runsc } = this.#host;
    using use = await this.#roots.use(spec.root);
    const scratchOnDisk = spec.scratch === "disk" && use.root.binds.length === 0;
    const shape: ContainerShape = { root: use.root, resources: spec.resources, ...(scratchOnDisk ? { scratchOnDisk } : {}) };
    const machine = await this.#start(spec.machineId, shape, (container) => runsc.start(container.id));
    if (scratchOnDisk) void limitScratch(machine, this.#host.layout.scratch);
    return machine;
  }

  ownersOf(root: RootSource) {
    return this.#roots.ownersOf(root);
  }

  async restore(snapshot: Parameters<Driver["restore"]>[0], spec: RestoreSpec): Promise<Machine> {
    const { runsc } = this.#host;
    // Whoever restores has let the content be checked just now, once for all children.
    await requireCompatible(snapshot, this.#facts, { content: false });
    const root = await readRoot(snapshot);
    return this.#start(spec.machineId, { root, resources: spec.resources }, ({ dir, id }) =>
      runsc.restore(dir, `${dir}/restored.pid`, snapshot.dir, id),
    );
  }

  async snapshot(machine: Machine, dir: string, options: SnapshotOptions) {
    const ours = this.#own(machine);
    if (ours.container.shape.scratchOnDisk) {
      throw new MitosError("not_supported", { cause: "a machine whose scratch space lies on the disk cannot be saved" });
    }
    const snapshot = await saveMachine(ours, dir, { ...options, facts: this.#facts, runsc: this.#host.runsc });
    // Only now: until the snapshot is whole, the living machine is all there is.
    if (!options.leaveRunning) await ours.end("saved");
    return snapshot;
  }

  /** The sentry writes it. */
  snapshotRoom(machine: Machine): number {
    const { cgroups } = this.#host;
    return cgroups ? memoryRoomOf(cgroups, this.#own(machine).container.id) : Number.POSITIVE_INFINITY;
  }

  async checkSnapshot(snapshot: Parameters<Driver["checkSnapshot"]>[0]): Promise<void> {
    await requireCompatible(snapshot, this.#facts, { content: true });
  }

  prepare(like: Machine, count: number): void {
    this.#ready.want(this.#own(like).container.shape, count);
  }

  async reattach(machineId: string) {
    const found = await reattach(this.#host, machineId);
    if (found instanceof GvisorMachine) this.#follow(found);
    return found;
  }

  async sweep(keep: ReadonlySet<string>, snapshots: readonly Snapshot[] = []): Promise<void> {
    await this.#ready.settled();
    await sweep(this.#host, keep, new Set(this.#ready.ids()));
    await this.#roots.removeUnused(() => this.#rootsOf(snapshots));
  }

  async collectRoots({ roots, snapshots }: Parameters<Driver["collectRoots"]>[0]): Promise<void> {
    await this.#roots.removeUnused(async () => {
      const keep = await this.#rootsOf(snapshots);
      // Containers that wait for snapshots which are gone.
      await this.#ready.forget(({ root }) => root.binds.length === 0 && !keep.has(root.dir));
      return keep;
    }, roots);
  }

  /** Folders of the roots that machines and snapshots have. */
  async #rootsOf(snapshots: readonly Snapshot[]): Promise<Set<string>> {
    // First: one that is paused meanwhile is of neither then.
    const running = [...this.#machines].map(({ container }) => container.shape.root);
    // One that cannot be read needs no root until it is repaired.
    const saved = await Promise.all(snapshots.map((snapshot) => readRoot(snapshot).catch(() => undefined)));
    return new Set([...running, ...saved].flatMap((root) => (root ? [root.dir] : [])));
  }

  async close(): Promise<void> {
    await this.#ready.close();
    for (const machine of this.#machines) machine.release();
    if (this.#host.cgroups) await closeCgroups(this.#host.cgroups);
    await removeFoldersIfEmpty(this.#host.layout);
  }

  async #start(
    machineId: string,
    shape: ContainerShape,
    command: (container: { id: string; dir: string }) => readonly string[],
  ): Promise<GvisorMachine> {
    const ready = this.#ready.take(shape);
    this.readyStarts[ready ? "hits" : "misses"] += 1;
    const container = ready ?? (await createContainer(this.#host, shape));
    try {
      await nameKeeper(this.#host.layout, machineId, container.id);
    } catch (error) {
      await discardContainer(this.#host, container);
      throw error;
    }
    try {
      const machine = await activate(this.#host, container, machineId, command(container));
      this.#follow(machine);
      return machine;
    } finally {
      this.#ready.refill();
    }
  }

  #follow(machine: GvisorMachine): void {
    this.#machines.add(machine);
    machine.exited.then(
      () => this.#machines.delete(machine),
      () => undefined,
    );
  }

  #own(machine: Machine): GvisorMachine {
    if (!(machine instanceof GvisorMachine)) throw notAMachine(this.#host.layout);
    return machine;
  }
}
