import type { CreateRequest, Sandbox } from "./actions.ts";
import { machineOverheadBytes } from "./admission.ts";
import { asMitosError, type Core, newMachineId } from "./core.ts";
import type { MachineResources } from "./driver.ts";
import { attach, deadlineAfter, requireTimeout } from "./lifecycle.ts";
import type { Live } from "./sandboxes.ts";
import { abandon, type Delivery, startFromSnapshot, startWaiting } from "./start.ts";
import { useTemplate } from "./templates.ts";

/**
 * Starts a sandbox from a template. It runs when this resolves; when it throws, nothing of it is left.
 *
 * @throws not_found (template), conflict (id in use), quota_exceeded, build_failed (a template that had to be built anew),
 *   invalid_input, timeout_too_large
 */
export async function create(core: Core, request: CreateRequest): Promise<Sandbox> {
  const deadlineMs = request.timeoutSeconds === null ? null : deadlineAfter(core, request.timeoutSeconds, request.id);
  if (request.idleTimeoutSeconds !== null) requireTimeout(request.idleTimeoutSeconds, request.id);

  using template = await useTemplate(core, request.template);
  const { snapshot } = template.snapshot;
  const resources: MachineResources = { ...template.request.resources, ...request.resources };
  using taken = isSame(resources, template.request.resources) ? core.pool.take({ snapshot: template.snapshot, resources }) : undefined;
  // One that has waited has its memory already.
  using _memory = taken ? undefined : core.admission.reserve("create", snapshot.bytes + machineOverheadBytes(core.driver));
  const entry = core.sandboxes.insert({
    id: request.id,
    templateId: request.template,
    parentUid: null,
    parentId: null,
    state: "starting",
    isolation: core.driver.isolation,
    resources,
    network: request.network ?? template.request.network,
    metadata: request.metadata,
    createdAtMs: core.clock.nowMs(),
    forkTimeMs: 0,
    deadlineMs,
    idleTimeoutSeconds: request.idleTimeoutSeconds,
    hasSecrets: Object.keys(request.secrets).length > 0,
    generation: template.generation + 1,
    forkBudget: request.forkBudget ?? 0,
    forksUsed: 0,
    budgetKeyId: request.budgetKeyId ?? null,
    machineId: taken?.waiting.machine.machineId ?? newMachineId(),
    layers: template.layers,
    snapshot: null,
    end: null,
    owner: request.owner ?? null,
  });
  await entry.mutex.run(async () => {
    const startedMs = performance.now();
    let live: Live | undefined;
    try {
      const delivery: Delivery = { env: request.env, secrets: request.secrets, forgetSecrets: true };
      live = taken && (await startWaiting(core, entry, taken.waiting, delivery));
      live ??= await startFromSnapshot(core, entry, snapshot, delivery);
      entry.activity.touch();
      // Nothing waits between the last look at the state and here: from now on the sandbox is served.
      core.sandboxes.move(entry, "running", { forkTimeMs: performance.now() - startedMs });
      attach(core, entry, live);
      core.driver.prepare(live.machine, core.readyDemand.after(entry.record.templateId, 1));
    } catch (error) {
      if (live) await abandon(live, request.id, error);
      core.sandboxes.forgetUnlessEnded(entry);
      throw asMitosError(error, `sandbox ${request.id} could not be started`);
    }
  });
  return core.sandboxes.view(entry);
}

function isSame(a: MachineResources, b: MachineResources): boolean {
  return a.vcpuCount === b.vcpuCount && a.memSizeMiB === b.memSizeMiB && a.processesMax === b.processesMax;
}
