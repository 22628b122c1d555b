import { isImageReference, MitosError, type TemplateId } from "@mitos/protocol";
import type { BuildOptions, Owner, Template, TemplateRequest } from "./actions.ts";
import { hostRoot } from "./builds/base.ts";
import { type Built, build } from "./builds/build.ts";
import { canonical } from "./builds/chain.ts";
import { templateGeneration } from "./builds/machine.ts";
import { checkTemplateRequest } from "./builds/request.ts";
import { type Fresh, RunningBuild } from "./builds/running.ts";
import type { Core } from "./core.ts";
import { storedBytes } from "./driver.ts";
import { isHostName } from "./host-templates.ts";
import type { Digest } from "./layers/layer.ts";
import { orAborted } from "./or-aborted.ts";
import type { SharedSnapshot } from "./snapshots.ts";
import type { TemplateRecord, TemplateRoot } from "./store/templates.ts";

export interface TemplateEntry {
  built: Built | null;
  building: RunningBuild<Built> | null;
}

/** A template in use: its snapshot stays until this is disposed of, whatever happens to the template. */
export interface TemplateUse extends Disposable {
  readonly request: TemplateRequest;
  readonly snapshot: SharedSnapshot;
  readonly generation: number;
  /** Of its root; null = the host's files. */
  readonly layers: readonly Digest[] | null;
}

/**
 * Makes a template ready. An id that exists with the same definition is answered from its snapshot while that is still valid; a changed
 * definition is built and takes its place, and sandboxes of the old one run on. Equal builds at the same time are one, and it ends when the
 * last of those who wait for it leaves.
 *
 * @throws invalid_input, build_failed, not_found (an image), canceled, quota_exceeded, unauthorized and unavailable (a registry),
 *   not_supported (what the mock engine cannot do)
 */
export async function createTemplate(core: Core, request: TemplateRequest, options: BuildOptions = {}): Promise<Template> {
  checkTemplateRequest(request);
  if (core.driver.name === "mock") requireNothingRuns(request);
  return publicTemplate((await ensureBuilt(core, request, options)).record);
}

function requireNothingRuns({ workload, steps = [], warm }: TemplateRequest): void {
  if (workload) throw new MitosError("not_supported", { cause: "the mock engine starts no workload" });
  if (steps.length > 0 || warm) throw new MitosError("not_supported", { cause: "the mock engine runs no steps and no code" });
}

/** Those that are being made for the first time are not ready. */
export function listTemplates(core: Core): readonly Template[] {
  return [...core.templates.values()].flatMap(({ built, building }) => {
    if (built) return [publicTemplate(built.record)];
    return building ? [templateToBe(core, building.request)] : [];
  });
}

function templateToBe(core: Core, request: TemplateRequest): Template {
  const kind = request.steps?.length ? "build" : request.image === undefined ? "host" : "image";
  const source = { ...hostRoot(request.id).source, kind, reference: request.image ?? "" } as const;
  return { ...request, source, ready: false, snapshotBytes: 0, warnings: [], createdAtMs: core.clock.nowMs(), creationTimeMs: 0 };
}

/** @throws not_found, conflict while a build runs */
export async function deleteTemplate(core: Core, id: TemplateId): Promise<void> {
  const entry = requireTemplate(core, id);
  if (entry.building) {
    throw new MitosError("conflict", {
      cause: `template ${id} is being built`,
      remediation: "Wait until the build is done.",
      retryAfterMs: 1000,
    });
  }
  core.templateStore.delete(id);
  core.templates.delete(id);
  if (entry.built) await discard(core, entry.built);
}

/** Waits for creates that read it now, and for machines that wait for creates. */
async function discard(core: Core, { snapshot, layers }: Built): Promise<void> {
  const removed = snapshot.discard();
  await core.pool.drop(snapshot);
  await removed;
  layers?.[Symbol.dispose]();
  core.collector.soon();
}

/** The snapshot to start from; built anew first when it does not fit this host any more. @throws not_found, build_failed, quota_exceeded */
export async function useTemplate(core: Core, id: TemplateId): Promise<TemplateUse> {
  for (;;) {
    const built = await whenReady(core, requireTemplate(core, id));
    // Replaced or deleted while it was waited for: what the id means now is asked anew.
    if (!built || built.snapshot.isDiscarded) continue;
    const { record, snapshot } = built;
    const giveBack = snapshot.borrow();
    const layers = record.root.layers?.map((layer) => layer.id) ?? null;
    return { request: record.request, snapshot, generation: templateGeneration, layers, [Symbol.dispose]: giveBack };
  }
}

/** Undefined when something else has become of it meanwhile. */
async function whenReady(core: Core, entry: TemplateEntry): Promise<Built | undefined> {
  const { built, building } = entry;
  if (building?.isAborted) {
    await Promise.allSettled([building.done]);
    return undefined;
  }
  if (building) return building.join({});
  if (!built) throw new Error("broken invariant: a template is neither built nor being built");
  if (await isFitting(core, built)) return built;
  if (built.snapshot.isDiscarded || entry.building) return undefined;
  const { request } = built.record;
  const fresh: Fresh = { pull: false, noCache: false };
  return begin(core, entry, { request, definition: definitionOf(core, request), fresh, before: built, isValid: false }).join({});
}

/** @throws not_found */
export function requireBuilt(core: Core, id: TemplateId): Built {
  const { built } = requireTemplate(core, id);
  if (built) return built;
  throw new MitosError("conflict", {
    cause: `template ${id} is being built`,
    remediation: "Wait until the build is done.",
    retryAfterMs: 1000,
  });
}

function requireTemplate(core: Core, id: TemplateId): TemplateEntry {
  const entry = core.templates.get(id);
  if (!entry?.built && !entry?.building) {
    throw unknownTemplate(id);
  }
  return entry;
}

/** Also the answer for a template that the caller may not know of. */
export function unknownTemplate(id: TemplateId): MitosError {
  return new MitosError("not_found", { cause: `no template has the id ${id}`, remediation: "Create it with POST /v1/templates." });
}

async function ensureBuilt(core: Core, request: TemplateRequest, options: BuildOptions = {}): Promise<Built> {
  const definition = definitionOf(core, request);
  const fresh: Fresh = { pull: options.pull ?? false, noCache: options.noCache ?? false };
  for (;;) {
    const entry = core.templates.get(request.id) ?? { built: null, building: null };
    core.templates.set(request.id, entry);
    if (entry.building) {
      if (entry.building.serves(definition, fresh)) return entry.building.join(options);
      // Another definition is being built: ours replaces it, in order of arrival. Its failure is its caller's.
      await orAborted(Promise.allSettled([entry.building.done]), options.signal, () => new MitosError("canceled"));
      continue;
    }
    const { built } = entry;
    const before = built !== null && definitionOf(core, built.record.request) === definition ? built : null;
    if (built && !before) requireOwner(built.record.request, request);
    const isValid = before !== null && (await isFitting(core, before));
    // The check above waited: somebody may have begun or ended meanwhile, or deleted the entry.
    if (core.templates.get(request.id) !== entry || entry.building || entry.built !== built) continue;
    if (before && isValid && !fresh.pull && !fresh.noCache) return before;
    const building = begin(core, entry, { request, definition, fresh, before, isValid });
    return building.join(options);
  }
}

interface Wanted {
  readonly request: TemplateRequest;
  readonly definition: string;
  readonly fresh: Fresh;
  readonly before: Built | null;
  readonly isValid: boolean;
}

function begin(core: Core, entry: TemplateEntry, { request: asked, definition, fresh, before, isValid }: Wanted): RunningBuild<Built> {
  // A rebuild of the same definition leaves it to whoever made it.
  const request = before?.record.request ?? asked;
  const log = core.buildLogs.begin(request.id);
  const building = new RunningBuild<Built>(
    { definition, request, fresh, log },
    async (signal) => {
      const made = await build(core, { request, before, isValid, fresh }, signal, log.add);
      if (made !== entry.built) replace(core, entry, made);
      return made;
    },
    ({ record }) => record.creationTimeMs,
  );
  entry.building = building;
  const forgetBuild = (): void => {
    entry.building = null;
    if (!entry.built) core.templates.delete(request.id);
  };
  building.done.then(
    () => {
      forgetBuild();
      core.counters.builds.ok += 1;
      core.collector.soon();
    },
    () => {
      forgetBuild();
      core.counters.builds[building.isAborted ? "canceled" : "failed"] += 1;
      core.collector.soon();
    },
  );
  return building;
}

function replace(core: Core, entry: TemplateEntry, made: Built): void {
  try {
    core.templateStore.put(made.record);
  } catch (error) {
    void discard(core, made);
    throw error;
  }
  const { built: replaced } = entry;
  entry.built = made;
  if (replaced) void discard(core, replaced);
}

/** @throws forbidden */
function requireOwner(existing: TemplateRequest, { id, owner }: TemplateRequest): void {
  if (!owner || isSameOwner(owner, existing.owner ?? null)) return;
  throw new MitosError("forbidden", {
    cause: `template ${id} has another definition and belongs to another owner`,
    remediation: "Choose another id for yours, or leave the definition out to use the one that exists.",
    context: { op: "create_template" },
  });
}

export function isSameOwner(a: Owner, b: Owner | null): boolean {
  return b !== null && a.owner === b.owner && a.organisation === b.organisation;
}

async function isFitting(core: Core, { record, snapshot }: Built): Promise<boolean> {
  try {
    await core.driver.checkSnapshot(snapshot.snapshot);
    return true;
  } catch (error) {
    core.log.info({ template: record.request.id, reason: String(error) }, "a template does not fit this host any more and is built anew");
    return false;
  }
}

function publicTemplate({ request, root, snapshot, warnings, createdAtMs, creationTimeMs }: TemplateRecord): Template {
  return { ...request, ready: true, source: root.source, snapshotBytes: storedBytes(snapshot), warnings, createdAtMs, creationTimeMs };
}

/** What an earlier version has recorded without saying of what: there was only the host. */
export function earlierRoot({ id }: TemplateRequest): TemplateRoot {
  return hostRoot(id);
}

/**
 * The same text for the same definition, in whatever order its keys came. An image that the id alone means as well is not a part of it, whether a
 * client says it or not.
 */
function definitionOf(core: Core, { owner: _, image, ...definition }: TemplateRequest): string {
  const { id } = definition;
  const isMeantById = image === id && (isImageReference(id) || (isHostName(id) && !core.images.hasOwnRegistry));
  return canonical(isMeantById ? definition : { ...definition, image });
}
