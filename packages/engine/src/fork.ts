import { limits, MitosError, newSandboxId, type SandboxId } from "@mitos/protocol";
import type { ForkRequest, ForkResult } from "./actions.ts";
import { machineOverheadBytes } from "./admission.ts";
import { asMitosError, type Core, newMachineId } from "./core.ts";
import { attach, deadlineAfter, requireLive } from "./lifecycle.ts";
import { holdingAll } from "./mutex.ts";
import { Quiet } from "./quiet.ts";
import { checkShortText } from "./runtime-input.ts";
import type { Entry } from "./sandboxes.ts";
import { SharedSnapshot } from "./snapshots.ts";
import { type Delivery, startFromSnapshot } from "./start.ts";
import { endedError, requireAlive, requireState } from "./states.ts";

/**
 * Forks a running or paused sandbox into children that continue from its exact state.
 *
 * A running parent stands still while it is saved and runs again before any child starts, also when that fails. One snapshot serves all
 * children; they start in parallel, and all of them exist or none does.
 *
 * @param held - of the parent's budget: spent when the children run
 * @throws not_found, sandbox_not_running, idle_timeout, oom_killed, invalid_input, conflict (an id in use), secret_inheritance_denied,
 *   quota_exceeded, timeout_too_large
 */
export async function fork(core: Core, request: ForkRequest, held?: HeldForks): Promise<ForkResult> {
  const parent = core.sandboxes.findAlive(request.source);
  checkRequest(core, request, parent);

  const startedMs = performance.now();
  const captured = await parent.mutex.run(() => captureParent(core, request, parent));
  using _memory = captured.memory;
  try {
    // Whoever ends a child meanwhile waits until all of them run or nothing of them is left. Nobody else holds more than one of them.
    const mutexes = captured.children.map((child) => child.mutex);
    await holdingAll(mutexes, () => startAllOrNone(core, captured, request, startedMs, held));
  } finally {
    await captured.release();
  }
  return {
    children: captured.children.map((child) => core.sandboxes.view(child)),
    pausedMs: captured.pausedMs,
    snapshotBytes: captured.snapshot.snapshot.bytes,
  };
}

/**
 * A fork that the sandbox asks for from inside. Its budget is 0 unless it was created with one, and its children get none.
 *
 * @param label - becomes `label` in the metadata of the children; empty = none
 */
export async function forkSelf(core: Core, entry: Entry, count: number, label: string): Promise<readonly SandboxId[]> {
  const { id, forkBudget, forksUsed = 0, budgetKeyId = null } = entry.record;
  checkShortText(label, "label");
  const remaining = forkBudget - forksUsed - entry.forksHeld;
  if (count > remaining) {
    throw new MitosError("budget_exhausted", {
      cause: `sandbox ${id} asked for ${count} children and may have ${remaining}`,
      context: { sandbox: id, dimension: "forks", remaining },
    });
  }
  const ids = Array.from({ length: count }, newSandboxId);
  const request: ForkRequest = { source: id, ids, inheritSecrets: false, env: {}, metadata: label ? { label } : {} };
  using held = holdForks(entry, count);
  await core.selfForkGate({ source: id, ids, keyId: budgetKeyId }, () => fork(core, request, held));
  return ids;
}

/** A part of a sandbox's budget, from the request to its end. Disposed of before it was spent, it is free again. */
interface HeldForks extends Disposable {
  readonly parent: Entry;
  readonly count: number;
}

/**
 * Before the work, so that two requests at once cannot spend the same. Only in memory: the disk learns of it in the one write by which the
 * children run, so that a server that dies before has spent nothing.
 */
function holdForks(parent: Entry, count: number): HeldForks {
  parent.forksHeld += count;
  let isHeld = true;
  return {
    parent,
    count,
    [Symbol.dispose]: () => {
      if (isHeld) parent.forksHeld -= count;
      isHeld = false;
    },
  };
}

/** Undefined when the parent has ended meanwhile: its children live, and its budget is nobody's any more. */
function spending({ parent, count }: HeldForks): Parameters<Core["sandboxes"]["moveAll"]>[3] {
  if (parent.record.end) return undefined;
  return { entry: parent, patch: { forksUsed: (parent.record.forksUsed ?? 0) + count } };
}

interface Captured {
  readonly children: readonly Entry[];
  readonly snapshot: SharedSnapshot;
  readonly pausedMs: number;
  readonly memory: Disposable;
  /** The snapshot is not needed any more. */
  release(): Promise<void>;
}

/** Input is checked in full before the first side effect. */
function checkRequest(core: Core, { ids, timeoutSeconds, source, inheritSecrets }: ForkRequest, parent: Entry): void {
  if (ids.length < 1 || ids.length > limits.forkCountMax) {
    throw new MitosError("invalid_input", { cause: `a fork makes 1 to ${limits.forkCountMax} children, not ${ids.length}` });
  }
  if (new Set(ids).size !== ids.length) throw new MitosError("invalid_input", { cause: "the ids of the children must differ" });
  const taken = ids.find((id) => core.sandboxes.isTaken(id));
  if (taken) throw new MitosError("conflict", { cause: `sandbox id ${taken} is in use`, context: { sandbox: taken } });
  if (typeof timeoutSeconds === "number") deadlineAfter(core, timeoutSeconds, source);
  if (parent.record.hasSecrets && !inheritSecrets) {
    throw new MitosError("secret_inheritance_denied", { cause: `sandbox ${source} was given secrets`, context: { sandbox: source } });
  }
}

/** With the parent held: takes ids and memory for all children, then the snapshot that they start from. */
async function captureParent(core: Core, request: ForkRequest, parent: Entry): Promise<Captured> {
  requireState(parent.record, "fork");
  const stateBytes = parent.live
    ? (await parent.live.machine.meter()).memoryBytes
    : (parent.saved?.snapshot.bytes ?? 0) + machineOverheadBytes(core.driver);
  // The snapshot may lie on tmpfs and then takes memory as well.
  const memory = core.admission.reserve("fork", stateBytes * (request.ids.length + (parent.live ? 1 : 0)));
  const children: Entry[] = [];
  try {
    requireState(parent.record, "fork");
    for (const id of request.ids) children.push(insertChild(core, request, parent, id));
    if (parent.live) {
      const { snapshot, pausedMs } = await snapshotRunning(core, parent, stateBytes);
      return { children, snapshot, pausedMs, memory, release: () => snapshot.discard() };
    }
    const { saved } = parent;
    if (!saved) throw new Error(`broken invariant: ${parent.record.id} is ${parent.record.state} without machine or snapshot`);
    const giveBack = saved.borrow();
    try {
      await core.driver.checkSnapshot(saved.snapshot);
    } catch (error) {
      giveBack();
      throw error;
    }
    return { children, snapshot: saved, pausedMs: 0, memory, release: async () => giveBack() };
  } catch (error) {
    memory[Symbol.dispose]();
    for (const child of children) core.sandboxes.forgetUnlessEnded(child);
    requireState(parent.record, "fork");
    throw asMitosError(error, `sandbox ${parent.record.id} could not be saved for its fork; it runs on`);
  }
}

function insertChild(core: Core, request: ForkRequest, { record }: Entry, id: SandboxId): Entry {
  const { timeoutSeconds } = request;
  return core.sandboxes.insert({
    id,
    templateId: record.templateId,
    parentUid: record.uid,
    parentId: record.id,
    state: "starting",
    isolation: record.isolation,
    resources: record.resources,
    network: record.network,
    metadata: { ...record.metadata, ...request.metadata },
    createdAtMs: core.clock.nowMs(),
    forkTimeMs: 0,
    deadlineMs: timeoutSeconds === undefined ? record.deadlineMs : timeoutSeconds === null ? null : deadlineAfter(core, timeoutSeconds, id),
    idleTimeoutSeconds: record.idleTimeoutSeconds,
    hasSecrets: record.hasSecrets,
    generation: record.generation + 1,
    forkBudget: request.forkBudget ?? 0,
    forksUsed: 0,
    budgetKeyId: request.budgetKeyId ?? null,
    machineId: newMachineId(),
    layers: record.layers ?? null,
    snapshot: null,
    end: null,
    owner: record.owner ?? null,
  });
}

/** The parent runs on whatever happens in here. */
async function snapshotRunning(core: Core, parent: Entry, stateBytes: number): Promise<{ snapshot: SharedSnapshot; pausedMs: number }> {
  const live = requireLive(parent);
  const quiet = new Quiet(live.guest);
  const snapshot = await core.places
    .save("fork", { expectedBytes: stateBytes, machineRoomBytes: core.driver.snapshotRoom?.(live.machine) }, (dir) =>
      core.driver.snapshot(live.machine, dir, { leaveRunning: true, durable: false, quiet }),
    )
    .finally(() => quiet.end());
  core.counters.saved("fork", snapshot.bytes);
  return { snapshot: new SharedSnapshot(snapshot), pausedMs: quiet.pausedMs };
}

/**
 * With the children held. On failure those that did start are ended again, and the others are waited for, so that nothing comes up late; that
 * needs nothing that is held.
 */
async function startAllOrNone(
  core: Core,
  captured: Captured,
  request: ForkRequest,
  startedMs: number,
  held: HeldForks | undefined,
): Promise<void> {
  const { children, snapshot } = captured;
  const delivery: Delivery = { env: request.env, secrets: {}, forgetSecrets: !request.inheritSecrets };
  let failed = false;
  // Asked when it is a child's turn, which may be long after that of its siblings.
  const requireWanted = () => {
    if (failed) throw new StoppedForSibling("a sibling could not be started");
    for (const { record } of children) requireAlive(record);
  };
  const starts = children.map(async (child) => {
    try {
      return { child, live: await startFromSnapshot(core, child, snapshot.snapshot, delivery, requireWanted) };
    } catch (error) {
      failed = true;
      throw error;
    }
  });
  const results = await Promise.allSettled(starts);
  const started = results.filter((result) => result.status === "fulfilled").map((result) => result.value);
  let failure = firstFailure(results);
  // A child can be terminated while its siblings start. Nothing waits between this look and the commit.
  const ended = children.find((child) => child.record.state !== "starting");
  failure ??= ended && endedError(ended.record);
  try {
    if (failure) throw failure;
    const forkTimeMs = performance.now() - startedMs;
    core.sandboxes.moveAll(
      started.map(({ child }) => child),
      "running",
      { forkTimeMs },
      held && spending(held),
    );
    held?.[Symbol.dispose]();
  } catch (error) {
    await Promise.all(
      started.map(async ({ child, live }) => {
        live.guest.close(new MitosError("unavailable", { cause: `sandbox ${child.record.id} was not started: a sibling failed` }));
        await live.machine.end("fork failed");
      }),
    );
    for (const child of children) if (!child.record.end) core.sandboxes.forget(child);
    throw asMitosError(error, "a child could not be started, so none was");
  }
  for (const { child, live } of started) {
    child.activity.touch();
    attach(core, child, live);
  }
  const [first] = started;
  if (first) core.driver.prepare(first.live.machine, core.readyDemand.after(first.child.record.templateId, started.length));
}

/** What went wrong first, not the siblings that were stopped for it. */
function firstFailure(results: readonly PromiseSettledResult<unknown>[]): unknown {
  const reasons = results.filter((result) => result.status === "rejected").map((result) => result.reason as unknown);
  return reasons.find((reason) => !(reason instanceof StoppedForSibling)) ?? reasons[0];
}

class StoppedForSibling extends Error {
  override readonly name = "StoppedForSibling";
}
