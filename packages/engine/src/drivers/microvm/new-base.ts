import { readFileSync } from "node:fs";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { SnapshotOptions } from "../../driver.ts";
import { freeBytes } from "../../free-bytes.ts";
import type { BaseUse } from "./bases.ts";
import type { DiskSnapshot } from "./disk-steps.ts";
import type { Host } from "./host.ts";
import type { MicrovmMachine } from "./machine.ts";
import {
  abandonNewBase,
  beginNewBase,
  completeNewBase,
  continueNewBase,
  finishNewBase,
  holdNewBase,
  hurryNewBase,
  isUnderWay,
  letGoOfNewBase,
  newBaseProgress,
  newBaseProgressOf,
} from "./memory-steps.ts";
import { runSteps, saveTimeoutMs } from "./vmm.ts";
import type { VmmStep } from "./vmm-steps.ts";

/** Memory that a machine has made its own, with what its monitor has: from here on a fork makes a new base. The figures: docs/microvm.md. */
export const newBaseFromBytes = 256 * 2 ** 20;

const lookMs = 10;
/** Of a disk that takes 100 MiB a second, for as much memory as machines have. */
const callOffTimeoutMs = 120_000;

/**
 * Not for a state that is to outlive the host's power: a base is all of the memory, where a stream is what the machine has written. Nor where it might not
 * fit: QEMU 10.0 was seen to die when it runs out of room in the middle.
 */
export async function isWorthNewBase(host: Host, { vmm }: MicrovmMachine, { durable }: Pick<SnapshotOptions, "durable">): Promise<boolean> {
  if (durable || vmm.shape.boots || ownBytes(vmm.pid) < host.newBaseFromBytes) return false;
  return (await freeBytes(path.dirname(vmm.uses.base.path))) >= vmm.shape.resources.memSizeMiB * 2 ** 20;
}

/**
 * As the kernel counts it anyway: nobody walks through its pages, and no disk is asked, so that it is read sooner than another thread is woken for it. 0 for a
 * process that is gone.
 */
function ownBytes(pid: number): number {
  try {
    const kib = [...readFileSync(`/proc/${pid}/status`, "utf8").matchAll(/^(?:RssAnon|VmSwap):\s*(\d+) kB$/gm)];
    return kib.reduce((sum, [, count]) => sum + Number(count), 0) * 1024;
  } catch {
    return 0;
  }
}

interface NewBase {
  readonly disk: DiskSnapshot;
  /** Made new: what the monitor writes of its devices. */
  readonly deviceState: string;
  /** Made new: what a child loads. */
  readonly out: string;
  readonly quiet: SnapshotOptions["quiet"];
}

/**
 * Copies the memory of a running machine into a base for its children. It stands still for the rest alone, and stays on the base that it has.
 *
 * @throws when it did not come to that: the machine goes on, perhaps in the next overlay of its disk, and nothing of the base is left
 */
export async function makeNewBase(host: Host, { vmm }: MicrovmMachine, { disk, deviceState, out, quiet }: NewBase): Promise<BaseUse> {
  const { memSizeMiB } = vmm.shape.resources;
  const timeoutMs = saveTimeoutMs(vmm);
  const run: Run = async (steps) => (await runSteps(vmm, "make a new base", steps, timeoutMs)).results;
  const base = await host.bases.name();
  const files = { base: base.path, deviceState };
  try {
    try {
      await run(beginNewBase(files));
      await untilLittleIsLeft(run, Date.now() + (host.newBaseTimeoutMs ?? timeoutMs));
      await run([...holdNewBase, ...disk.before]);
      await quiet?.begin();
      await run(finishNewBase(disk.whileStopped));
    } catch (error) {
      await callOffNewBase(run);
      throw error;
    }
    await quiet?.end();
    const [punched] = await run(completeNewBase(files, { out, memoryBytes: memSizeMiB * 2 ** 20, accel: host.accel }));
    await host.bases.freeze(base.id, (punched as { offset: number }).offset);
    return base;
  } catch (error) {
    await host.bases.remove(base.id);
    base[Symbol.dispose]();
    throw error;
  }
}

/** The machine goes on as it was. Harmless where nothing is under way, and where the machine has ended. */
export async function callOffNewBase(run: Run): Promise<void> {
  const quietly = (steps: readonly VmmStep[]) => run(steps).then(() => "", String);
  const isOver = async () => {
    const [asked] = await run(newBaseProgress).catch(() => [{}]);
    if ((asked as { status?: string }).status === "pre-switchover") await quietly(continueNewBase);
    return !isUnderWay(asked) && !(await quietly(letGoOfNewBase)).includes("in use by another operation");
  };
  await quietly(hurryNewBase);
  const untilMs = Date.now() + callOffTimeoutMs;
  while (!(await isOver()) && Date.now() < untilMs) await delay(lookMs);
  await quietly(abandonNewBase);
}

type Run = (steps: readonly VmmStep[]) => Promise<readonly unknown[]>;

async function untilLittleIsLeft(run: Run, untilMs: number): Promise<void> {
  for (;;) {
    const [asked] = await run(newBaseProgress);
    const state = newBaseProgressOf(asked);
    const detail = () => JSON.stringify(asked).slice(0, 1024);
    if (state === "failed") throw new Error(`its memory was not copied: ${detail()}`);
    if (Date.now() > untilMs) throw new Error(`its memory was not copied in the time that this may take: ${detail()}`);
    if (state === "little is left") return;
    await delay(lookMs);
  }
}
