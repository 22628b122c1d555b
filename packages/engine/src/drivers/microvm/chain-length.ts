import { setTimeout as delay } from "node:timers/promises";
import { collapseProgress, hurryCollapse, type RunSteps, settleCollapse, startCollapse } from "./collapse.ts";
import { chainLengthMax, collapseAbove, type Disk } from "./disks.ts";
import type { Host } from "./host.ts";
import type { MicrovmMachine } from "./machine.ts";
import { requireDisk, runSteps } from "./vmm.ts";

const stepTimeoutMs = 20_000;
/** How often it is asked whether a collapse has ended, of which nobody is told. */
const lookMs = 1_000;
const hurriedLookMs = 20;
/** What takes longer is called off: the chain grows on, and the next fork tries again. */
const hurriedMs = 120_000;

/**
 * To be called before a machine is saved, with nothing else beside it: a collapse of its disk's chain is called off. One of a chain that has become
 * too long is waited for instead, and begun first where there is none.
 */
export async function settleChain(host: Host, machine: MicrovmMachine): Promise<void> {
  const disk = await diskOf(host, machine);
  if (disk.chain.length >= chainLengthMax) await hurry(host, machine, disk);
  if (machine.collapse) await settle(host, machine, disk);
}

/** To be called when a machine has been forked: when its chain has become long, it is made short in the background. */
export function shortenChain(host: Host, machine: MicrovmMachine): void {
  const collapse = {};
  const shorten = async () => {
    await machine.whenAwake(async () => {
      const disk = await diskOf(host, machine);
      if (machine.collapse || disk.chain.length <= collapseAbove) return;
      await startCollapse(runIn(machine), disk);
      machine.collapse = collapse;
    });
    while (machine.collapse === collapse) {
      await delay(lookMs, undefined, { ref: false });
      await machine.whenAwake(async () => {
        if (machine.collapse !== collapse || (await collapseProgress(runIn(machine))) !== undefined) return;
        await settle(host, machine, await diskOf(host, machine));
      });
    }
  };
  shorten().catch((error: unknown) => {
    // It has ended, or its server has let go of it. Whatever else it is: the chain is as good as before, only long.
    host.log.debug({ machine: machine.machineId, error: String(error) }, "the disk of a machine was not collapsed");
  });
}

async function hurry(host: Host, machine: MicrovmMachine, disk: Disk): Promise<void> {
  const run = runIn(machine);
  try {
    if (!machine.collapse) await startCollapse(run, disk);
    machine.collapse ??= {};
    await hurryCollapse(run);
    const until = Date.now() + hurriedMs;
    while ((await collapseProgress(run)) !== undefined && Date.now() < until) await delay(hurriedLookMs);
  } catch (error) {
    host.log.warn(
      { machine: machine.machineId, files: disk.chain.length, error: String(error) },
      "a long chain of disks was not collapsed",
    );
  }
}

/** The disk keeps its id, so that what is recorded of the machine stays true. */
async function settle(host: Host, machine: MicrovmMachine, disk: Disk): Promise<void> {
  await settleCollapse(runIn(machine), host.disks, disk, machine.vmm.spare?.path);
  machine.collapse = undefined;
}

async function diskOf({ disks }: Host, { vmm }: MicrovmMachine): Promise<Disk> {
  const id = requireDisk(vmm);
  const chain = await disks.chainOf(id);
  return { id, path: chain.at(-1) as string, chain };
}

function runIn({ vmm }: MicrovmMachine): RunSteps {
  return async (steps) => (await runSteps(vmm, "shorten the chain of a disk", steps, stepTimeoutMs)).results;
}
