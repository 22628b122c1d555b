import { rm } from "node:fs/promises";
import { MitosError } from "@mitos/protocol";
import type { FrameTransport, Machine, MachineExit, MachineMetering } from "../../driver.ts";
import type { JsonObject } from "../../link/transport.ts";
import { memoryLimitBytes, watchedFolders } from "../host/cgroup.ts";
import { toMachineExit } from "../host/exit.ts";
import { nameOf } from "../host/layout.ts";
import { descendantsOf, processGone, sendSignal } from "../host/processes.ts";
import { readExit, runCommand } from "../host/shim.ts";
import { type Container, removeTraces } from "./container.ts";
import type { Host } from "./host.ts";
import type { Layout } from "./layout.ts";
import { killContainer } from "./processes.ts";

const endTimeoutMs = 20_000;
const startTimeoutMs = 30_000;
/** Restores read the whole saved memory: this much longer for each GiB. */
const timeoutPerGiBMs = 30_000;
const memoryCheckMs = 500;

/** A started or restored container. */
export class GvisorMachine implements Machine {
  readonly machineId: string;
  readonly container: Container;
  readonly transport: FrameTransport;
  readonly exited: Promise<MachineExit>;
  readonly #host: Host;
  #frozen = false;
  #released = false;
  #ending: Promise<void> | undefined;

  constructor(host: Host, container: Container, machineId: string) {
    this.#host = host;
    this.container = container;
    this.machineId = machineId;
    this.transport = container.link.transport;
    container.control.onEvent(({ event, error }) => {
      if (event !== "link_closed") return; // the end of the machine is told by exit.json
      host.log.warn({ machine: machineId, error }, "a machine broke the rules of the link: its shim passes nothing on any more");
      container.link.close();
    });
    this.exited = this.#follow();
  }

  async setDeadline(unixMs: number | null): Promise<void> {
    await this.#ask("deadline", { unix_ms: unixMs === null ? null : Math.max(0, Math.floor(unixMs)), reason: "deadline" });
  }

  /**
   * The sentry first, so that it starts no further process, then those in which it runs the guest's code: a loop without system calls would go on
   * in them. Not by the freezer cgroup: what is frozen there (v1) cannot be killed.
   */
  async freeze(): Promise<void> {
    this.#frozen = true;
    await this.#ask("signal", { signal: "SIGSTOP" });
    for (const pid of await descendantsOf(this.container.sentryPid)) sendSignal(pid, "SIGSTOP");
  }

  async thaw(): Promise<void> {
    for (const pid of await descendantsOf(this.container.sentryPid)) sendSignal(pid, "SIGCONT");
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

  /** Lets a runsc command work on this machine. */
  run(doing: string, argv: readonly string[], timeoutMs: number): Promise<void> {
    return runCommand(this.container.control, doing, argv, timeoutMs);
  }

  end(reason: string): Promise<void> {
    this.#ending ??= this.#end(reason);
    return this.#ending;
  }

  /** Lets go of a living machine: its shim keeps it for the next server, and `exited` never resolves here. */
  release(): void {
    this.#released = true;
    this.container.link.close();
    this.container.control.close();
  }

  async #end(reason: string): Promise<void> {
    const { promise: late, resolve } = Promise.withResolvers<"late">();
    const timer = setTimeout(resolve, endTimeoutMs, "late");
    // A shim that is gone already has been noticed by `exited`.
    const asked = this.container.control.request("end", { reason }).catch(() => undefined);
    const first = await Promise.race([this.exited, late]);
    clearTimeout(timer);
    if (first === "late") {
      this.#host.log.error({ machine: this.machineId }, "a machine's shim does not end it: killing it from outside");
      await killContainer(this.#host.layout, this.container.id); // ends both connections, so `exited` follows
      await this.exited;
    }
    await asked;
  }

  async #ask(op: string, fields: JsonObject = {}): Promise<JsonObject> {
    return this.container.control.request(op, fields);
  }

  async #follow(): Promise<MachineExit> {
    const { control, link, dir, shimPid, id } = this.container;
    // The shim ends with its machine, so the end of its connection is the end of the machine, told or not.
    await control.closed;
    if (this.#released) return new Promise(() => {});
    link.close();
    try {
      const told = (await readExit(dir)) ?? {};
      if (!told.reason) await killContainer(this.#host.layout, id);
      await processGone(shimPid);
      await forget(this.#host, this.machineId, id);
      return toMachineExit(told, this.container.shape.resources);
    } catch (error) {
      this.#host.log.error({ machine: this.machineId, error }, "something of an ended machine could not be removed");
      return { reason: "lost", detail: "something of it could not be removed from the host", atUnixMs: Date.now() };
    }
  }
}

/**
 * Makes a machine of a container: `start` runs the agent from the beginning, `restore` lets the saved one go on.
 * @throws MitosError; nothing of the machine is left then
 */
export async function activate(host: Host, container: Container, machineId: string, argv: readonly string[]): Promise<GvisorMachine> {
  const { control, dir, shape } = container;
  const machine = new GvisorMachine(host, container, machineId);
  const timeoutMs = startTimeoutMs + Math.ceil(shape.resources.memSizeMiB / 1024) * timeoutPerGiBMs;
  try {
    await Promise.all([
      control.request("watch", {
        pid: container.sentryPid,
        ...(host.cgroups ? watchedFolders(host.cgroups, container.id) : {}),
      }),
      ...(host.cgroups ? [] : [control.request("memory_limit", { bytes: memoryLimitBytes(shape.resources), interval_ms: memoryCheckMs })]),
      runCommand(control, "start a machine", argv, timeoutMs),
    ]);
    return machine;
  } catch (error) {
    host.log.warn({ machine: machineId, dir, error: String(error) }, "a machine did not start");
    await machine.end("start failed");
    throw error;
  }
}

/** Absent where it was not asked for. */
function count(value: unknown): number {
  return typeof value === "number" ? value : 0;
}

/** Removes what is left of a machine that has ended. */
export async function forget(host: Host, machineId: string, containerId: string): Promise<void> {
  await removeTraces(host, containerId);
  await rm(nameOf(host.layout, machineId), { force: true });
}

export function notAMachine(layout: Layout): MitosError {
  return new MitosError("internal", { cause: `not a machine of ${layout.runtimeDir}` });
}
