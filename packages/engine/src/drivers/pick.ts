import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import type { EngineOptions, Log } from "../actions.ts";
import type { Driver, ProbeResult } from "../driver.ts";
import { createGvisorDriver, probeGvisor } from "./gvisor/index.ts";
import { defaultRuntimeDir } from "./host/layout.ts";
import { openMockDriver } from "./mock/driver.ts";

/**
 * The driver that was asked for; `auto` takes the best one that works here. The mock is only ever taken by name.
 *
 * @throws not_supported with why no sandbox can run here, and what to install
 */
export async function pickDriver({ engine, dataDir, log }: EngineOptions): Promise<Driver> {
  if (engine === "mock") return openMockDriver();
  const gvisor = { dataDir, runtimeDir: await defaultRuntimeDir(dataDir), log };
  const { usable, detail, remedies, weaknesses } = await probeGvisor(gvisor);
  if (!usable) {
    throw new MitosError("not_supported", {
      message: "no engine can run sandboxes on this machine",
      cause: `gvisor: ${detail}`,
      remediation: [...remedies, "`mitos doctor` says more."].join(" "),
    });
  }
  for (const weakness of weaknesses) log.warn({ engine: "gvisor", weakness }, "this machine isolates less than it could");
  return createGvisorDriver(gvisor);
}

/** What `auto` would find, for `mitos doctor`: tried in a folder of its own, so that a running server is not disturbed. */
export async function probeEngine(): Promise<ProbeResult> {
  const dataDir = await mkdtemp(path.join(tmpdir(), "mitos-probe-"));
  try {
    return await probeGvisor({ dataDir, runtimeDir: await defaultRuntimeDir(dataDir), log: silent });
  } finally {
    await rm(dataDir, { recursive: true, force: true });
  }
}

const silent: Log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };
