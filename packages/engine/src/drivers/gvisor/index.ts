import { mkdir } from "node:fs/promises";
import type { Log } from "../../actions.ts";
import type { Driver, Machine, MachineSpec, Snapshot } from "../../driver.ts";
import { protocolVersion } from "../../link/client.ts";
import { closeCgroups, openCgroups } from "./cgroup.ts";
import { createContainer, discardContainer } from "./container.ts";
import { findGuest, findNodeForMachines, findRunsc } from "./find.ts";
import type { Host } from "./host.ts";
import { nameContainer, openLayout, removeFoldersIfEmpty } from "./layout.ts";
import { activate, GvisorMachine, notAMachine } from "./machine.ts";
import { ReadyContainers } from "./ready.ts";
import { reattach } from "./reattach.ts";
import { type HostRoot, openHostRoot, removeOldRoots } from "./root.ts";
import { runscCommands } from "./runsc.ts";
import { type Facts, readCpu, readRoot, requireCompatible, saveMachine } from "./snapshot.ts";
import type { ContainerShape } from "./spec.ts";
import { sweep } from "./sweep.ts";

export { defaultRuntimeDir } from "./layout.ts";
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
  const [cgroups, root] = await Promise.all([openCgroups(layout.cgroupParent), openHostRoot(layout.state, guest, node)]);
  const host: Host = {
    layout,
    runsc: runscCommands(runsc, layout.runscRoot, { cgroups: cgroups !== undefined }),
    guestPath: guest.path,
    cgroups,
    userNamespace: process.getuid?.() !== 0,
    log: options.log,
  };
  return new GvisorDriver(host, root, { driver: "gvisor", engineBuild: runsc.build, agentHash: guest.hash, protocolVersion, cpu });
}

class GvisorDriver implements Driver {
  readonly name = "gvisor";
  readonly isolation = "gvisor";
  readonly #host: Host;
  readonly #root: HostRoot;
  readonly #facts: Facts;
  readonly #ready: ReadyContainers;
  readonly #machines = new Set<GvisorMachine>();
  readonly readyStarts = { hits: 0, misses: 0 };

  constructor(host: Host, root: HostRoot, facts: Facts) {
    this.#host = host;
    this.#root = root;
    this.#facts = facts;
    this.#ready = new ReadyContainers({
      create: (shape) => createContainer(host, shape),
      discard: (container) => discardContainer(host, container),
      log: host.log,
    });
  }

  async boot(spec: MachineSpec): Promise<Machine> {
    const { runsc } = this.#host;
    return this.#start(spec, this.#root, (container) => runsc.start(container.id));
  }

  async restore(snapshot: Parameters<Driver["restore"]>[0], spec: MachineSpec): Promise<Machine> {
    const { runsc } = this.#host;
    // Whoever restores has let the content be checked just now, once for all children.
    await requireCompatible(snapshot, this.#facts, { content: false });
    const root = await readRoot(snapshot);
    return this.#start(spec, root, ({ dir, id }) => runsc.restore(dir, `${dir}/restored.pid`, snapshot.dir, id));
  }

  async snapshot(machine: Machine, dir: string, options: { leaveRunning: boolean; durable: boolean }) {
    const ours = this.#own(machine);
    const snapshot = await saveMachine(ours, dir, { facts: this.#facts, runsc: this.#host.runsc, durable: options.durable });
    // Only now: until the snapshot is whole, the living machine is all there is.
    if (!options.leaveRunning) await ours.end("saved");
    return snapshot;
  }

  async checkSnapshot(snapshot: Parameters<Driver["checkSnapshot"]>[0]): Promise<void> {
    await requireCompatible(snapshot, this.#facts, { content: true });
  }

  prepare(spec: Omit<MachineSpec, "machineId" | "hostName">, count: number): void {
    this.#ready.want({ root: this.#root, resources: spec.resources }, count);
  }

  async reattach(machineId: string) {
    const found = await reattach(this.#host, machineId);
    if (found instanceof GvisorMachine) this.#follow(found);
    return found;
  }

  async sweep(keep: ReadonlySet<string>, snapshots: readonly Snapshot[] = []): Promise<void> {
    await this.#ready.settled();
    await sweep(this.#host, keep, new Set(this.#ready.ids()));
    // One that cannot be read needs no root until it is repaired.
    const roots = await Promise.all(snapshots.map((snapshot) => readRoot(snapshot).catch(() => undefined)));
    const shapes = [...this.#machines].map(({ container }) => container.shape.root);
    await removeOldRoots(this.#host.layout.state, new Set([this.#root, ...shapes, ...roots].flatMap((root) => (root ? [root.dir] : []))));
  }

  async close(): Promise<void> {
    await this.#ready.close();
    for (const machine of this.#machines) machine.release();
    if (this.#host.cgroups) await closeCgroups(this.#host.cgroups);
    await removeFoldersIfEmpty(this.#host.layout);
  }

  async #start(
    spec: MachineSpec,
    root: HostRoot,
    command: (container: { id: string; dir: string }) => readonly string[],
  ): Promise<GvisorMachine> {
    const shape: ContainerShape = { root, resources: spec.resources };
    const ready = this.#ready.take(shape);
    this.readyStarts[ready ? "hits" : "misses"] += 1;
    const container = ready ?? (await createContainer(this.#host, shape));
    try {
      await nameContainer(this.#host.layout, spec.machineId, container.id);
    } catch (error) {
      await discardContainer(this.#host, container);
      throw error;
    }
    try {
      const machine = await activate(this.#host, container, spec.machineId, command(container));
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
