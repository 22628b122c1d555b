import type { Machine, MachineExit } from "../../driver.ts";
import { toGuestExit } from "../host/exit.ts";
import { keeperOf, machineDir } from "../host/layout.ts";
import { readExit } from "../host/shim.ts";
import { resumeCalls } from "./calls.ts";
import type { Host } from "./host.ts";
import { FirecrackerMachine, forget } from "./machine.ts";
import { killVmm } from "./processes.ts";
import { openVmm } from "./vmm.ts";

/** A machine of an earlier server: still alive, or how it ended; nothing of an ended one is left afterwards. */
export async function reattach(host: Host, machineId: string): Promise<Machine | MachineExit> {
  const keeperId = await keeperOf(host.layout, machineId);
  if (!keeperId) return { reason: "lost", detail: "nothing of it is on this host", atUnixMs: Date.now() };
  const dir = machineDir(host.layout, keeperId);
  try {
    const vmm = await openVmm(host, keeperId);
    const machine = new FirecrackerMachine(host, vmm, machineId);
    try {
      // Refused while the shim watches no machine: the server died before the start was complete.
      await machine.meter();
      // The earlier server may have died in the middle of a snapshot: with the guest stopped, or on a link that was reset.
      await machine.thaw();
      await machine.call(resumeCalls);
      await machine.connectLink();
      return machine;
    } catch (error) {
      machine.release();
      throw error;
    }
  } catch (error) {
    host.log.debug({ machine: machineId, error: String(error) }, "a machine of an earlier server has ended");
  }
  await killVmm(host.layout, keeperId);
  const exit = await toGuestExit(dir, (await readExit(dir)) ?? {}, undefined);
  await forget(host, machineId, keeperId);
  return exit;
}
