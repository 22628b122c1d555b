import type { MachineExit } from "../../driver.ts";
import { toGuestExit } from "../host/exit.ts";
import { keeperOf, machineDir } from "../host/layout.ts";
import { readExit } from "../host/shim.ts";
import { callOffCollapse, settleCollapse } from "./collapse.ts";
import { askForTopDisk, topDiskOf } from "./disk-steps.ts";
import type { Host } from "./host.ts";
import { forget, MicrovmMachine } from "./machine.ts";
import { callOffNewBase } from "./new-base.ts";
import { killKeeper } from "./processes.ts";
import { openVmm, recordMachine, release, runSteps, type Vmm } from "./vmm.ts";
import { execute } from "./vmm-steps.ts";

const settleTimeoutMs = 20_000;

/** A machine of an earlier server: still alive, or how it ended; nothing of an ended one is left afterwards. */
export async function reattach(host: Host, machineId: string): Promise<MicrovmMachine | MachineExit> {
  const keeperId = await keeperOf(host.layout, machineId);
  if (!keeperId) return { reason: "lost", detail: "nothing of it is on this host", atUnixMs: Date.now() };
  try {
    const vmm = await openVmm(host, keeperId);
    try {
      // Refused while the shim watches no machine: the server died before the start was complete.
      await vmm.control.request("meter");
      // Its monitor answers nothing while the earlier server's freeze lasts.
      await vmm.control.request("signal", { signal: "SIGCONT" });
      await settle(host, vmm);
      return new MicrovmMachine(host, vmm, machineId);
    } catch (error) {
      vmm.link.close();
      vmm.control.close();
      release(vmm);
      throw error;
    }
  } catch (error) {
    host.log.debug({ machine: machineId, error: String(error) }, "a machine of an earlier server has ended");
  }
  await killKeeper(host.layout, keeperId);
  const dir = machineDir(host.layout, keeperId);
  const exit = await toGuestExit(dir, (await readExit(dir)) ?? {}, undefined);
  await forget(host, machineId, keeperId);
  return exit;
}

/** A server that was killed in the middle of a fork has left its parent standing, its memory being copied, or a collapse of its disk under way. */
async function settle(host: Host, vmm: Vmm): Promise<void> {
  const run = async (steps: Parameters<typeof runSteps>[2]) => (await runSteps(vmm, "take over a machine", steps, settleTimeoutMs)).results;
  await callOffNewBase(run);
  await run([execute("cont")]);
  await callOffCollapse(run);
  // The record is older where the server died before it could write down what the monitor had done already.
  const id = topDiskOf((await run([askForTopDisk]))[0]);
  if (id === undefined) throw new Error("its monitor has no disk");
  const chain = await host.disks.chainOf(id);
  const disk = await settleCollapse(run, host.disks, { id, path: chain.at(-1) as string, chain });
  vmm.disk = disk.id;
  await recordMachine(vmm);
}
