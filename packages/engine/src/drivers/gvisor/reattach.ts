import type { Machine, MachineExit } from "../../driver.ts";
import { toMachineExit } from "../host/exit.ts";
import { keeperOf, machineDir } from "../host/layout.ts";
import { processGone } from "../host/processes.ts";
import { readExit } from "../host/shim.ts";
import { openContainer } from "./container.ts";
import type { Host } from "./host.ts";
import { forget, GvisorMachine } from "./machine.ts";
import { commandsOf, killContainer } from "./processes.ts";

/** Saving takes a second for each GiB; one that hangs is left to its own time-out. */
const commandsMsMax = 15_000;

/** A machine of an earlier server: still alive, or how it ended; nothing of an ended one is left afterwards. */
export async function reattach(host: Host, machineId: string): Promise<Machine | MachineExit> {
  const containerId = await keeperOf(host.layout, machineId);
  if (!containerId) return { reason: "lost", detail: "nothing of it is on this host", atUnixMs: Date.now() };
  const dir = machineDir(host.layout, containerId);
  try {
    const container = await openContainer(host.layout, containerId);
    try {
      // Refused while the shim watches no machine: the server died before the start was complete.
      await container.control.request("meter");
      await commandsDone(host, containerId);
      const machine = new GvisorMachine(host, container, machineId);
      await machine.thaw();
      return machine;
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

/** What the earlier server let runsc do (save the machine) ends first: its files would come up after they were swept. */
async function commandsDone(host: Host, containerId: string): Promise<void> {
  const untilMs = Date.now() + commandsMsMax;
  for (const pid of await commandsOf(host.layout, containerId)) {
    await processGone(pid, untilMs).catch((error: unknown) => {
      host.log.warn({ container: containerId, error: String(error) }, "a command of an earlier server still works on a machine");
    });
  }
}
