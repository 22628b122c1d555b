import { mkdtempSync, realpathSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { Sandbox, type SandboxServer } from "@mitos/sdk";
import { expect } from "vitest";
import { keepProbes, lendProbes } from "../support/kept-probes.ts";
import { ServerProcess, type StartOptions } from "../support/server-process.ts";
import { noTraces, Tracker } from "../support/traces.ts";

/**
 * A data directory whose servers come and go. They have no machines but those of sandboxes, so that what is on the host can be accounted for, unless
 * they are given another `--pool-size`. Disposing of it ends everything and fails when something is left.
 */
export class ServedDirectory implements AsyncDisposable {
  readonly dataDir: string;
  readonly #tracker: Tracker;
  readonly #options: StartOptions;
  /** The server now, or the last one. */
  server!: ServerProcess;

  private constructor(dataDir: string, options: StartOptions) {
    this.dataDir = dataDir;
    this.#options = options;
    this.#tracker = new Tracker(dataDir);
  }

  /** @param parent - where the directory is made, for example on a small disk */
  static async open(options: StartOptions = {}, parent: string = os.tmpdir()): Promise<ServedDirectory> {
    const directory = new ServedDirectory(realpathSync(mkdtempSync(path.join(parent, "mitos-faults-"))), options);
    lendProbes(directory.dataDir);
    await directory.restart();
    keepProbes(directory.dataDir);
    return directory;
  }

  get api(): SandboxServer {
    return this.server.api;
  }

  /** The next server on this directory; the earlier one has ended. */
  async restart(options: StartOptions = this.#options): Promise<ServerProcess> {
    this.server = await ServerProcess.start(this.dataDir, { ...options, args: ["--pool-size", "0", ...(options.args ?? [])] });
    return this.server;
  }

  /** The server is killed, and the next one takes up what it left. */
  async crash(): Promise<void> {
    await this.server.kill();
    await this.restart();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const { child } = this.server;
    if (child.exitCode !== null || child.signalCode !== null) await this.restart();
    for (const { id } of await this.api.listSandboxes()) await new Sandbox({ id, endpoint: this.server.url }).terminate();
    expect(await this.server.stop()).toMatchObject({ code: 0 });
    // Templates wait on tmpfs for the next server; the one that ends for good gives the memory back.
    await this.restart({ ...this.#options, args: [...(this.#options.args ?? []), "--ephemeral"] });
    expect(await this.server.stop()).toMatchObject({ code: 0 });
    rmSync(this.dataDir, { recursive: true, force: true });
    expect(this.#tracker.find()).toEqual(noTraces);
  }
}
