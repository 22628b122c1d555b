import { rm } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import type { Machine } from "../../driver.ts";
import { exitWithin } from "../../exit-within.ts";
import { diskFull } from "../../storage-error.ts";
import { watchedFolders } from "../host/cgroup.ts";
import { toGuestExit } from "../host/exit.ts";
import { nameOf } from "../host/layout.ts";
import { ShimMachine } from "../host/machine.ts";
import type { Host } from "./host.ts";
import { killKeeper } from "./processes.ts";
import { isFull } from "./room.ts";
import { recordMachine, release, removeTraces, runInBackground, runSteps, saysEnded, type Vmm } from "./vmm.ts";
import type { VmmStep } from "./vmm-steps.ts";

/** What a monitor takes between the end of its connection and its own, on a busy host. */
const exitNoticedMs = 5_000;

/** A booted or restored virtual machine. */
export class MicrovmMachine extends ShimMachine<Vmm> implements Machine {
  /** The collapse of its disk's chain that is under way, or has ended and is not settled yet; see `chain-length.ts`. */
  collapse: object | undefined;
  #frozen = false;
  #gone = false;
  /** What is done to its memory and disk from the host follows each other. */
  #working: Promise<unknown> = Promise.resolve();

  constructor(host: Host, vmm: Vmm, machineId: string) {
    super(
      machineId,
      vmm,
      vmm.shape.resources,
      {
        kill: () => killKeeper(host.layout, vmm.id),
        forget: async () => {
          // Its processes have ended, whatever of it stays.
          await forget(host, machineId, vmm.id).finally(() => release(vmm));
        },
        exit: (told, resources) => toGuestExit(vmm.dir, told, resources),
      },
      host.log,
    );
    void vmm.control.closed.then(() => {
      this.#gone = true;
    });
  }

  get vmm(): Vmm {
    return this.keeper;
  }

  /** Whether its monitor has gone away; its end is told a little later. */
  get isGone(): boolean {
    return this.#gone;
  }

  get frozen(): boolean {
    return this.#frozen;
  }

  freeze(): Promise<void> {
    return this.#inTurn(() => this.#freeze());
  }

  thaw(): Promise<void> {
    return this.#inTurn(() => this.#thaw());
  }

  /** Awake, and with nothing else of this kind beside it. Frozen again afterwards if it was, unless it has ended meanwhile: `work` may end it. */
  exclusively<T>(work: () => Promise<T>): Promise<T> {
    return this.#inTurn(async () => {
      const frozen = this.#frozen;
      if (frozen) await this.#thaw();
      try {
        return await work();
      } finally {
        if (frozen && !this.#gone) await this.#freeze().catch((error: unknown) => this.#notFrozen(error));
      }
    });
  }

  /** The same for what has time: not at all while it is frozen. */
  whenAwake(work: () => Promise<void>): Promise<void> {
    return this.#inTurn(async () => {
      if (!this.#frozen) await work();
    });
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#working.catch(() => undefined).then(work);
    this.#working = mine;
    return mine;
  }

  async #freeze(): Promise<void> {
    this.#frozen = true;
    await this.ask("signal", { signal: "SIGSTOP" });
  }

  /** What was done with it counts all the same. */
  #notFrozen(error: unknown): void {
    this.#frozen = false;
    if (!this.#gone) this.log.warn({ machine: this.machineId, error: String(error) }, "a machine was not frozen again: it runs on");
  }

  async #thaw(): Promise<void> {
    await this.ask("signal", { signal: "SIGCONT" });
    this.#frozen = false;
  }
}

export interface Start {
  /** Give it its disk and its state, and let it run unless there is `letRun`. */
  readonly steps: readonly VmmStep[];
  /** Nobody waits for the answer: the guest's processor keeps the monitor from giving it for longer than its agent takes to say something. */
  readonly letRun?: VmmStep;
  /** What has time until it runs. */
  readonly afterwards: readonly VmmStep[];
  readonly timeoutMs: number;
}

/**
 * Makes a machine of a monitor that has its memory and waits.
 *
 * @throws MitosError; nothing of the machine is left then
 */
export async function activate(
  host: Host,
  vmm: Vmm,
  machineId: string,
  { disk, steps, letRun, afterwards, timeoutMs }: Start & { readonly disk: string },
): Promise<MicrovmMachine> {
  const machine = new MicrovmMachine(host, vmm, machineId);
  try {
    vmm.disk = disk;
    await Promise.all([
      vmm.control.request("watch", { pid: vmm.pid, ...(host.cgroups ? watchedFolders(host.cgroups, vmm.id) : {}) }),
      recordMachine(vmm),
      runSteps(vmm, "start a machine", steps, timeoutMs),
    ]);
    if (letRun) runSteps(vmm, "start a machine", [letRun], timeoutMs).catch((error: unknown) => endNotRunning(host, machine, error));
    runInBackground(host, vmm, "tidy up after a start", afterwards, timeoutMs);
    return machine;
  } catch (error) {
    host.log.warn({ machine: machineId, error: String(error) }, "a machine did not start");
    // Its monitor has gone away, its shim is about to notice: asked to end it now, that would tell our reason instead of the machine's.
    if (saysEnded(error)) await exitWithin(machine, exitNoticedMs);
    await machine.end("start failed");
    // Absent where the host did not let go of it.
    const { reason = "terminated", detail = "" } = (await exitWithin(machine, 0)) ?? {};
    // It is killed for the first page of its memory file that finds no room.
    if (vmm.shape.boots && reason === "killed" && (await isFull(vmm.uses.base.path)))
      throw diskFull(path.dirname(vmm.uses.base.path), error);
    throw reason === "terminated" ? error : new MitosError("internal", { cause: `could not start a machine: ${detail}`, reason: error });
  }
}

/** Whoever waits for its agent is told. */
async function endNotRunning({ log }: Host, machine: MicrovmMachine, error: unknown): Promise<void> {
  if (saysEnded(error)) return;
  log.warn({ machine: machine.machineId, error: String(error) }, "a machine does not run");
  await machine.end("start failed");
}

/** Removes what is left of a machine that has ended. What it stood on in the data directory goes with the next collection. */
export async function forget(host: Host, machineId: string, keeperId: string): Promise<void> {
  await removeTraces(host, keeperId);
  await rm(nameOf(host.layout, machineId), { force: true });
}

export function notAMachine(host: Host): MitosError {
  return new MitosError("internal", { cause: `not a machine of ${host.layout.runtimeDir}` });
}
