/** For tests of the engine: a clock that is moved by hand, a driver that fails when told to, and an engine over them. */

import { mkdtemp, readdir, realpath, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { MitosError, type SandboxId, toSandboxId, toTemplateId } from "@mitos/protocol";
import type { CreateRequest, Engine, Log, TemplateRequest } from "./actions.ts";
import { Admission } from "./admission.ts";
import { MemoryImages, MemoryLayers, type Program, programmed } from "./builds/testing.ts";
import type { Clock } from "./clock.ts";
import type { Driver, Machine, MachineExit, MachineSpec, RestoreSpec } from "./driver.ts";
import { openMockDriver } from "./drivers/mock/driver.ts";
import { openEngineWith } from "./engine.ts";
import type { Adoption, Guest, GuestHooks, SandboxEgress } from "./guest.ts";
import { connectGuest } from "./link-guest.ts";
import { fastRootOf } from "./snapshots.ts";

export const quiet: Log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

/** For guests whose engine lets nothing out. */
export const noEgress: SandboxEgress = {
  connect: () => Promise.reject(new MitosError("permission_denied", { message: "egress is denied: there is no gate" })),
  ports: () => {
    throw new MitosError("permission_denied", { message: "egress is denied: there is no gate" });
  },
};

export class ManualClock implements Clock {
  // Of today, since machines keep their own deadlines by the real clock.
  #nowMs = Date.now();
  readonly #waiting = new Set<{ atMs: number; wake: () => void }>();

  nowMs(): number {
    return this.#nowMs;
  }

  after(delayMs: number, wake: () => void): () => void {
    const waiter = { atMs: this.#nowMs + delayMs, wake };
    this.#waiting.add(waiter);
    return () => this.#waiting.delete(waiter);
  }

  /** Wakes what becomes due on the way, in order. */
  advance(ms: number): void {
    const untilMs = this.#nowMs + ms;
    for (;;) {
      const next = [...this.#waiting].filter(({ atMs }) => atMs <= untilMs).sort((a, b) => a.atMs - b.atMs)[0];
      if (!next) break;
      this.#waiting.delete(next);
      this.#nowMs = Math.max(this.#nowMs, next.atMs);
      next.wake();
    }
    this.#nowMs = untilMs;
  }
}

/** The mock driver with its steps open to interference, and an account of what lives. */
export class FaultyDriver implements Driver {
  readonly name = "gvisor";
  readonly isolation = "gvisor";
  readonly #real = openMockDriver();
  readonly machines = new Map<string, Machine>();
  readonly specs: RestoreSpec[] = [];
  readonly booted: MachineSpec[] = [];
  restores = 0;
  boots = 0;
  /** Called before each step; a throw is its failure, a wait its duration. */
  onRestore: (count: number) => void | Promise<void> = () => {};
  onBoot: (spec: MachineSpec) => void | Promise<void> = () => {};
  onSnapshot: (machine: Machine) => void | Promise<void> = () => {};
  onCheck: () => void | Promise<void> = () => {};
  swept: ReadonlySet<string>[] = [];

  async boot(spec: MachineSpec): Promise<Machine> {
    this.boots += 1;
    this.booted.push(spec);
    await this.onBoot(spec);
    return this.#account(await this.#real.boot(spec));
  }

  snapshot: Driver["snapshot"] = async (machine, dir, options) => {
    await this.onSnapshot(machine);
    return this.#real.snapshot(machine, dir, options);
  };

  checkSnapshot: Driver["checkSnapshot"] = async (snapshot) => {
    await this.onCheck();
    return this.#real.checkSnapshot(snapshot);
  };

  restore: Driver["restore"] = async (snapshot, spec) => {
    this.restores += 1;
    this.specs.push(spec);
    await this.onRestore(this.restores);
    return this.#account(await this.#real.restore(snapshot, spec));
  };

  ownersOf: Driver["ownersOf"] = (root) => this.#real.ownersOf(root);

  collectRoots: Driver["collectRoots"] = (keep) => this.#real.collectRoots(keep);

  prepare(): void {}

  reattach: Driver["reattach"] = (machineId): Promise<Machine | MachineExit> => this.#real.reattach(machineId);

  async sweep(keep: ReadonlySet<string>): Promise<void> {
    this.swept.push(keep);
    await this.#real.sweep(keep);
  }

  /** Machines outlive the server, as those of real drivers do. */
  async close(): Promise<void> {}

  async dispose(): Promise<void> {
    await this.#real.close();
  }

  #account(machine: Machine): Machine {
    this.machines.set(machine.machineId, machine);
    void machine.exited.then(() => this.machines.delete(machine.machineId));
    return machine;
  }
}

/** An engine over its own data directory. Disposing of it ends everything and leaves nothing. */
export class Bench implements AsyncDisposable {
  readonly dataDir: string;
  readonly clock = new ManualClock();
  readonly driver = new FaultyDriver();
  readonly layers = new MemoryLayers();
  readonly images = new MemoryImages(this.layers);
  availableBytes = 64 * 1024 ** 3;
  /** What programs of builds do, and what was told to their machines. */
  program: Program = () => 0;
  readonly seen = { adoptions: [] as Adoption[], commands: [] as string[] };
  /** What the agents of sandboxes may ask for, by sandbox. */
  readonly hooks = new Map<string, GuestHooks>();
  /** Called before an agent is spoken to; a throw is its answer. */
  onOpen: () => void | Promise<void> = () => {};
  cacheBytesMax: number | undefined;
  /** None wait unless a test is about those that do. */
  poolSize = 0;
  engine!: Engine;

  private constructor(dataDir: string) {
    this.dataDir = dataDir;
  }

  static async open({ poolSize = 0 }: { poolSize?: number } = {}): Promise<Bench> {
    const bench = new Bench(await mkdtemp(path.join(tmpdir(), "mitos-engine-")));
    bench.poolSize = poolSize;
    await bench.reopen();
    await bench.engine.createTemplate(template("python"));
    return bench;
  }

  /** The next server on the same data directory, whose earlier server must have been closed. */
  async reopen(): Promise<Engine> {
    this.layers.forgetUses();
    this.engine = await openEngineWith(
      { dataDir: this.dataDir, engine: "auto", log: quiet, images: { cacheBytesMax: this.cacheBytesMax }, poolSize: this.poolSize },
      {
        pickDriver: async () => this.driver,
        connectGuest: (machine, hooks) => {
          const guest = programmed(connectGuest, (start, say, signal) => this.program(start, say, signal), this.seen)(machine, hooks);
          const open: Guest["open"] = async (adoption) => {
            await this.onOpen();
            if (adoption) this.hooks.set(adoption.sandboxId, hooks);
            await guest.open(adoption);
          };
          return { ...guest, open };
        },
        clock: this.clock,
        admission: new Admission(() => this.availableBytes),
        stores: this,
      },
    );
    return this.engine;
  }

  /** What there is on the disk and on tmpfs for snapshots of this engine. */
  async snapshotFolders(): Promise<string[]> {
    const roots = [path.join(this.dataDir, "snapshots"), fastRootOf(path.join(await realpath(this.dataDir), "snapshots"))];
    return (await Promise.all(roots.map((root) => readdir(root)))).flat().filter((name) => name !== "owner");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { id } of this.engine.list()) await this.engine.terminate(id);
    for (const { id } of this.engine.listTemplates()) await this.engine.deleteTemplate(id);
    await this.engine.close({ sandboxes: "end" });
    await this.driver.dispose();
    await rm(this.dataDir, { recursive: true, force: true });
  }
}

export function template(id: string, change: Partial<TemplateRequest> = {}): TemplateRequest {
  return {
    id: toTemplateId(id),
    network: { block: false, egress: "deny", allowDomains: [], allowCidrs: [], inbound: "deny", inboundCidrs: [] },
    resources: { vcpuCount: 1, memSizeMiB: 512, processesMax: 1024 },
    ...change,
  };
}

export function sandbox(id: string, change: Partial<CreateRequest> = {}): CreateRequest {
  return {
    template: toTemplateId("python"),
    id: toSandboxId(id),
    env: {},
    secrets: {},
    timeoutSeconds: null,
    idleTimeoutSeconds: null,
    metadata: {},
    ...change,
  };
}

export function ids(...names: string[]): SandboxId[] {
  return names.map((name) => toSandboxId(name));
}
