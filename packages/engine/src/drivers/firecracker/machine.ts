import { rm } from "node:fs/promises";
import { MitosError } from "@mitos/protocol";
import type { FrameTransport, Machine, MachineExit, MachineMetering } from "../../driver.ts";
import type { JsonObject } from "../../link/transport.ts";
import { memoryLimitBytes, watchedFolders } from "../host/cgroup.ts";
import { toMachineExit } from "../host/exit.ts";
import { nameKeeper, nameOf } from "../host/layout.ts";
import { processGone } from "../host/processes.ts";
import { readExit } from "../host/shim.ts";
import type { Call } from "./api.ts";
import { linkPort } from "./calls.ts";
import type { Host } from "./host.ts";
import { killVmm } from "./processes.ts";
import { readLog, removeTraces, type Vmm } from "./vmm.ts";

const endTimeoutMs = 20_000;
/** From the kernel's first instruction to the agent that listens. */
const linkTimeoutMs = 30_000;
const memoryCheckMs = 500;

/** A VMM whose guest runs. */
export class FirecrackerMachine implements Machine {
  readonly machineId: string;
  readonly vmm: Vmm;
  readonly transport: FrameTransport;
  readonly exited: Promise<MachineExit>;
  readonly #host: Host;
  #frozen = false;
  #released = false;
  #ending: Promise<void> | undefined;

  constructor(host: Host, vmm: Vmm, machineId: string) {
    this.#host = host;
    this.vmm = vmm;
    this.machineId = machineId;
    this.transport = vmm.link.transport;
    vmm.control.onEvent(({ event, error }) => {
      if (event !== "link_closed") return; // the end of the machine is told by exit.json
      host.log.warn({ machine: machineId, error }, "a machine broke the rules of the link: its shim passes nothing on any more");
      vmm.link.close();
    });
    this.exited = this.#follow();
  }

  async setDeadline(unixMs: number | null): Promise<void> {
    await this.#ask("deadline", { unix_ms: unixMs === null ? null : Math.max(0, Math.floor(unixMs)), reason: "deadline" });
  }

  /** The one process of a VMM has all its threads, those that run the guest too. */
  async freeze(): Promise<void> {
    this.#frozen = true;
    await this.#ask("signal", { signal: "SIGSTOP" });
  }

  async thaw(): Promise<void> {
    await this.#ask("signal", { signal: "SIGCONT" });
    this.#frozen = false;
  }

  get frozen(): boolean {
    return this.#frozen;
  }

  async meter({ shared } = { shared: false }): Promise<MachineMetering> {
    const reply = await this.#ask("meter", shared ? { shared } : {});
    return { memoryBytes: count(reply.memory_bytes), sharedBytes: count(reply.shared_bytes), cpuMs: count(reply.cpu_ms) };
  }

  call(calls: readonly Call[]): Promise<void> {
    return this.vmm.api.run(calls);
  }

  /**
   * Once the guest runs, and again after each snapshot: taking one resets the guest's vsock connections, in the machine that runs on as well.
   * The session on it goes on, since a quiesced machine has nothing on its way.
   */
  async connectLink(): Promise<void> {
    await this.#ask("connect_link", { path: this.vmm.place.vsock, port: linkPort, timeout_ms: linkTimeoutMs });
  }

  end(reason: string): Promise<void> {
    this.#ending ??= this.#end(reason);
    return this.#ending;
  }

  /** Lets go of a living machine: its shim keeps it for the next server, and `exited` never resolves here. */
  release(): void {
    this.#released = true;
    this.vmm.link.close();
    this.vmm.control.close();
    this.vmm.api.close();
  }

  async #end(reason: string): Promise<void> {
    const { promise: late, resolve } = Promise.withResolvers<"late">();
    const timer = setTimeout(resolve, endTimeoutMs, "late");
    // A shim that is gone already has been noticed by `exited`.
    const asked = this.vmm.control.request("end", { reason }).catch(() => undefined);
    const first = await Promise.race([this.exited, late]);
    clearTimeout(timer);
    if (first === "late") {
      this.#host.log.error({ machine: this.machineId }, "a machine's shim does not end it: killing it from outside");
      await killVmm(this.#host.layout, this.vmm.id); // ends both connections, so `exited` follows
      await this.exited;
    }
    await asked;
  }

  #ask(op: string, fields: JsonObject = {}): Promise<JsonObject> {
    return this.vmm.control.request(op, fields);
  }

  async #follow(): Promise<MachineExit> {
    const { api, control, link, dir, shimPid, id, shape } = this.vmm;
    // The shim ends with its machine, so the end of its connection is the end of the machine, told or not.
    await control.closed;
    if (this.#released) return new Promise(() => {});
    link.close();
    api.close();
    try {
      const told = (await readExit(dir)) ?? {};
      if (!told.reason) await killVmm(this.#host.layout, id);
      await processGone(shimPid);
      const exit = toMachineExit({ ...told, oom: told.oom === true || (await guestRanOut(told, dir)) }, shape.resources);
      await forget(this.#host, this.machineId, id);
      return exit;
    } catch (error) {
      this.#host.log.error({ machine: this.machineId, error }, "something of an ended machine could not be removed");
      return { reason: "lost", detail: "something of it could not be removed from the host", atUnixMs: Date.now() };
    }
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

/** A guest without memory panics, which ends its VMM as if by its own will; the console's last lines say so. */
async function guestRanOut(told: JsonObject, dir: string): Promise<boolean> {
  return told.reason === "exited" && (await readLog(dir)).includes("Kernel panic - not syncing: Out of memory");
}

/** Absent where it was not asked for. */
function count(value: unknown): number {
  return typeof value === "number" ? value : 0;
}
