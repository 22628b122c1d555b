import type { Accel } from "../../actions.ts";
import { imageNode } from "./command-line.ts";
import { execute, fdSets, forgetDeviceState, saveDeviceState, timersLater, type VmmStep } from "./vmm-steps.ts";

/**
 * A new base for the descendants of a machine that has written much: all of its memory in a file that children map, pages in their places
 * (`mapped-ram`), written while the machine runs. Where a stream of what it has written makes it stand still for about a millisecond a MiB, and each child
 * load as much, this copies beforehand and lets children share.
 *
 * `begin`, then `progress` until little is left, `hold`; then the programs of the machine are frozen (QUIESCE), `finish`, and they go on. `finish` right
 * after `begin` is right as well, but programs then stand still for all of the copying. Whatever fails: `callOffNewBase`.
 */

/** Two do better than one on two processors; more do no better. */
const channels = 2;
/** Much more than a host copies: the default is slower than it. */
const unlimitedBytesPerSecond = 100 * 2 ** 30;
/** One page in each tenth of a second, about. Zero would be no limit. */
const heldBytesPerSecond = 10;
/** What is copied in a few milliseconds, while programs stand still already. */
const remainingBytesToHold = 8 * 2 ** 20;
/**
 * QEMU would end the copying, and stop the machine for that, as soon as it has seen all of the memory once, however little time it is given for the
 * rest. What is left to do of bitmaps of disks counts as well, and that is nothing that it does while a machine runs: with one of them there it
 * copies on until the time that it has for the rest is more than none.
 */
const bitmap = { node: imageNode, name: "new-base" } as const;
/** Much: what is in it is nothing to us. Its chunks must be countable in 32 bits of sectors. */
const bitmapGranularity = 64 * 2 ** 20;
/** Time for the rest, and what is thought to be copied in it. */
const noEnd = { "downtime-limit": 0, "avail-switchover-bandwidth": 0 } as const;
const end = { "downtime-limit": 1_000, "avail-switchover-bandwidth": unlimitedBytesPerSecond } as const;

export interface NewBaseFiles {
  /** Made new: becomes the base. */
  readonly base: string;
  /** Made new: for `completeNewBase`, and not needed afterwards. */
  readonly deviceState: string;
}

/** Copying begins; the machine runs on. */
export function beginNewBase({ base, deviceState }: NewBaseFiles): VmmStep[] {
  return [
    execute("block-dirty-bitmap-add", { ...bitmap, granularity: bitmapGranularity }),
    capabilities(true),
    parameters({ "max-bandwidth": unlimitedBytesPerSecond, ...noEnd, "multifd-channels": channels }),
    { add_fd: { set: fdSets.memory, path: base, access: "create_write" } },
    { add_fd: { set: fdSets.deviceState, path: deviceState, access: "create_write" } },
    execute("migrate", { uri: `file:/dev/fdset/${fdSets.memory}` }),
  ];
}

export const newBaseProgress: readonly VmmStep[] = [execute("query-migrate")];

export type NewBaseProgress = "copying" | "little is left" | "failed";

/** Of the result of `newBaseProgress`. What has failed (a full disk, say) is to be abandoned, and the machine saved in the other way. */
export function newBaseProgressOf(result: unknown): NewBaseProgress {
  const { status, ram } = result as { status?: string; ram?: { remaining?: number; transferred?: number } };
  if (status === "setup") return "copying";
  if (status !== "active") return "failed";
  // Before it has begun, nothing is left to do either.
  const begun = (ram?.transferred ?? 0) > 0;
  return begun && (ram?.remaining ?? Number.POSITIVE_INFINITY) <= remainingBytesToHold ? "little is left" : "copying";
}

/** Copying all but stops: what is written to again and again would keep processors busy for nothing. */
export const holdNewBase: readonly VmmStep[] = [parameters({ "max-bandwidth": heldBytesPerSecond })];

/**
 * The rest is copied, the machine stands still, `whileStopped` (of `snapshotDisk`) and the state of its devices; then it goes on. If anything fails,
 * it is to be called off.
 */
export function finishNewBase(whileStopped: readonly VmmStep[]): VmmStep[] {
  return [
    // QEMU looks at it ten times a second.
    parameters({ "max-bandwidth": unlimitedBytesPerSecond, ...end }),
    migrationIs("pre-switchover"),
    ...whileStopped,
    saveDeviceState,
    execute("migrate-continue", { state: "pre-switchover" }),
    migrationIs("completed"),
    { await_status: { values: ["postmigrate"] } },
    execute("cont"),
    ...closeNewBase,
  ];
}

/** The file becomes a base: result `{offset, memory_bytes, pages, freed_bytes}`. Children map it from `offset` on; then it must never change again. */
export function completeNewBase(
  files: NewBaseFiles,
  { out, memoryBytes, accel }: { out: string; memoryBytes: number; accel: Accel },
): VmmStep[] {
  return [
    { punch_mapped_ram: { file: files.base } },
    { save_devices: { memory_bytes: memoryBytes, device_state: files.deviceState, out, ...timersLater(accel) } },
  ];
}

/**
 * A copy that is called off is brought to its end all the same, for nobody: QEMU 10.0.2 dies now and then when it is told to cancel one that it is in the
 * middle of. First this, then `continueNewBase` when it stands at `pre-switchover`, until it is not `isUnderWay`; then `letGoOfNewBase`, until that
 * does not say that it is in use; then `abandonNewBase`.
 */
export const hurryNewBase: readonly VmmStep[] = [parameters({ "max-bandwidth": unlimitedBytesPerSecond, ...end })];
export const continueNewBase: readonly VmmStep[] = [execute("migrate-continue", { state: "pre-switchover" })];

/** Of the result of `newBaseProgress`. */
export function isUnderWay(result: unknown): boolean {
  return ["setup", "active", "pre-switchover", "device", "cancelling"].includes((result as { status?: string }).status ?? "none");
}

/** The monitor holds its bitmap until nothing of the copying is left in it. */
export const letGoOfNewBase: readonly VmmStep[] = [execute("block-dirty-bitmap-remove", bitmap)];

/** When the monitor has let go: the machine goes on as if nothing had been asked of it. Steps that have nothing to do fail: harmless. */
export const abandonNewBase: readonly VmmStep[] = [
  ...[{ await_status: { values: ["running", "paused", "postmigrate"] } }, execute("cont"), ...closeNewBaseSteps()].map((step) => ({
    ...step,
    always: true as const,
  })),
];

const closeNewBase = [...closeNewBaseSteps(), ...letGoOfNewBase];

function closeNewBaseSteps(): VmmStep[] {
  return [
    execute("remove-fd", { "fdset-id": fdSets.memory }),
    forgetDeviceState,
    // What is on stays on, also for `migrate-incoming` and other ways to save.
    capabilities(false),
  ];
}

function migrationIs(status: string): VmmStep {
  return { await: { event: "MIGRATION", field: "status", values: [status], failures: ["failed", "cancelled"] } };
}

function capabilities(state: boolean): VmmStep {
  const switched = ["mapped-ram", "multifd", "pause-before-switchover", "dirty-bitmaps"].map((capability) => ({ capability, state }));
  return execute("migrate-set-capabilities", { capabilities: [{ capability: "events", state: true }, ...switched] });
}

function parameters(values: Readonly<Record<string, number>>): VmmStep {
  return execute("migrate-set-parameters", values);
}
