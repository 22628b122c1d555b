/** Machines whose agent is a hostile program, behind the real shim and without a sandbox around it: it is the host that is tested. */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import type { Driver, Machine, MachineExit, OwnerEntry, RestoreSpec, Snapshot, SnapshotOptions } from "../../packages/engine/src/driver.ts";
import { readConsole } from "../../packages/engine/src/drivers/host/console.ts";
import { toMachineExit } from "../../packages/engine/src/drivers/host/exit.ts";
import { findGuest } from "../../packages/engine/src/drivers/host/parts.ts";
import { readExit } from "../../packages/engine/src/drivers/host/shim.ts";
import { protocolVersion } from "../../packages/engine/src/link/client.ts";
import { connectShim, type ShimConnection } from "../../packages/engine/src/link/transport.ts";
import { until } from "../support/until.ts";

const agent = path.join(import.meta.dirname, "../fixtures/hostile-agent.ts");
const requirements = { driver: "hostile", engineBuild: "", agentHash: "", protocolVersion, cpu: "", hostFiles: {} };

export class HostileDriver implements Driver {
  readonly name = "gvisor";
  readonly isolation = "gvisor";
  /** How machines that start from now on misbehave; empty = they do not. */
  behaviour = "";
  readonly machines = new Map<string, HostileMachine>();
  readonly #dir: string;

  constructor(dataDir: string) {
    this.#dir = path.join(dataDir, "hostile");
    mkdirSync(this.#dir, { mode: 0o700 });
  }

  boot(spec: RestoreSpec): Promise<Machine> {
    return this.#start(spec, "");
  }

  restore(_snapshot: Snapshot, spec: RestoreSpec): Promise<Machine> {
    return this.#start(spec, this.behaviour);
  }

  async snapshot(machine: Machine, dir: string, { leaveRunning, quiet }: SnapshotOptions): Promise<Snapshot> {
    await quiet?.begin();
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    writeFileSync(path.join(dir, "hostile"), "");
    if (!leaveRunning) await machine.end("saved");
    return { dir, bytes: 1, requirements };
  }

  async checkSnapshot(): Promise<void> {}
  prepare(): void {}
  async collectRoots(): Promise<void> {}

  async ownersOf(): Promise<readonly OwnerEntry[]> {
    return [];
  }

  async reattach(): Promise<MachineExit> {
    return { reason: "lost", detail: "it is not kept", atUnixMs: Date.now() };
  }

  async sweep(keep: ReadonlySet<string>): Promise<void> {
    await Promise.all([...this.machines.values()].filter(({ machineId }) => !keep.has(machineId)).map((machine) => machine.end("swept")));
  }

  async close(): Promise<void> {
    await this.sweep(new Set());
  }

  async #start({ machineId }: RestoreSpec, behaviour: string): Promise<Machine> {
    const dir = path.join(this.#dir, machineId);
    mkdirSync(dir, { mode: 0o700 });
    const { path: guestPath } = await findGuest(undefined);
    const shim = spawn(guestPath, ["shim", "--dir", dir], { stdio: ["ignore", "pipe", "inherit"], cwd: "/" });
    const [ready] = await Promise.race([once(shim.stdout, "data"), once(shim, "close")]);
    if (String(ready) !== "ready\n") throw new Error(`the shim did not start: ${ready}`);
    shim.stdout.destroy();
    const [link, control] = await Promise.all(["shim.sock", "control.sock"].map((name) => connectShim(path.join(dir, name))));
    const machine = new HostileMachine(machineId, dir, link!, control!);
    this.machines.set(machineId, machine);
    void machine.exited.then(() => this.machines.delete(machineId));
    const running = control!.request("run", { argv: [process.execPath, agent, behaviour, dir], stdio: "link", timeout_ms: 300_000 });
    running.catch(() => undefined); // it is answered when the agent ends, or not at all
    try {
      const pidFile = path.join(dir, "machine.pid");
      await until("the agent runs", () => existsSync(pidFile));
      await control!.request("watch", { pid_file: pidFile });
      return machine;
    } catch (error) {
      await machine.end("start failed");
      throw error;
    }
  }
}

class HostileMachine implements Machine {
  readonly machineId: string;
  readonly transport;
  readonly exited: Promise<MachineExit>;
  readonly #dir: string;
  readonly #control: ShimConnection;

  constructor(machineId: string, dir: string, link: ShimConnection, control: ShimConnection) {
    this.machineId = machineId;
    this.#dir = dir;
    this.transport = link.transport;
    this.#control = control;
    control.onEvent(({ event }) => {
      if (event === "link_closed") link.close();
    });
    this.exited = control.closed.then(async () => {
      link.close();
      const exit = toMachineExit((await readExit(dir)) ?? {}, undefined);
      rmSync(dir, { recursive: true, force: true });
      return exit;
    });
  }

  async setDeadline(unixMs: number | null): Promise<void> {
    await this.#control.request("deadline", { unix_ms: unixMs === null ? null : Math.floor(unixMs), reason: "deadline" });
  }

  async freeze(): Promise<void> {}
  async thaw(): Promise<void> {}

  async meter() {
    const { memory_bytes: memoryBytes, cpu_ms: cpuMs } = await this.#control.request("meter");
    return { memoryBytes: Number(memoryBytes), sharedBytes: 0, cpuMs: Number(cpuMs) };
  }

  console(): Promise<Uint8Array> {
    return readConsole(this.#dir);
  }

  async end(reason: string): Promise<void> {
    await this.#control.request("end", { reason }).catch(() => undefined);
    await this.exited;
  }
}
