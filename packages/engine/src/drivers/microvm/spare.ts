import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { openNext, type Succession } from "./disk-steps.ts";
import type { NewDisk } from "./disks.ts";
import type { Host } from "./host.ts";
import type { MicrovmMachine } from "./machine.ts";
import { requireDisk, runSteps, type Vmm } from "./vmm.ts";

/** The children of the fork that comes first are starting, and need the processors more. */
const afterForkMs = 200;
const openTimeoutMs = 20_000;

/** To be called when a machine has been forked, as it is likely to be again: what it goes on in after the next fork is made and opened in the background. */
export function openSpare(host: Host, machine: MicrovmMachine): void {
  const { vmm } = machine;
  const open = async () => {
    await delay(afterForkMs, undefined, { ref: false });
    await machine.whenAwake(async () => {
      if (vmm.spare) return;
      // What it lies over is written to until then, which nobody reads there before.
      const next = await host.disks.create(requireDisk(vmm));
      try {
        await runSteps(vmm, "open an overlay ahead", openNext(successionOf(vmm, next)), openTimeoutMs);
        if (machine.isGone) throw new Error("it has ended meanwhile");
        vmm.spare = next;
      } catch (error) {
        next[Symbol.dispose]();
        throw error;
      }
    });
  };
  open().catch((error: unknown) => {
    // Its next fork makes one.
    host.log.debug({ machine: machine.machineId, error: String(error) }, "no overlay was opened ahead");
  });
}

export function successionOf({ dir }: Vmm, next: NewDisk): Succession {
  return { current: next.chain.at(-2) as string, next: next.path, deviceState: path.join(dir, `devices-${next.id}`) };
}

/** The overlay that a machine goes on in, and whether it has it open. @throws as `Disks.create` */
export async function takeNext({ disks }: Host, vmm: Vmm, frozen: string): Promise<{ next: NewDisk; isOpen: boolean }> {
  const { spare } = vmm;
  vmm.spare = undefined;
  return spare ? { next: spare, isOpen: true } : { next: await disks.create(frozen), isOpen: false };
}
