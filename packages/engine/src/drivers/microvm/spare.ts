import { setTimeout as delay } from "node:timers/promises";
import { openNext } from "./disk-steps.ts";
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
      const overlay = await host.disks.createLoose();
      try {
        const current = (await host.disks.chainOf(requireDisk(vmm))).at(-1) as string;
        await runSteps(vmm, "open an overlay ahead", openNext({ current, next: overlay.path }), openTimeoutMs);
        if (machine.isGone) throw new Error("it has ended meanwhile");
        vmm.spare = overlay;
      } catch (error) {
        overlay[Symbol.dispose]();
        throw error;
      }
    });
  };
  open().catch((error: unknown) => {
    // Its next fork makes one.
    host.log.debug({ machine: machine.machineId, error: String(error) }, "no overlay was opened ahead");
  });
}

/** The overlay that a machine goes on in, and whether it has it open. @throws as `Disks.create`; a spare one stays what it was */
export async function takeNext({ disks }: Host, vmm: Vmm, frozen: string): Promise<{ next: NewDisk; isOpen: boolean }> {
  const isOpen = vmm.spare !== undefined;
  const next = await disks.over(frozen, vmm.spare);
  vmm.spare = undefined;
  return { next, isOpen };
}
