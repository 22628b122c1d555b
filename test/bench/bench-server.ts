import { mkdtempSync, realpathSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { isDeepStrictEqual } from "node:util";
import { type CreateOptions, create, type Sandbox } from "@mitos/sdk";
import { ServerProcess } from "../support/server-process.ts";
import { noTraces, Tracker } from "../support/traces.ts";
import { HostMachines } from "./machines.ts";

/** `mitos serve` as a user starts it, in a process of its own, on a new data directory, with the default template built. */
export class BenchServer implements AsyncDisposable {
  readonly dataDir: string;
  readonly machines: HostMachines;
  readonly #process: ServerProcess;
  readonly #tracker: Tracker;

  private constructor(dataDir: string, machines: HostMachines, server: ServerProcess) {
    this.dataDir = dataDir;
    this.machines = machines;
    this.#process = server;
    this.#tracker = new Tracker(dataDir);
  }

  static async start(): Promise<BenchServer> {
    const dataDir = realpathSync(mkdtempSync(path.join(os.tmpdir(), "mitos-bench-")));
    // In a group of its own: Ctrl-C is this program's to answer, by ending the server in order.
    const server = await ServerProcess.start(dataDir, { args: ["--ephemeral"], through: ["setsid"] });
    const bench = new BenchServer(dataDir, await HostMachines.of(dataDir), server);
    await (await bench.create()).terminate();
    return bench;
  }

  create(options: Omit<CreateOptions, "baseUrl"> = {}): Promise<Sandbox> {
    return create({ ...options, baseUrl: this.#process.url });
  }

  /**
   * Measures a start of one machine, when nothing else is under way on this server.
   *
   * @param pool - whether a machine stands ready for it
   * @throws when that is not how it was started: the figure would be another one
   */
  async start<T>(pool: "hit" | "miss", work: () => Promise<T>): Promise<T> {
    await this.machines.atRest();
    const before = await this.#poolStarts(pool);
    const result = await work();
    const after = await this.#poolStarts(pool);
    if (after === before) throw new Error(`a machine should have been started with a ${pool} of the pool, and was not`);
    return result;
  }

  /** @throws when something of it is left on this host */
  async [Symbol.asyncDispose](): Promise<void> {
    const { code, signal, err } = await this.#process.stop();
    if (code !== 0) throw new Error(`the server ended with ${code ?? signal}: ${err}`);
    rmSync(this.dataDir, { recursive: true, force: true });
    const left = this.#tracker.find();
    if (!isDeepStrictEqual(left, noTraces)) throw new Error(`the server has left something on this host: ${JSON.stringify(left)}`);
  }

  async #poolStarts(result: "hit" | "miss"): Promise<number> {
    const text = await (await fetch(`${this.#process.url}/metrics`)).text();
    const value = new RegExp(`^mitos_pool_starts_total\\{[^}]*result="${result}"[^}]*\\} (\\d+)$`, "m").exec(text)?.[1];
    if (value === undefined) throw new Error("the server does not tell how its machines are started");
    return Number(value);
  }
}
