import { MitosError, type SandboxId } from "@mitos/protocol";
import { machineOverheadBytes } from "./admission.ts";
import { asMitosError, type Core, newMachineId } from "./core.ts";
import { attach, requireLive } from "./lifecycle.ts";
import { Quiet } from "./quiet.ts";
import type { Live } from "./sandboxes.ts";
import { SharedSnapshot } from "./snapshots.ts";
import { abandon, startFromSnapshot } from "./start.ts";
import { requireAlive, requireState } from "./states.ts";

/**
 * Saves a sandbox to the disk and ends its machine, which frees its memory. Open streams end with sandbox_not_running; their processes
 * are saved with the rest. A paused sandbox stays paused.
 *
 * Safe against a crash at every point: until the commit the machine lives and a new server takes it up again, from the commit on the
 * snapshot is the sandbox and whatever is left of the machine is swept.
 *
 * @throws not_found, sandbox_not_running, idle_timeout, oom_killed
 */
export async function pause(core: Core, id: SandboxId): Promise<void> {
  const entry = core.sandboxes.findAlive(id);
  await entry.mutex.run(async () => {
    requireState(entry.record, "pause");
    if (entry.record.state === "paused") return;
    const live = requireLive(entry);

    core.sandboxes.move(entry, "pausing");
    let saved: SharedSnapshot | undefined;
    const quiet = new Quiet(live.guest);
    // Until the end of the machine: what it did after the snapshot would be lost.
    const lasting = { begin: () => quiet.begin(), end: async () => {} };
    try {
      const { memoryBytes } = await live.machine.meter();
      // The machine is ended only after the commit: were it to end with the snapshot, a crash in between would lose the sandbox.
      const save = (dir: string) => core.driver.snapshot(live.machine, dir, { leaveRunning: true, durable: true, quiet: lasting });
      saved = new SharedSnapshot(await core.places.save("pause", { expectedBytes: memoryBytes }, save));
      requireAlive(entry.record);
      core.sandboxes.moveDurably(entry, "paused", { snapshot: saved.snapshot, machineId: null });
      core.counters.saved("pause", saved.snapshot.bytes);
    } catch (error) {
      void saved?.discard();
      // Terminated or died meanwhile: that is the answer, and there is nothing to go on with.
      requireAlive(entry.record);
      core.sandboxes.fallBack(entry, "running");
      await quiet.end();
      throw asMitosError(error, `sandbox ${id} could not be saved; it runs on`);
    }
    entry.saved = saved;
    entry.live = null;
    live.guest.close(
      new MitosError("sandbox_not_running", {
        cause: `sandbox ${id} was paused`,
        remediation: "Resume it and attach to the process again.",
      }),
    );
    await live.machine.end("paused");
  });
}

/**
 * Brings a paused sandbox back to where it was. The snapshot is discarded only when the sandbox runs. A running sandbox stays running.
 *
 * @throws not_found, idle_timeout, oom_killed, quota_exceeded, snapshot_incompatible; the sandbox is still paused then
 */
export async function resume(core: Core, id: SandboxId): Promise<void> {
  const entry = core.sandboxes.findAlive(id);
  await entry.mutex.run(async () => {
    requireState(entry.record, "resume");
    const { saved } = entry;
    if (entry.record.state === "running" || !saved) {
      entry.activity.touch();
      return;
    }
    using _memory = core.admission.reserve("resume", saved.snapshot.bytes + machineOverheadBytes(core.driver));
    await core.driver.checkSnapshot(saved.snapshot);
    requireAlive(entry.record);
    core.sandboxes.move(entry, "resuming", { machineId: newMachineId(), generation: entry.record.generation + 1 });
    let live: Live | undefined;
    try {
      live = await startFromSnapshot(core, entry, saved.snapshot, { env: {}, secrets: {}, forgetSecrets: false });
      entry.activity.touch();
      core.sandboxes.move(entry, "running", { snapshot: null });
      entry.saved = null;
      attach(core, entry, live);
    } catch (error) {
      if (live) await abandon(live, id, error);
      requireAlive(entry.record);
      core.sandboxes.fallBack(entry, "paused", { machineId: null });
      throw asMitosError(error, `sandbox ${id} could not be resumed; it is still paused`);
    }
    // Not awaited: a fork that still reads it removes it when it is done.
    void saved.discard();
  });
}
