import { rm } from "node:fs/promises";
import { MitosError } from "@mitos/protocol";
import type { Machine } from "../../driver.ts";
import type { JsonObject } from "../../link/transport.ts";
import { memoryLimitBytes, watchedFolders } from "../host/cgroup.ts";
import { toGuestExit } from "../host/exit.ts";
import { nameKeeper, nameOf } from "../host/layout.ts";
import { ShimMachine } from "../host/machine.ts";
import type { Call } from "./api.ts";
import { linkPort } from "./calls.ts";
import type { Host } from "./host.ts";
import { killVmm } from "./processes.ts";
import { removeTraces, type Vmm } from "./vmm.ts";

/** From the kernel's first instruction to the agent that listens. */
const linkTimeoutMs = 30_000;
const memoryCheckMs = 500;

/** A VMM whose guest runs. */
export class FirecrackerMachine extends ShimMachine<Vmm> implements Machine {
  #frozen = false;

  constructor(host: Host, vmm: Vmm, machineId: string) {
    const atEnd = {
      kill: () => killVmm(host.layout, vmm.id),
      forget: () => forget(host, machineId, vmm.id),
      exit: async (told: JsonObject) => {
        vmm.api.close();
        return toGuestExit(vmm.dir, told, vmm.shape.resources);
      },
    };
    super(machineId, vmm, vmm.shape.resources, atEnd, host.log);
  }

  get vmm(): Vmm {
    return this.keeper;
  }

  /** The one process of a VMM has all its threads, those that run the guest too. */
  async freeze(): Promise<void> {
    this.#frozen = true;
    await this.ask("signal", { signal: "SIGSTOP" });
  }

  async thaw(): Promise<void> {
    await this.ask("signal", { signal: "SIGCONT" });
    this.#frozen = false;
  }

  get frozen(): boolean {
    return this.#frozen;
  }

  call(calls: readonly Call[]): Promise<void> {
    return this.vmm.api.run(calls);
  }

  /**
   * Once the guest runs, and again after each snapshot: taking one resets the guest's vsock connections, in the machine that runs on as well.
   * The session on it goes on, since a quiesced machine has nothing on its way.
   */
  async connectLink(): Promise<void> {
    await this.ask("connect_link", { path: this.vmm.place.vsock, port: linkPort, timeout_ms: linkTimeoutMs });
  }

  override release(): void {
    super.release();
    this.vmm.api.close();
  }
}

/**
 * Makes a machine of a VMM.
 *
 * @param prepare - gives the VMM its files; answers all calls up to the one that lets the guest run
 * @throws MitosError; nothing of the machine is left then
 */
export async function activate(
  host: Host,
  vmm: Vmm,
  machineId: string,
  prepare: () => Promise<readonly Call[]>,
): Promise<FirecrackerMachine> {
  const machine = new FirecrackerMachine(host, vmm, machineId);
  try {
    await nameKeeper(host.layout, machineId, vmm.id);
    await vmm.control.request("watch", { pid: vmm.pid, ...(host.cgroups ? watchedFolders(host.cgroups, vmm.id) : {}) });
    if (!host.cgroups) {
      await vmm.control.request("memory_limit", { bytes: memoryLimitBytes(vmm.shape.resources), interval_ms: memoryCheckMs });
    }
    await machine.call(await prepare());
    await machine.connectLink();
    return machine;
  } catch (error) {
    host.log.warn({ machine: machineId, error: String(error) }, "a machine did not start");
    await machine.end("start failed");
    throw error;
  }
}

/** Removes what is left of a machine that has ended. */
export async function forget(host: Host, machineId: string, keeperId: string): Promise<void> {
  await removeTraces(host, keeperId);
  await rm(nameOf(host.layout, machineId), { force: true });
}

export function notAMachine({ layout }: Host): MitosError {
  return new MitosError("internal", { cause: `not a machine of ${layout.runtimeDir}` });
}
