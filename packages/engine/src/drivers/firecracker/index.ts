import { mkdir } from "node:fs/promises";
import path from "node:path";
import type { Log } from "../../actions.ts";
import type { Driver, Machine, MachineSpec, OwnerEntry, RestoreSpec, RootSource, Snapshot, SnapshotOptions } from "../../driver.ts";
import { protocolVersion } from "../../link/client.ts";
import { closeCgroups, openCgroups } from "../host/cgroup.ts";
import { type Facts, incompatible, readCpu } from "../host/facts.ts";
import { removeHostFoldersIfEmpty } from "../host/layout.ts";
import { findGuest, type Guest } from "../host/parts.ts";
import { findAssets } from "../microvm/assets.ts";
import { Images } from "../microvm/images.ts";
import { bootCalls, loadCalls, resumeCalls, startCalls } from "./calls.ts";
import { type FirecrackerPaths, findFirecracker } from "./find.ts";
import { type Host, type MachineParts, openLayout, type RootImages } from "./host.ts";
import { activate, FirecrackerMachine, notAMachine } from "./machine.ts";
import { rootName, writtenName } from "./place.ts";
import { reattach } from "./reattach.ts";
import { filesOf, readDetails, requireCompatible, saveMachine } from "./snapshot.ts";
import { sweep } from "./sweep.ts";
import { Uids } from "./uids.ts";
import { createVmm } from "./vmm.ts";

export { probeFirecracker } from "./probe.ts";

export interface FirecrackerOptions extends FirecrackerPaths {
  readonly dataDir: string;
  /** Short, private, gone at the next boot of the host: `defaultRuntimeDir(dataDir)`. */
  readonly runtimeDir: string;
  readonly log: Log;
  /** Else `$MITOS_GUEST`, or what the set-up has built. */
  readonly guest?: string | undefined;
}

/** Of what machines are made: the same parts as those of the other virtual machines. */
export interface FirecrackerMaterial {
  readonly guest: Guest;
  readonly parts: MachineParts;
  readonly images: RootImages;
}

/** @throws MissingPart when Firecracker, the guest binary or what machines are made of is missing or does not fit */
export async function createFirecrackerDriver(options: FirecrackerOptions): Promise<Driver> {
  const guest = await findGuest(options.guest);
  const parts = await findAssets(guest);
  await mkdir(options.dataDir, { recursive: true, mode: 0o700 });
  const images = await Images.open({ dir: path.join(options.dataDir, "microvm", "images"), hostRoot: parts.hostRoot });
  return openFirecrackerDriver(options, { guest, parts, images });
}

/** @throws MissingPart when Firecracker is missing or does not fit */
export async function openFirecrackerDriver(options: FirecrackerOptions, { guest, parts, images }: FirecrackerMaterial): Promise<Driver> {
  const [firecracker, cpu, layout] = await Promise.all([
    findFirecracker(options),
    readCpu(),
    openLayout(options.dataDir, options.runtimeDir),
  ]);
  const cgroups = await openCgroups(layout.cgroupParent);
  const host: Host = {
    layout,
    firecracker,
    parts,
    images,
    guestPath: guest.path,
    userNamespace: false,
    cgroups,
    log: options.log,
  };
  return new FirecrackerDriver(host, {
    driver: "firecracker",
    engineBuild: firecracker.build,
    agentHash: guest.hash,
    protocolVersion,
    cpu,
  });
}

class FirecrackerDriver implements Driver {
  readonly name = "microvm";
  readonly isolation = "microvm-firecracker";
  readonly #host: Host;
  readonly #facts: Facts;
  readonly #uids: Uids;
  readonly #machines = new Set<FirecrackerMachine>();

  constructor(host: Host, facts: Facts) {
    this.#host = host;
    this.#facts = facts;
    this.#uids = new Uids(host);
  }

  /** Its disk is a file, so `scratch` makes no difference: it may be larger than the machine's memory, and it is saved with it. */
  async boot({ machineId, root, resources }: MachineSpec): Promise<Machine> {
    const { parts, images, firecracker } = this.#host;
    using image = await images.use(root);
    using jail = firecracker.jailer ? await this.#uids.take() : undefined;
    const shape = { resources, rootKey: image.key, jail: jail ? { uid: jail.uid, gid: jail.gid } : null };
    const vmm = await createVmm(this.#host, shape, { image: image.path, disk: parts.emptyDisk.path });
    const machine = await activate(this.#host, vmm, machineId, async () => {
      const kernel = await vmm.place.lend(parts.kernel.path, "vmlinux");
      const initramfs = await vmm.place.lend(parts.initramfs.path, "initramfs");
      return [...bootCalls({ kernel, initramfs, root: rootName, written: writtenName }, resources), ...startCalls];
    });
    return this.#follow(machine);
  }

  /** An image has the owners that its layers have. */
  async ownersOf(_root: RootSource): Promise<readonly OwnerEntry[]> {
    return [];
  }

  async restore(snapshot: Snapshot, { machineId, resources }: RestoreSpec): Promise<Machine> {
    const { images, firecracker } = this.#host;
    // Whoever restores has let the content be checked just now, once for all children.
    await requireCompatible(this.#host, snapshot, this.#facts, { content: false });
    const { rootKey, memSizeMiB, vcpuCount } = await readDetails(snapshot);
    if (memSizeMiB !== resources.memSizeMiB || vcpuCount !== resources.vcpuCount) {
      throw incompatible(`it was made with ${memSizeMiB} MiB and ${vcpuCount} processors, which a machine of it keeps`);
    }
    using jail = firecracker.jailer ? await this.#uids.take() : undefined;
    const shape = { resources, rootKey, jail: jail ? { uid: jail.uid, gid: jail.gid } : null };
    const { state, memory, disk } = filesOf(snapshot.dir);
    const vmm = await createVmm(this.#host, shape, { image: images.pathOf(rootKey), disk });
    const machine = await activate(this.#host, vmm, machineId, async () => {
      const lent = { state: await vmm.place.lend(state, "state"), memory: await vmm.place.lend(memory, "memory") };
      return [...loadCalls({ ...lent, written: writtenName }), ...resumeCalls];
    });
    // It has them open, and the snapshot may be removed.
    await Promise.all([vmm.place.unlend("state"), vmm.place.unlend("memory")]);
    return this.#follow(machine);
  }

  async snapshot(machine: Machine, dir: string, options: SnapshotOptions) {
    const ours = this.#own(machine);
    const snapshot = await saveMachine(ours, dir, { ...options, facts: this.#facts });
    // Only now: until the snapshot is whole, the living machine is all there is.
    if (!options.leaveRunning) await ours.end("saved");
    return snapshot;
  }

  async checkSnapshot(snapshot: Snapshot): Promise<void> {
    await requireCompatible(this.#host, snapshot, this.#facts, { content: true });
  }

  /** Nothing: a VMM starts in some milliseconds, and can be given no file before it is known which machine it will be. */
  prepare(): void {}

  async reattach(machineId: string) {
    const found = await reattach(this.#host, machineId);
    return found instanceof FirecrackerMachine ? this.#follow(found) : found;
  }

  async sweep(keep: ReadonlySet<string>, snapshots: readonly Snapshot[] = []): Promise<void> {
    await sweep(this.#host, keep);
    await this.#host.images.removeUnused(() => this.#imagesOf(snapshots));
  }

  async collectRoots({ roots, snapshots }: Parameters<Driver["collectRoots"]>[0]): Promise<void> {
    await this.#host.images.removeUnused(() => this.#imagesOf(snapshots), roots);
  }

  /** Keys of the images that machines and snapshots have. */
  async #imagesOf(snapshots: readonly Snapshot[]): Promise<Set<string>> {
    // First: one that is paused meanwhile is of neither then.
    const running = [...this.#machines].map(({ vmm }) => vmm.shape.rootKey);
    // One that cannot be read needs no image until it is repaired.
    const saved = await Promise.all(snapshots.map((snapshot) => readDetails(snapshot).catch(() => undefined)));
    return new Set([...running, ...saved.flatMap((details) => (details ? [details.rootKey] : []))]);
  }

  async close(): Promise<void> {
    for (const machine of this.#machines) machine.release();
    if (this.#host.cgroups) await closeCgroups(this.#host.cgroups);
    await removeHostFoldersIfEmpty(this.#host.layout);
  }

  #follow(machine: FirecrackerMachine): FirecrackerMachine {
    this.#machines.add(machine);
    machine.exited.then(
      () => this.#machines.delete(machine),
      () => undefined,
    );
    return machine;
  }

  #own(machine: Machine): FirecrackerMachine {
    if (!(machine instanceof FirecrackerMachine)) throw notAMachine(this.#host);
    return machine;
  }
}
