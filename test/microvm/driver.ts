/** The driver of virtual machines in a folder of its own, for tests of one machine and its children. */

import { mkdirSync, mkdtempSync } from "node:fs";
import { rm } from "node:fs/promises";
import path from "node:path";
import type { Driver } from "../../packages/engine/src/driver.ts";
import { defaultRuntimeDir } from "../../packages/engine/src/drivers/host/layout.ts";
import { createMicrovmDriver, type MicrovmOptions } from "../../packages/engine/src/drivers/microvm/index.ts";
import { MicrovmMachine } from "../../packages/engine/src/drivers/microvm/machine.ts";
import type { Vmm } from "../../packages/engine/src/drivers/microvm/vmm.ts";
import type { Sandbox } from "../gvisor/sandbox.ts";
import { engineOptions } from "../support/engine-under-test.ts";

const log = { debug() {}, info() {}, warn: console.warn, error: console.error };

type Asked = Partial<Pick<MicrovmOptions, "newBaseFromBytes" | "newBaseTimeoutMs" | "log">>;

/** All machines end, and all of it goes, when it is disposed of. */
export class DriverUnderTest implements AsyncDisposable {
  readonly base: string;
  readonly dataDir: string;
  readonly runtimeDir: string;
  readonly #options: MicrovmOptions;
  driver: Driver;

  private constructor(base: string, options: MicrovmOptions, driver: Driver) {
    this.base = base;
    this.dataDir = options.dataDir;
    this.runtimeDir = options.runtimeDir;
    this.#options = options;
    this.driver = driver;
  }

  /** @param parent - where its folder is made, for example on a small disk */
  static async open(parent = "/tmp", asked: Asked = {}): Promise<DriverUnderTest> {
    const base = mkdtempSync(path.join(parent, "mitos-microvm-"));
    const dataDir = path.join(base, "data");
    mkdirSync(dataDir);
    const runtimeDir = await defaultRuntimeDir(dataDir);
    const options = { dataDir, runtimeDir, log, accel: engineOptions.accel ?? "tcg", ...asked };
    const driver = await createMicrovmDriver(options);
    await driver.sweep(new Set());
    return new DriverUnderTest(base, options, driver);
  }

  /**
   * As a server that is killed and started anew finds it: its machines run on.
   *
   * @param asked - until the next restart, beside what was asked for at first
   */
  async restart(asked: Asked = {}): Promise<void> {
    await this.driver.close();
    this.driver = await createMicrovmDriver({ ...this.#options, ...asked });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.driver.sweep(new Set()); // what a failed test has left
    await this.driver.close();
    for (const dir of [this.base, this.runtimeDir]) await rm(dir, { recursive: true, force: true });
  }
}

/** The monitor of a sandbox that is a virtual machine. */
export function vmmOf({ machine }: Sandbox): Vmm {
  if (!(machine instanceof MicrovmMachine)) throw new Error("not a virtual machine");
  return machine.vmm;
}
