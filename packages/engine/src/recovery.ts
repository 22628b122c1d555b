import { MitosError } from "@mitos/protocol";
import type { Core } from "./core.ts";
import { startsAtOnce } from "./core.ts";
import type { MachineExit } from "./driver.ts";
import { exitWithin } from "./exit-within.ts";
import type { LayerUse } from "./layers/layer.ts";
import { attach, recordExit, tellDeadline } from "./lifecycle.ts";
import { Semaphore } from "./mutex.ts";
import type { Entry } from "./sandboxes.ts";
import { SharedSnapshot } from "./snapshots.ts";
import { connect } from "./start.ts";
import type { TemplateRecord } from "./store/templates.ts";
import { earlierRoot } from "./templates.ts";
import { knownSnapshots } from "./usage.ts";

/** How long a machine that does not answer may take to say that, and why, it has ended. */
const lastWordsMs = 500;

/**
 * Takes up what an earlier server left, however it ended: living machines get a new link session, dead ones are reported once, and what was
 * half made is removed. Nothing of the machine or the snapshot folders is left that no record knows.
 */
export async function recover(core: Core): Promise<void> {
  const entries = [...core.sandboxes.all()].filter(({ record }) => record.end === null);
  const atOnce = new Semaphore(startsAtOnce);
  await Promise.all(entries.map((entry) => atOnce.run(() => recoverSandbox(core, entry))));
  for (const record of core.templateStore.all(earlierRoot)) {
    const built = { record, snapshot: new SharedSnapshot(record.snapshot), layers: layersOf(core, record) };
    core.templates.set(record.request.id, { built, building: null });
  }
  const snapshots = [...knownSnapshots(core)];
  await core.driver.sweep(new Set(entries.flatMap(({ live }) => (live ? [live.machine.machineId] : []))), snapshots);
  await core.places.sweep(new Set(snapshots.map(({ dir }) => dir)));
}

/** Null also when one of them is gone: then the template is made anew from its definition when it is used. */
function layersOf(core: Core, { root }: TemplateRecord): LayerUse | null {
  if (!root.layers?.every(({ id }) => core.layers.has(id))) return null;
  return core.layers.use(root.layers.map(({ id }) => id));
}

async function recoverSandbox(core: Core, entry: Entry): Promise<void> {
  switch (entry.record.state) {
    case "starting":
      // Its creator was never answered.
      core.sandboxes.forget(entry);
      return;
    case "resuming":
      // The snapshot is discarded only after the commit to running, so it is still whole; the half-started machine is swept.
      core.sandboxes.fallBack(entry, "paused", { machineId: null });
      return recoverPaused(core, entry);
    case "paused":
      return recoverPaused(core, entry);
    case "pausing":
      // Not committed: the machine is the sandbox, and a new session ends its quiet.
      core.sandboxes.fallBack(entry, "running");
      return recoverRunning(core, entry);
    case "running":
      return recoverRunning(core, entry);
  }
}

async function recoverPaused(core: Core, entry: Entry): Promise<void> {
  const { snapshot } = entry.record;
  if (!snapshot) {
    core.sandboxes.end(entry, "failed", "snapshot_lost", "its record names none");
    return;
  }
  // Only looked at when it is resumed: what does not fit today may fit again after a repair.
  entry.saved = new SharedSnapshot(snapshot);
}

async function recoverRunning(core: Core, entry: Entry): Promise<void> {
  const { id, machineId } = entry.record;
  if (!machineId) {
    core.sandboxes.end(entry, "failed", "lost", "its record names no machine");
    return;
  }
  const found = await core.driver.reattach(machineId).catch((error: unknown) => lostBy(error));
  if ("reason" in found) {
    recordExit(core, entry, found);
    return;
  }
  const live = connect(core, entry, found);
  try {
    await live.guest.open(null);
    await tellDeadline(entry, live);
  } catch (error) {
    live.guest.close(new MitosError("unavailable", { cause: `sandbox ${id} does not answer` }));
    // One that ended by itself just now says why better than we can.
    const exit = await exitWithin(found, lastWordsMs);
    if (!exit) await found.end("it did not answer the new server");
    recordExit(core, entry, exit ?? lostBy(error));
    return;
  }
  attach(core, entry, live);
  core.log.info({ sandbox: id }, "sandbox of an earlier server taken up");
}

/** One sandbox that cannot be taken up does not keep the others from it. */
function lostBy(error: unknown): MachineExit {
  const why = error instanceof Error ? error.message : String(error);
  return { reason: "lost", detail: `it could not be taken up after a restart of the server: ${why}`, atUnixMs: Date.now() };
}
