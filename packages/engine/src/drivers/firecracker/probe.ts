import { randomBytes } from "node:crypto";
import type { ProbeResult } from "../../driver.ts";
import { closeCgroups, openCgroups } from "../host/cgroup.ts";
import { findGuest, firstLine, MissingPart } from "../host/parts.ts";
import { tryMachinesBeside } from "../host/probe.ts";
import { findAssets } from "../microvm/assets.ts";
import { probeKvm } from "../microvm/kvm.ts";
import { type Firecracker, findFirecracker } from "./find.ts";
import { createFirecrackerDriver, type FirecrackerOptions } from "./index.ts";

const isolation = "microvm-firecracker";

/**
 * Whether Firecracker can run sandboxes here: its program, the parts of its machines, a KVM that is worth using; then by doing it.
 *
 * Must not run beside a driver of the same data directory.
 */
export async function probeFirecracker(options: FirecrackerOptions): Promise<ProbeResult> {
  const notUsable = (detail: string, remedies: readonly string[]) =>
    ({ usable: false, isolation, detail, remedies, weaknesses: [] }) as const;
  try {
    const [firecracker, guest] = await Promise.all([findFirecracker(options), findGuest(options.guest)]);
    const [kvm, { kernel }] = await Promise.all([probeKvm(guest), findAssets(guest)]);
    if (!kvm.usable) return notUsable(`${firecracker.build} needs KVM: ${kvm.detail}`, [kvm.remedy]);
    await tryMachinesBeside(options, (folders) => createFirecrackerDriver({ ...options, ...folders }));
    return {
      usable: true,
      isolation,
      detail: `${firecracker.build} with the kernel ${kernel.release}: a sandbox was booted, saved and restored on this machine`,
      remedies: [],
      weaknesses: await weaknesses(firecracker),
    };
  } catch (error) {
    return notUsable(firstLine(error), error instanceof MissingPart ? [error.remedy] : []);
  }
}

async function weaknesses({ jailer }: Firecracker): Promise<string[]> {
  const isRoot = process.getuid?.() === 0;
  const found: string[] = [];
  if (!jailer && isRoot) found.push("There is no jailer: each VMM runs as root, without capabilities, and sees the host's files.");
  if (!isRoot) found.push("Without root there is no jail and no cgroup: each VMM runs as this user and sees what it sees.");
  else {
    const cgroups = await openCgroups(`mitos-probe-${randomBytes(4).toString("hex")}`);
    if (cgroups) await closeCgroups(cgroups);
    else found.push("The cgroup file system cannot be written: a VMM's memory is watched by its shim.");
  }
  return found;
}
