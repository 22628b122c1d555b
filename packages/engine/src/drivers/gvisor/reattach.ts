import type { Machine, MachineExit } from "../../driver.ts";
import { openContainer, readExit } from "./container.ts";
import type { Host } from "./host.ts";
import { containerOf, machineDir } from "./layout.ts";
import { forget, GvisorMachine, toMachineExit } from "./machine.ts";
import { killContainer } from "./processes.ts";

/** A machine of an earlier server: still alive, or how it ended; nothing of an ended one is left afterwards. */
export async function reattach(host: Host, machineId: string): Promise<Machine | MachineExit> {
  const containerId = await containerOf(host.layout, machineId);
  if (!containerId) return { reason: "lost", detail: "nothing of it is on this host", atUnixMs: Date.now() };
  const dir = machineDir(host.layout, containerId);
  try {
    const container = await openContainer(host.layout, containerId);
    try {
      // Refused while the shim watches no machine: the server died before the start was complete.
      await container.control.request("meter");
      return new GvisorMachine(host, container, machineId);
    } catch (error) {
      container.link.close();
      container.control.close();
      throw error;
    }
  } catch (error) {
    host.log.debug({ machine: machineId, error: String(error) }, "a machine of an earlier server has ended");
  }
  await killContainer(host.layout, containerId);
  const told = (await readExit(dir)) ?? {};
  await forget(host, machineId, containerId);
  return toMachineExit(told, undefined);
}
