import { rm } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { MitosError } from "@mitos/protocol";
import type { Machine } from "../../driver.ts";
import { memoryLimitBytes, watchedFolders } from "../host/cgroup.ts";
import { toMachineExit } from "../host/exit.ts";
import { nameOf } from "../host/layout.ts";
import { ShimMachine } from "../host/machine.ts";
import { runCommand } from "../host/shim.ts";
import { type Container, removeTraces } from "./container.ts";
import type { Host } from "./host.ts";
import type { Layout } from "./layout.ts";
import { killContainer } from "./processes.ts";

const startTimeoutMs = 30_000;
/** Restores read the whole saved memory: this much longer for each GiB. */
const timeoutPerGiBMs = 30_000;
const memoryCheckMs = 500;
/** How long it is waited for a moment in which nothing runs. */
const restMs = 3_000;
const restLookMs = 5;

/** A started or restored container. */
export class GvisorMachine extends ShimMachine<Container> implements Machine {
  #frozen = false;

  constructor(host: Host, container: Container, machineId: string) {
    const atEnd = {
      kill: () => killContainer(host.layout, container.id),
      forget: () => forget(host, machineId, container.id),
      exit: toMachineExit,
    };
    super(machineId, container, container.shape.resources, atEnd, host.log);
  }

  get container(): Container {
    return this.keeper;
  }

  /**
   * The sentry first, so that it starts no further process, then those in which it runs the guest's code: a loop without system calls would go on
   * in them. Not by the freezer cgroup: what is frozen there (v1) cannot be killed. Only while nothing in it runs: gVisor kills a program that has computed for some time when it was stopped, and that has not come to a system call
   * when the machine goes on.
   *
   * @throws unavailable when something runs all the time
   */
  async freeze(): Promise<void> {
    const until = performance.now() + restMs;
    while ((await this.ask("freeze")).frozen !== true) {
      if (performance.now() > until) throw new MitosError("unavailable", { cause: "a program in this machine does not come to rest" });
      await sleep(restLookMs);
    }
    this.#frozen = true;
  }

  async thaw(): Promise<void> {
    await this.ask("signal", { signal: "SIGCONT", descendants: true });
    this.#frozen = false;
  }

  get frozen(): boolean {
    return this.#frozen;
  }

  /** Lets a runsc command work on this machine. */
  run(doing: string, argv: readonly string[], timeoutMs: number): Promise<void> {
    return runCommand(this.container.control, doing, argv, timeoutMs);
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

/** Removes what is left of a machine that has ended. */
export async function forget(host: Host, machineId: string, containerId: string): Promise<void> {
  await removeTraces(host, containerId);
  await rm(nameOf(host.layout, machineId), { force: true });
}

export function notAMachine(layout: Layout): MitosError {
  return new MitosError("internal", { cause: `not a machine of ${layout.runtimeDir}` });
}
