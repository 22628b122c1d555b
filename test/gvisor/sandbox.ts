/** Small hands for the driver's tests: a machine with its agent, and one-line programs in it. */

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { MitosError } from "@mitos/protocol";
import type { Driver, Machine, MachineResources, MachineSpec, RootSource } from "../../packages/engine/src/driver.ts";
import type { Adoption, Guest } from "../../packages/engine/src/guest.ts";
import { connectGuest } from "../../packages/engine/src/link-guest.ts";
import { noEgress } from "../../packages/engine/src/testing.ts";

export const resources: MachineResources = { vcpuCount: 1, memSizeMiB: 256, processesMax: 256 };

export function newSpec(asked: Partial<MachineResources> = {}, root: RootSource = { kind: "host" }): MachineSpec {
  const machineId = `m${randomBytes(8).toString("hex")}`;
  return { machineId, root, resources: { ...resources, ...asked }, hostName: machineId };
}

export interface Sandbox {
  readonly machine: Machine;
  readonly guest: Guest;
}

let generation = 0;

/** Opens the link of a machine and gives it its identity. */
export async function adopt(machine: Machine, adoption: Partial<Adoption> = {}): Promise<Sandbox> {
  generation += 1;
  const guest = connectGuest(machine, { onActivity: () => () => {}, egress: noEgress, onForkSelf: async () => [], onLost: () => {} });
  await guest.open({
    sandboxId: machine.machineId,
    templateId: "test",
    parentId: null,
    generation,
    env: {},
    secrets: {},
    forgetSecrets: false,
    deadlineMs: null,
    forkBudget: 0,
    forksUsed: 0,
    processesMax: 48,
    ...adoption,
  });
  return { machine, guest };
}

export async function boot(driver: Driver, asked: Partial<MachineResources> = {}): Promise<Sandbox> {
  return adopt(await driver.boot(newSpec(asked)));
}

/** Output of a shell command that must succeed. */
export async function run({ guest }: Sandbox, shellCommand: string): Promise<string> {
  let output = "";
  for await (const event of guest.runtime.exec({ shellCommand, timeoutMs: 30_000 })) {
    if (event.kind === "output") output += Buffer.from(event.data).toString("utf8");
    if (event.kind === "exit") assert.equal(event.exitCode, 0, `${shellCommand}: ${event.error} ${output}`);
  }
  return output.trim();
}

/** Starts a program that runs on by itself. */
export async function start({ guest }: Sandbox, shellCommand: string): Promise<void> {
  await guest.runtime.start({ shellCommand });
}

export async function saved<T>({ guest }: Sandbox, work: () => Promise<T>): Promise<T> {
  const quiet = await guest.quiesce();
  try {
    return await work();
  } finally {
    await quiet.resume();
  }
}

export async function end(...sandboxes: readonly Sandbox[]): Promise<void> {
  await Promise.all(
    sandboxes.map(async ({ machine, guest }) => {
      guest.close(new MitosError("canceled"));
      await machine.end("test over");
    }),
  );
}
