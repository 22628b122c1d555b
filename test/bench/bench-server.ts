import { mkdtempSync, realpathSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { isDeepStrictEqual } from "node:util";
import { type CreateOptions, create, type Sandbox } from "@mitos/sdk";
import { ServerProcess } from "../support/server-process.ts";
import { noTraces, Tracker } from "../support/traces.ts";
import { until } from "../support/until.ts";
import { HostMachines } from "./machines.ts";

/** `pooled`: a machine waited and was only adopted; `prepared`: it was restored into a container made ahead; `unprepared`: into a new one. */
export type Way = "pooled" | "prepared" | "unprepared";

const countOf = {
  pooled: { name: "mitos_pool_creates_total", result: "hit" },
  prepared: { name: "mitos_pool_starts_total", result: "hit" },
  unprepared: { name: "mitos_pool_starts_total", result: "miss" },
} as const satisfies Record<Way, Metric>;

interface Metric {
  readonly name: string;
  readonly result?: "hit" | "miss";
}

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

  /** @param options.env - of the server, beside this program's own */
  static async start({ env = {} }: { env?: Readonly<Record<string, string>> } = {}): Promise<BenchServer> {
    const dataDir = realpathSync(mkdtempSync(path.join(os.tmpdir(), "mitos-bench-")));
    // In a group of its own: Ctrl-C is this program's to answer, by ending the server in order.
    const server = await ServerProcess.start(dataDir, { args: ["--ephemeral"], through: ["setsid"], env });
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
   * @throws when it was started in another way: the figure would be another one
   */
  async start<T>(way: Way, work: () => Promise<T>): Promise<T> {
    if (way === "pooled") await until("a machine waits", async () => (await this.#metric({ name: "mitos_pool_machines" })) > 0);
    await this.machines.atRest();
    const before = await this.#metric(countOf[way]);
    const result = await work();
    if ((await this.#metric(countOf[way])) === before) throw new Error(`a machine should have been started ${way}, and was not`);
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

  async #metric({ name, result }: Metric): Promise<number> {
    const text = await (await fetch(`${this.#process.url}/metrics`)).text();
    const labels = result === undefined ? "" : `\\{[^}]*result="${result}"[^}]*\\}`;
    const value = new RegExp(`^${name}${labels} (\\d+)$`, "m").exec(text)?.[1];
    if (value === undefined) throw new Error(`the server does not tell ${name}`);
    return Number(value);
  }
}
