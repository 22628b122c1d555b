import { isImageReference, MitosError, type TemplateId } from "@mitos/protocol";
import type { Owner, Template, TemplateRequest, TemplateSource } from "./actions.ts";
import { machineOverheadBytes } from "./admission.ts";
import { asMitosError, type Core, newMachineId } from "./core.ts";
import { type Machine, programsMax, type Snapshot } from "./driver.ts";
import type { Guest } from "./guest.ts";
import { hostNameOf } from "./host-name.ts";
import { SharedSnapshot } from "./snapshots.ts";
import type { TemplateRecord } from "./store/templates.ts";
import { runWorkload } from "./workload.ts";

/** Generation of a template's own machine; its sandboxes begin above it. */
const templateGeneration = 1;
/** A build's machine must not stay when its server dies and none comes back. */
const buildMsMax = 15 * 60 * 1000;
/** What a booting root with one warm kernel takes, as far as it is known before there is a snapshot. */
const bootBytes = 128 * 1024 * 1024;

const hostSource: TemplateSource = { kind: "host", reference: "", digest: null, layers: 0, rootBytes: 0 };

interface Built {
  readonly record: TemplateRecord;
  readonly snapshot: SharedSnapshot;
}

export interface TemplateEntry {
  built: Built | null;
  building: { readonly definition: string; readonly request: TemplateRequest; readonly done: Promise<Built> } | null;
}

/** A template in use: its snapshot stays until this is disposed of, whatever happens to the template. */
export interface TemplateUse extends Disposable {
  readonly request: TemplateRequest;
  readonly snapshot: Snapshot;
  readonly generation: number;
}

/**
 * Makes a template ready. An id that exists with the same definition is answered from its snapshot while that is still valid; a changed
 * definition is built and takes its place, and sandboxes of the old one run on. Equal builds at the same time are one.
 *
 * @throws build_failed, quota_exceeded, not_supported (an image; a workload on the mock engine)
 */
export async function createTemplate(core: Core, request: TemplateRequest): Promise<Template> {
  if (request.workload && core.driver.name === "mock") {
    throw new MitosError("not_supported", { cause: "the mock engine starts no workload" });
  }
  // Under the name of an image there must never be the host's files.
  if (isImageReference(request.id) && core.driver.name !== "mock") {
    throw new MitosError("not_supported", {
      message: "images are not built yet",
      cause: `${request.id} names an image`,
      remediation: "Use the template python, node or base.",
    });
  }
  return publicTemplate(await ensureBuilt(core, request));
}

export function listTemplates(core: Core): readonly Template[] {
  return [...core.templates.values()].flatMap(({ built, building }) => {
    if (built) return [publicTemplate(built)];
    if (!building) return [];
    const unknown = { source: hostSource, snapshotBytes: 0, warnings: [] };
    return [{ ...building.request, ...unknown, ready: false, createdAtMs: core.clock.nowMs(), creationTimeMs: 0 }];
  });
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
  // Waits for creates that read it now.
  await entry.built?.snapshot.discard();
}

/** The snapshot to start from; built anew first when it does not fit this host any more. @throws not_found, build_failed, quota_exceeded */
export async function useTemplate(core: Core, id: TemplateId): Promise<TemplateUse> {
  const { built, building } = requireTemplate(core, id);
  const request = building?.request ?? built?.record.request;
  if (!request) throw new Error(`broken invariant: template ${id} is neither built nor being built`);
  const ready = await ensureBuilt(core, request);
  const giveBack = ready.snapshot.borrow();
  return { request, snapshot: ready.snapshot.snapshot, generation: templateGeneration, [Symbol.dispose]: giveBack };
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

async function ensureBuilt(core: Core, request: TemplateRequest): Promise<Built> {
  const definition = definitionOf(request);
  for (;;) {
    const entry = core.templates.get(request.id) ?? { built: null, building: null };
    core.templates.set(request.id, entry);
    if (entry.building) {
      if (entry.building.definition === definition) return entry.building.done;
      // Another definition is being built: ours replaces it, in order of arrival. Its failure is its caller's.
      await entry.building.done.catch(() => undefined);
      continue;
    }
    const { built } = entry;
    const isSame = built !== null && definitionOf(built.record.request) === definition;
    if (built && !isSame) requireOwner(built.record.request, request);
    if (isSame && (await isValid(core, built))) return built;
    // The check above waited: somebody may have begun meanwhile, or deleted the entry.
    if (core.templates.get(request.id) !== entry || entry.building) continue;
    // A rebuild of the same definition leaves it to whoever made it.
    const done = build(core, isSame ? built.record.request : request).then((fresh) => {
      const { built: replaced } = entry;
      try {
        core.templateStore.put(fresh.record);
      } catch (error) {
        void fresh.snapshot.discard();
        throw error;
      }
      entry.built = fresh;
      void replaced?.snapshot.discard();
      return fresh;
    });
    entry.building = { definition, request, done };
    const forgetBuild = (): void => {
      entry.building = null;
      if (!entry.built) core.templates.delete(request.id);
    };
    done.then(forgetBuild, forgetBuild);
    return done;
  }
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

async function isValid(core: Core, { record, snapshot }: Built): Promise<boolean> {
  try {
    await core.driver.checkSnapshot(snapshot.snapshot);
    return true;
  } catch (error) {
    core.log.info({ template: record.request.id, reason: String(error) }, "a template does not fit this host any more and is built anew");
    return false;
  }
}

/** Boots a machine, brings it into the state that its sandboxes start from, saves it. Whatever fails, the machine is gone afterwards. */
async function build(core: Core, request: TemplateRequest): Promise<Built> {
  const startedMs = performance.now();
  using _memory = core.admission.reserve(
    "template",
    Math.min(bootBytes, request.resources.memSizeMiB * 1024 * 1024) + 2 * machineOverheadBytes,
  );
  const spec = {
    machineId: newMachineId(),
    root: { kind: "host" },
    resources: request.resources,
    hostName: hostNameOf(request.id),
  } as const;
  let machine: Machine | undefined;
  let guest: Guest | undefined;
  try {
    machine = await core.starts.run(() => core.driver.boot(spec));
    await machine.setDeadline(Date.now() + buildMsMax);
    guest = core.connectGuest(machine, {
      onActivity: () => () => {},
      egress: core.egress.open({ id: request.id, network: request.network, usage: { sentBytes: 0, receivedBytes: 0 } }),
      onForkSelf: () => Promise.reject(new MitosError("budget_exhausted", { cause: "a template that is being built cannot fork" })),
      onLost: (error) => core.log.warn({ template: request.id, error: error.message }, "the link to a template's machine was lost"),
    });
    await guest.open({
      sandboxId: request.id,
      templateId: request.id,
      parentId: null,
      generation: templateGeneration,
      env: {},
      secrets: {},
      forgetSecrets: true,
      deadlineMs: null,
      forkBudget: 0,
      forksUsed: 0,
      processesMax: programsMax(request.resources),
    });
    if (request.workload) await runWorkload(guest.runtime, request.workload);
    await warm(core, guest, request.id);
    await guest.quiesce();
    // The machine ends with its snapshot; that its link ends then is no loss.
    guest.close(new MitosError("canceled", { cause: "the template is being saved" }));
    const saving = machine;
    const save = (dir: string) => core.driver.snapshot(saving, dir, { leaveRunning: false, durable: false });
    const snapshot = await core.places.save("template", (await machine.meter()).memoryBytes, save);
    core.counters.saved("template", snapshot.bytes);
    const creationTimeMs = Math.round(performance.now() - startedMs);
    core.log.info({ template: request.id, creationTimeMs, snapshotBytes: snapshot.bytes }, "template ready");
    core.driver.prepare(machine, 1);
    return { record: { request, snapshot, createdAtMs: core.clock.nowMs(), creationTimeMs }, snapshot: new SharedSnapshot(snapshot) };
  } catch (error) {
    core.log.warn({ template: request.id, error: String(error) }, "a template could not be built");
    if (error instanceof MitosError && error.code !== "internal" && error.code !== "unavailable") throw error;
    throw new MitosError("build_failed", { cause: asMitosError(error, `template ${request.id}`).message, reason: error });
  } finally {
    guest?.close(new MitosError("canceled", { cause: "the template's build is over" }));
    await machine?.end("template build over");
  }
}

/** `python` and whatever is not known otherwise wakes with a Python kernel, `node` with a JavaScript one, `base` with none. */
function warmLanguage(id: TemplateId): string | null {
  const languages: Readonly<Record<string, string | null>> = { base: null, node: "javascript" };
  return Object.hasOwn(languages, id) ? (languages[id] ?? null) : "python";
}

/** A root without the interpreter makes a template without a warm kernel, which run_code reports when it is asked for. */
async function warm(core: Core, guest: Guest, id: TemplateId): Promise<void> {
  const language = warmLanguage(id);
  if (!language) return;
  const { available, detail } = await guest.warmKernel(language);
  if (!available) core.log.warn({ template: id, language, detail }, "the template has no warm kernel");
}

function publicTemplate({ record }: Built): Template {
  return {
    ...record.request,
    ready: true,
    source: hostSource,
    snapshotBytes: record.snapshot.bytes,
    warnings: [],
    createdAtMs: record.createdAtMs,
    creationTimeMs: record.creationTimeMs,
  };
}

/** The same text for the same definition, in whatever order its keys came. */
function definitionOf({ owner: _, ...definition }: TemplateRequest): string {
  return JSON.stringify(definition, (_key, part: unknown) =>
    part !== null && typeof part === "object" && !Array.isArray(part)
      ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1)))
      : part,
  );
}
