import type { Machine, MachineExit } from "./driver.ts";

/** How a machine has ended, if it has or does so in this time. */
export async function exitWithin(machine: Machine, ms: number): Promise<MachineExit | undefined> {
  const { promise: late, resolve } = Promise.withResolvers<undefined>();
  const timer = setTimeout(() => resolve(undefined), ms);
  const exit = await Promise.race([machine.exited, late]);
  clearTimeout(timer);
  return exit;
}
