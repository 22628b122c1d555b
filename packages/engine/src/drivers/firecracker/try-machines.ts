import { randomBytes } from "node:crypto";
import path from "node:path";
import { resourceDefaults } from "@mitos/protocol";
import type { Driver } from "../../driver.ts";
import { LinkClient } from "../../link/client.ts";

/**
 * Boots a machine, saves it and restores it; both must answer. Nothing of them is left, whatever comes of it.
 *
 * @param driver - of a data directory that is nobody else's; closed afterwards
 * @throws MitosError with the first thing that went wrong
 */
export async function tryMachines(driver: Driver, dataDir: string): Promise<void> {
  const spec = (name: string) => ({
    machineId: `${name}-${randomBytes(4).toString("hex")}`,
    root: { kind: "host" as const },
    resources: { ...resourceDefaults, memSizeMiB: 256 },
    hostName: "probe",
  });
  try {
    const booted = await driver.boot(spec("boot"));
    const link = new LinkClient(booted.transport);
    await link.hello();
    await link.quiesce();
    const snapshot = await driver.snapshot(booted, path.join(dataDir, "snapshot"), { leaveRunning: false, durable: false });
    const restored = await driver.restore(snapshot, spec("rest"));
    await new LinkClient(restored.transport).hello();
    await restored.end("probed");
  } finally {
    await driver.sweep(new Set());
    await driver.close();
  }
}
