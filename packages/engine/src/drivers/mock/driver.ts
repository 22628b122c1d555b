import { mkdir, rename, stat, writeFile } from "node:fs/promises";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import type { Driver, Machine, MachineExit, MachineMetering, RestoreSpec, Snapshot, SnapshotRequirements } from "../../driver.ts";
import { MockAgent } from "./agent.ts";

/** What a mock machine claims to use: the life cycle can be metered, nothing else. */
const machineBytes = 1024 * 1024;
/** Nothing of Node's runs for longer at a time. */
const timerMsMax = 2 ** 31 - 1;

const requirements: SnapshotRequirements = {
  driver: "mock",
  engineBuild: "mock",
  agentHash: "mock",
  protocolVersion: 1,
  cpu: "any",
  hostFiles: {},
};

/** Machines that live and die but run nothing, for trying the life cycle of the API where no engine is usable. They end with the server. */
export function openMockDriver(): Driver {
  const machines = new Map<string, MockMachine>();

  function start(spec: RestoreSpec): Machine {
    const machine = new MockMachine(spec.machineId);
    machines.set(spec.machineId, machine);
    void machine.exited.then(() => machines.delete(spec.machineId));
    return machine;
  }

  return {
    name: "mock",
    isolation: "mock",
    boot: async (spec) => start(spec),
    ownersOf: async () => [],
    async snapshot(machine, dir, { leaveRunning, quiet }) {
      await quiet?.begin();
      const temporary = `${dir}.part`;
      await mkdir(temporary, { recursive: true, mode: 0o700 });
      await writeFile(path.join(temporary, "mock.json"), JSON.stringify({ machineId: machine.machineId }));
      await rename(temporary, dir);
      if (!leaveRunning) await machine.end("saved");
      return { dir, bytes: machineBytes, requirements };
    },
    checkSnapshot,
    async restore(snapshot, spec) {
      await checkSnapshot(snapshot);
      return start(spec);
    },
    prepare: () => {},
    async reattach(machineId) {
      return (
        machines.get(machineId) ??
        ({ reason: "lost", detail: "mock machines end with their server", atUnixMs: Date.now() } satisfies MachineExit)
      );
    },
    async sweep(keep) {
      await Promise.all([...machines.values()].filter(({ machineId }) => !keep.has(machineId)).map((machine) => machine.end("swept")));
    },
    collectRoots: async () => {},
    async close() {
      await Promise.all([...machines.values()].map((machine) => machine.end("the server ended")));
    },
  };
}

async function checkSnapshot(snapshot: Snapshot): Promise<void> {
  try {
    await stat(snapshot.dir);
  } catch (reason) {
    throw new MitosError("snapshot_incompatible", { cause: "the snapshot's folder is missing", reason });
  }
}

class MockMachine implements Machine {
  readonly machineId: string;
  readonly transport;
  readonly exited: Promise<MachineExit>;
  readonly #agent = new MockAgent();
  readonly #exit: (exit: MachineExit) => void;
  #deadline: NodeJS.Timeout | undefined;

  constructor(machineId: string) {
    this.machineId = machineId;
    this.transport = this.#agent.transport;
    const { promise, resolve } = Promise.withResolvers<MachineExit>();
    this.exited = promise;
    this.#exit = resolve;
  }

  async setDeadline(unixMs: number | null): Promise<void> {
    clearTimeout(this.#deadline);
    if (unixMs === null) return;
    const leftMs = unixMs - Date.now();
    const wake = () => (leftMs > timerMsMax ? this.setDeadline(unixMs) : this.#finish("deadline", "its time was up"));
    this.#deadline = setTimeout(wake, Math.min(timerMsMax, Math.max(0, leftMs)));
    this.#deadline.unref();
  }

  async freeze(): Promise<void> {}
  async thaw(): Promise<void> {}

  async meter(): Promise<MachineMetering> {
    return { memoryBytes: machineBytes, sharedBytes: 0, cpuMs: 0 };
  }

  async console(): Promise<Uint8Array> {
    return new Uint8Array();
  }

  async end(reason: string): Promise<void> {
    this.#finish("terminated", reason);
  }

  #finish(reason: MachineExit["reason"], detail: string): void {
    clearTimeout(this.#deadline);
    this.#exit({ reason, detail, atUnixMs: Date.now() });
    this.#agent.close();
  }
}
