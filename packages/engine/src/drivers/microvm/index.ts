import { MitosError } from "@mitos/protocol";
import type { Log } from "../../actions.ts";
import type { Driver, ProbeResult } from "../../driver.ts";

export interface MicrovmOptions {
  readonly dataDir: string;
  readonly runtimeDir: string;
  readonly log: Log;
  readonly accel: "kvm" | "tcg";
}

/** Seam: the driver itself is written beside this part. */
export async function createMicrovmDriver(_options: MicrovmOptions): Promise<Driver> {
  throw new MitosError("not_supported", { cause: "this build has no microVM driver" });
}

export async function probeMicrovm({ accel }: MicrovmOptions): Promise<ProbeResult> {
  const detail = "this build has no microVM driver";
  return { usable: false, isolation: `microvm-${accel}`, detail, remedies: [], weaknesses: [] };
}
