import type { Log } from "../../actions.ts";
import type { FrameTransport, MachineExit, MachineMetering, MachineResources } from "../../driver.ts";
import type { JsonObject } from "../../link/transport.ts";
import { readConsole } from "./console.ts";
import { processGone } from "./processes.ts";
import { readExit, type ShimConnections } from "./shim.ts";

const endTimeoutMs = 20_000;

/** What a shim keeps: the folder of one machine on the host. */
export interface Keeper extends ShimConnections {
  readonly id: string;
  readonly dir: string;
  readonly shimPid: number;
}

/** What the driver of a machine does at its end. */
export interface MachineEnd {
  /** Kills every process of it from outside: its shim does not do it, or is gone. */
  kill(): Promise<void>;
  /** Removes what is left of it on the host. */
  forget(): Promise<void>;
  /** @param told - what its shim has said; empty when it said nothing */
  exit(told: JsonObject, resources: MachineResources): MachineExit | Promise<MachineExit>;
}

/** What every machine is that a shim keeps: its link, its deadline, its metering and its end. */
export class ShimMachine<K extends Keeper = Keeper> {
  readonly machineId: string;
  readonly keeper: K;
  readonly transport: FrameTransport;
  /** Resolves when the machine has ended and nothing of it is left on the host, as far as that can be removed. Never rejects. */
  readonly exited: Promise<MachineExit>;
  protected readonly log: Log;
  readonly #atEnd: MachineEnd;
  #released = false;
  #ending: Promise<void> | undefined;

  constructor(machineId: string, keeper: K, resources: MachineResources, atEnd: MachineEnd, log: Log) {
    this.machineId = machineId;
    this.keeper = keeper;
    this.transport = keeper.link.transport;
    this.#atEnd = atEnd;
    this.log = log;
    keeper.control.onEvent(({ event, error }) => {
      if (event !== "link_closed") return; // the end of the machine is told by exit.json
      log.warn({ machine: machineId, error }, "a machine broke the rules of the link: its shim passes nothing on any more");
      keeper.link.close();
    });
    this.exited = this.#follow(resources);
  }

  async setDeadline(unixMs: number | null): Promise<void> {
    await this.ask("deadline", { unix_ms: unixMs === null ? null : Math.max(0, Math.floor(unixMs)), reason: "deadline" });
  }

  async meter({ shared } = { shared: false }): Promise<MachineMetering> {
    const reply = await this.ask("meter", shared ? { shared } : {});
    return { memoryBytes: count(reply.memory_bytes), sharedBytes: count(reply.shared_bytes), cpuMs: count(reply.cpu_ms) };
  }

  console(): Promise<Uint8Array> {
    return readConsole(this.keeper.dir);
  }

  end(reason: string): Promise<void> {
    this.#ending ??= this.#end(reason).catch((error: unknown) => {
      this.#ending = undefined;
      this.log.error({ machine: this.machineId, error: String(error) }, "a machine could not be ended: it may live on until it is swept");
    });
    return this.#ending;
  }

  /** Lets go of a living machine: its shim keeps it for the next server, and `exited` never resolves here. */
  release(): void {
    this.#released = true;
    this.keeper.link.close();
    this.keeper.control.close();
  }

  protected ask(op: string, fields: JsonObject = {}): Promise<JsonObject> {
    return this.keeper.control.request(op, fields);
  }

  async #end(reason: string): Promise<void> {
    const { promise: late, resolve } = Promise.withResolvers<"late">();
    const timer = setTimeout(resolve, endTimeoutMs, "late");
    // A shim that is gone already has been noticed by `exited`.
    const asked = this.ask("end", { reason }).catch(() => undefined);
    const first = await Promise.race([this.exited, late]);
    clearTimeout(timer);
    if (first === "late") {
      this.log.error({ machine: this.machineId }, "a machine's shim does not end it: killing it from outside");
      await this.#atEnd.kill(); // ends both connections, so `exited` follows
      await this.exited;
    }
    await asked;
  }

  async #follow(resources: MachineResources): Promise<MachineExit> {
    const { control, link, dir, shimPid } = this.keeper;
    // The shim ends with its machine, so the end of its connection is the end of the machine, told or not.
    await control.closed;
    if (this.#released) return new Promise(() => {});
    link.close();
    let exit: MachineExit = { reason: "lost", detail: "something of it could not be removed from the host", atUnixMs: Date.now() };
    try {
      const told = (await readExit(dir)) ?? {};
      if (!told.reason) await this.#atEnd.kill();
      await processGone(shimPid);
      exit = await this.#atEnd.exit(told, resources);
      await this.#atEnd.forget();
    } catch (error) {
      this.log.error({ machine: this.machineId, error }, "something of an ended machine could not be removed");
    }
    return exit;
  }
}

/** Absent where it was not asked for. */
function count(value: unknown): number {
  return typeof value === "number" ? value : 0;
}
