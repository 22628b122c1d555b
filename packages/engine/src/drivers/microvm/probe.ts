import path from "node:path";
import type { ProbeResult } from "../../driver.ts";
import { findGuest, firstLine, MissingPart } from "../host/parts.ts";
import { allowNamespaces, cachedProbe, tryMachinesBeside } from "../host/probe.ts";
import { findAssets } from "./assets.ts";
import { createMicrovmDriver, type MicrovmOptions } from "./index.ts";
import { probeKvm } from "./kvm.ts";

const probeVersion = 2;

/**
 * Whether this machine can run virtual machines with this accelerator, found by doing it: one is booted, saved and restored, and both must answer. KVM
 * is timed first, since a device that opens proves nothing. A good answer is kept in the data directory until the host boots again or QEMU, the kernel
 * or the agent change; a bad one is asked for anew each time.
 *
 * Must not run beside a driver of the same data directory.
 */
export async function probeMicrovm(options: MicrovmOptions): Promise<ProbeResult> {
  const { dataDir, accel } = options;
  try {
    const guest = await findGuest(options.guest);
    if (accel === "kvm") {
      const kvm = await probeKvm(guest);
      if (!kvm.usable) return notUsable(options, kvm.detail, [kvm.remedy]);
    }
    const { vmm, kernel } = await findAssets(guest);
    const parts = [probeVersion, vmm.root, vmm.build, kernel.hash, guest.hash, accel];
    return await cachedProbe(path.join(dataDir, "microvm", `probe-${accel}.json`), parts, async () => {
      await tryMachinesBeside(options, (folders) => createMicrovmDriver({ ...options, ...folders }));
      const detail = `${vmm.build}, Linux ${kernel.release}: a virtual machine was booted, saved and restored on this machine`;
      return { usable: true, isolation: `microvm-${accel}`, detail, remedies: [], weaknesses: weaknesses(options) };
    });
  } catch (error) {
    const detail = firstLine(error);
    return notUsable(options, detail, error instanceof MissingPart ? [error.remedy] : remediesFor(detail));
  }
}

function weaknesses({ accel }: MicrovmOptions): string[] {
  return [
    ...(accel === "tcg"
      ? ["Without KVM the processor is emulated: programs run many times slower, and the walls are QEMU's, not the hardware's."]
      : []),
    ...(process.getuid?.() === 0
      ? []
      : ["Without root there are no cgroups: the host does not limit what the monitor of a sandbox uses beside its memory."]),
  ];
}

function notUsable({ accel }: MicrovmOptions, detail: string, remedies: readonly string[]): ProbeResult {
  return { usable: false, isolation: `microvm-${accel}`, detail, remedies, weaknesses: [] };
}

/** What commonly keeps virtual machines from running, by what is said then. */
function remediesFor(detail: string): string[] {
  if (/user namespace|namespace|operation not permitted|unshare/i.test(detail)) {
    return [allowNamespaces];
  }
  return ["Start the server with --log-level debug to see what QEMU said."];
}
