import type { Accel } from "../../actions.ts";

/**
 * What a shim does with its VMM, in order, while its link goes on (docs/shim.md, "vmm"). It stops at the first step that fails; those that are to
 * run `always` run all the same. Results have the places of their steps.
 */
export type VmmStep = (
  | ExecuteStep
  | { readonly add_fd: AddFd }
  | { readonly await: Await }
  | { readonly save_memory: SaveMemory }
  | { readonly await_status: { readonly values: readonly string[] } }
  | { readonly save_devices: SaveDevices }
  | { readonly punch_mapped_ram: { readonly file: string; readonly sync?: boolean } }
) & { readonly always?: true };

/** A command of QMP. Its result is what that returns. */
export interface ExecuteStep {
  readonly execute: string;
  readonly arguments?: Readonly<Record<string, unknown>>;
}

/** Opens a file and hands it to the VMM, which knows it as `/dev/fdset/<set>`. `create`, `create_write`: it must not be there yet. */
export interface AddFd {
  readonly set: number;
  readonly path: string;
  readonly access: "read" | "write" | "read_write" | "create" | "create_write";
}

/** Waits for an event of the VMM, of those since these steps began, whose field has one of the values. Failures fail the step. */
export interface Await {
  readonly event: string;
  readonly field: string;
  readonly values: readonly (string | boolean)[];
  readonly failures: readonly (string | boolean)[];
}

/** Writes what a restored machine loads: the device state, and the pages that differ from those of `base`. */
export interface SaveMemory {
  readonly base: string;
  readonly device_state: string;
  readonly out: string;
  readonly sync?: boolean;
  /** How much later the timers of its processors come in a machine that is restored, in ms. Default 0. */
  readonly timers_later_ms?: number;
  /** What the monitor does while its memory is read, in order: what writes `device_state`, and nothing that changes memory. */
  readonly meanwhile?: readonly ExecuteStep[];
}

/** The same without any page, for a machine whose memory is all in its base. */
export interface SaveDevices {
  readonly memory_bytes: number;
  readonly device_state: string;
  readonly out: string;
  readonly sync?: boolean;
  readonly timers_later_ms?: number;
}

export const execute = (command: string, args?: Readonly<Record<string, unknown>>): ExecuteStep =>
  args === undefined ? { execute: command } : { execute: command, arguments: args };

/** Numbers of the sets that our steps use; lower ones are for what the command line of a VMM brings. `chain` and above: the files of a disk. */
export const fdSets = { disk: 11, memory: 12, deviceState: 13, incoming: 14, nextDeviceState: 15, chain: 32 } as const;

/**
 * What a kernel does when its clock ticks costs an emulated machine that has just been restored some milliseconds, since its monitor has translated
 * nothing of it yet: it comes when the machine has answered. Programs stand still until it is adopted, and then the clock is set.
 */
export function timersLater(accel: Accel): { readonly timers_later_ms?: number } {
  return accel === "tcg" ? { timers_later_ms: 50 } : {};
}

/** Writes the state of a stopped machine's devices to the file of a set. Not `live`, which would put its disks out of use. */
const saveDeviceStateTo = (set: number) => execute("xen-save-devices-state", { filename: `/dev/fdset/${set}`, live: false });
export const saveDeviceState = saveDeviceStateTo(fdSets.deviceState);
export const saveNextDeviceState = saveDeviceStateTo(fdSets.nextDeviceState);
export const forgetDeviceState = execute("remove-fd", { "fdset-id": fdSets.deviceState });
