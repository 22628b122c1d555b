/** Virtual machines without the driver, for tests of what it has their monitors do: each under a shim of its own, with its agent's link. */

import assert from "node:assert/strict";
import { chmod, mkdir, mkdtemp, open, readFile, rm } from "node:fs/promises";
import path from "node:path";
import type { Machine } from "../../packages/engine/src/driver.ts";
import { newKeeperId } from "../../packages/engine/src/drivers/host/layout.ts";
import { findGuest } from "../../packages/engine/src/drivers/host/parts.ts";
import { connectBoth, readPid, type ShimConnections, startShim } from "../../packages/engine/src/drivers/host/shim.ts";
import { type Assets, findAssets } from "../../packages/engine/src/drivers/microvm/assets.ts";
import { files, qemuArgs } from "../../packages/engine/src/drivers/microvm/command-line.ts";
import { attachDisk, snapshotDisk } from "../../packages/engine/src/drivers/microvm/disk-steps.ts";
import { type Disk, Disks, type NewDisk } from "../../packages/engine/src/drivers/microvm/disks.ts";
import {
  beginNewBase,
  completeNewBase,
  finishNewBase,
  holdNewBase,
  newBaseProgress,
  newBaseProgressOf,
} from "../../packages/engine/src/drivers/microvm/memory-steps.ts";
import {
  execute,
  fdSets,
  forgetDeviceState,
  saveDeviceState,
  timersLater,
  type VmmStep,
} from "../../packages/engine/src/drivers/microvm/vmm-steps.ts";
import { adopt, run, type Sandbox } from "../gvisor/sandbox.ts";
import { until } from "../support/until.ts";

const stepsTimeoutMs = 60_000;
const accel = "tcg";

/** A state that machines can go on from. */
export interface State {
  readonly disk: string;
  readonly memory: { readonly file: string; readonly offset: number };
  readonly stream: string;
  /** How many timers of its processors come later in a machine that goes on from it. */
  readonly timers: number;
}

export interface Punched {
  readonly offset: number;
  readonly memory_bytes: number;
  readonly pages: number;
  readonly freed_bytes: number;
}

/** A folder with disks, memory files and shims in it; all of it goes when it is disposed of. */
export class Bench implements AsyncDisposable {
  readonly dir: string;
  readonly disks: Disks;
  readonly memoryMiB: number;
  readonly #assets: Assets;
  readonly #guestPath: string;
  readonly #vms = new Set<Vm>();
  #files = 0;

  private constructor(dir: string, disks: Disks, assets: Assets, guestPath: string, memoryMiB: number) {
    this.dir = dir;
    this.disks = disks;
    this.memoryMiB = memoryMiB;
    this.#assets = assets;
    this.#guestPath = guestPath;
  }

  static async open(memoryMiB = 256): Promise<Bench> {
    const guest = await findGuest(undefined);
    const assets = await findAssets(guest);
    const dir = await mkdtemp("/tmp/mitos-vm-");
    const disks = await Disks.open({ dir: path.join(dir, "disks"), emptyDisk: assets.emptyDisk });
    return new Bench(dir, disks, assets, guest.path, memoryMiB);
  }

  newFile(name: string): string {
    this.#files += 1;
    return path.join(this.dir, `${name}-${this.#files}`);
  }

  /** A machine that has just booted, saved, and ended. */
  async template(): Promise<State> {
    const memory = this.newFile("memory");
    await using file = await open(memory, "wx", 0o600);
    await file.truncate(this.memoryMiB * 2 ** 20);
    const vm = await this.#start({ file: memory, offset: 0 }, true);
    vm.disk = await this.disks.create(null);
    const { steps, afterwards } = attachDisk(vm.disk.chain);
    await vm.steps([...steps, execute("cont"), ...afterwards]);
    await vm.adopt();
    // It writes to the file itself: were it to go on, that would not be what belongs to the state any more.
    const state = await vm.saveAndEnd();
    await chmod(memory, 0o444);
    return state;
  }

  async restore({ disk, memory, stream }: Omit<State, "timers">): Promise<Vm> {
    const vm = await this.#start(memory, false);
    vm.disk = await this.disks.create(disk);
    const { steps, afterwards } = attachDisk(vm.disk.chain);
    await vm.steps([
      ...steps,
      execute("migrate-set-capabilities", { capabilities: [{ capability: "events", state: true }] }),
      { add_fd: { set: fdSets.memory, path: stream, access: "read" } },
      execute("migrate-incoming", { uri: `file:/dev/fdset/${fdSets.memory}` }),
      { await: { event: "MIGRATION", field: "status", values: ["completed"], failures: ["failed"] } },
      execute("cont"),
      execute("remove-fd", { "fdset-id": fdSets.memory }),
      ...afterwards,
    ]);
    await vm.adopt();
    return vm;
  }

  async #start(memory: State["memory"], boots: boolean): Promise<Vm> {
    const id = newKeeperId();
    const dir = path.join(this.dir, id);
    await mkdir(dir, { mode: 0o700 });
    await startShim({ guestPath: this.#guestPath, userNamespace: process.getuid?.() !== 0 }, dir);
    const connections = await connectBoth(dir, []);
    const { vmm, kernel, initramfs, hostRoot, emptyDisk } = this.#assets;
    const resources = { vcpuCount: 1, memSizeMiB: this.memoryMiB, processesMax: 256 };
    const shape = { resources, image: "", base: "", boots };
    const argv = qemuArgs({
      program: vmm.program,
      name: dir,
      shape,
      memoryOffset: memory.offset,
      accel,
      diskBytes: emptyDisk.bytes,
      tscKhz: await tscKhz(),
    });
    const reply = await connections.control.request("run", {
      argv: [
        this.#guestPath,
        "confine",
        JSON.stringify({
          argv,
          pid_file: "vmm.pid",
          root: vmm.root,
          files: [
            { fd: files.memory, path: memory.file, access: boots ? "read_write" : "read" },
            { fd: files.image, path: hostRoot.path, access: "read" },
            ...(boots
              ? [
                  { fd: files.kernel, path: kernel.path, access: "read" },
                  { fd: files.initramfs, path: initramfs.path, access: "read" },
                ]
              : []),
          ],
        }),
      ],
      stdio: "vmm",
      timeout_ms: 20_000,
    });
    assert.equal(reply.exit_code, 0, await readFile(path.join(dir, "machine.log"), "utf8"));
    await connections.control.request("watch", { pid_file: "vmm.pid" });
    const vm = new Vm(this, { dir, memory, connections, pid: await readPid(path.join(dir, "vmm.pid")) });
    this.#vms.add(vm);
    return vm;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const vm of this.#vms) await vm.end();
    await rm(this.dir, { recursive: true, force: true });
  }
}

export class Vm {
  readonly pid: number;
  readonly dir: string;
  readonly memory: State["memory"];
  disk!: Disk | NewDisk;
  /** How long the last `stop` to `cont` took. */
  stoppedMs = Number.NaN;
  readonly #bench: Bench;
  readonly #connections: ShimConnections;
  #sandbox: Sandbox | undefined;
  #ended = false;

  constructor(
    bench: Bench,
    { dir, memory, connections, pid }: { dir: string; memory: State["memory"]; connections: ShimConnections; pid: number },
  ) {
    this.#bench = bench;
    this.#connections = connections;
    this.dir = dir;
    this.memory = memory;
    this.pid = pid;
  }

  readonly steps = async (steps: readonly VmmStep[]): Promise<readonly unknown[]> => {
    const reply = await this.#connections.control.request("vmm", { steps, timeout_ms: stepsTimeoutMs });
    if (typeof reply.stopped_us === "number") this.stoppedMs = reply.stopped_us / 1000;
    return reply.results as readonly unknown[];
  };

  async adopt(): Promise<Sandbox> {
    const machineId = `m${path.basename(this.dir)}`;
    const exited = new Promise<never>(() => {});
    const machine = { machineId, transport: this.#connections.link.transport, exited } as Partial<Machine> as Machine;
    this.#sandbox = await adopt(machine);
    return this.#sandbox;
  }

  get sandbox(): Sandbox {
    assert(this.#sandbox);
    return this.#sandbox;
  }

  run(shellCommand: string): Promise<string> {
    return run(this.sandbox, shellCommand);
  }

  async quietly<T>(work: () => Promise<T>): Promise<T> {
    const quiet = await this.sandbox.guest.quiesce();
    try {
      return await work();
    } finally {
      await quiet.resume();
    }
  }

  /** Its state, with what it has written; it goes on over a new overlay. */
  async save(): Promise<State> {
    const next = await this.#bench.disks.create(this.disk.id);
    const disk = snapshotDisk({ current: this.disk.path, next: next.path, deviceState: this.#bench.newFile("devices") });
    const { state, stop } = this.#stopAndSave();
    const results = await this.steps([
      ...disk.before,
      ...stop(disk.whileStopped),
      { ...execute("cont"), always: true },
      ...disk.afterwards,
      forgetDeviceState,
    ]);
    this.disk = next;
    return { ...state, timers: timersIn(results) };
  }

  /** The same, but then its monitor is killed: as in a pause. */
  async saveAndEnd(): Promise<State> {
    const { state, stop } = this.#stopAndSave();
    await this.sandbox.guest.quiesce();
    const results = await this.steps(stop([]));
    process.kill(this.pid, "SIGKILL");
    await this.end();
    return { ...state, timers: timersIn(results) };
  }

  /**
   * The same with all of its memory in a new base.
   *
   * @param whileCopying - when most has been copied, while its programs run
   */
  async saveAsNewBase(
    whileCopying: () => Promise<unknown> = async () => {},
  ): Promise<Omit<State, "timers"> & { punched: Punched; quietMs: number }> {
    const files = { base: this.#bench.newFile("memory"), deviceState: this.#bench.newFile("devices") };
    const stream = this.#bench.newFile("stream");
    const next = await this.#bench.disks.create(this.disk.id);
    const disk = snapshotDisk({ current: this.disk.path, next: next.path, deviceState: this.#bench.newFile("devices") });
    await this.steps([...disk.before, ...beginNewBase(files)]);
    await until(
      "little is left",
      async () => {
        const state = newBaseProgressOf((await this.steps(newBaseProgress))[0]);
        assert(state === "copying" || state === "little is left", state);
        return state === "little is left";
      },
      60_000,
    );
    await this.steps(holdNewBase);
    await whileCopying();
    const quietMs = await this.quietly(async () => {
      const begun = performance.now();
      await this.steps(finishNewBase(disk.whileStopped));
      return performance.now() - begun;
    });
    await this.steps(disk.afterwards);
    const memoryBytes = this.#bench.memoryMiB * 2 ** 20;
    const [punched] = (await this.steps(completeNewBase(files, { out: stream, memoryBytes, accel }))) as [Punched];
    await chmod(files.base, 0o444);
    const frozen = this.disk.id;
    this.disk = next;
    return { disk: frozen, memory: { file: files.base, offset: punched.offset }, stream, punched, quietMs };
  }

  #stopAndSave(): { state: Omit<State, "timers">; stop: (whileStopped: readonly VmmStep[]) => VmmStep[] } {
    const [deviceState, stream] = [this.#bench.newFile("devices"), this.#bench.newFile("stream")];
    return {
      state: { disk: this.disk.id, memory: this.memory, stream },
      stop: (whileStopped) => [
        { add_fd: { set: fdSets.deviceState, path: deviceState, access: "create_write" } },
        execute("stop"),
        ...whileStopped,
        saveDeviceState,
        { save_memory: { base: this.memory.file, device_state: deviceState, out: stream, ...timersLater(accel) } },
      ],
    };
  }

  fork(): Promise<State> {
    return this.quietly(() => this.save());
  }

  /** As if the host had lost it. */
  async end(): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    const { link, control } = this.#connections;
    await control.request("end", { reason: "test over" }).catch(() => undefined);
    link.close();
    control.close();
  }
}

/** Of the step that has saved a machine's memory. */
function timersIn(results: readonly unknown[]): number {
  const saved = results.find((result) => typeof result === "object" && result !== null && "timers" in result) as { timers: number };
  return saved.timers;
}

async function tscKhz(): Promise<number> {
  const [, mhz] = /^cpu MHz\s*: ([\d.]+)/m.exec(await readFile("/proc/cpuinfo", "utf8")) ?? [];
  return Math.round(Number(mhz ?? 2000) * 1000);
}
