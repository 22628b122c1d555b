import { MitosError } from "@mitos/protocol";
import type { Language, Runtime, TemplateRequest, TemplateSource, WarmCode } from "../actions.ts";
import { asMitosError, type Core } from "../core.ts";
import type { Snapshot } from "../driver.ts";
import type { Guest } from "../guest.ts";
import { ownRootOf } from "../host-templates.ts";
import type { Digest, LayerUse } from "../layers/layer.ts";
import { SharedSnapshot } from "../snapshots.ts";
import type { TemplateRecord, TemplateRoot } from "../store/templates.ts";
import { commandOf, runWorkload } from "../workload.ts";
import { askBaseKey, type Base, findBase, takeBase } from "./base.ts";
import { keyWithin } from "./chain.ts";
import type { Tell } from "./events.ts";
import { type Session, withMachine } from "./machine.ts";
import { Output, tailCharacters } from "./output.ts";
import { readyOf } from "./ready-label.ts";
import type { Fresh } from "./running.ts";
import { runSteps } from "./steps.ts";

/** To start kernels and to save: beside what the request itself gives its program and its code. */
const overheadMsMax = 15 * 60 * 1000;

/** A template that is ready. */
export interface Built {
  readonly record: TemplateRecord;
  readonly snapshot: SharedSnapshot;
  /** Null = it has none. */
  readonly layers: LayerUse | null;
}

export interface BuildWork {
  readonly request: TemplateRequest;
  /** The template as it is, when it has the same definition. */
  readonly before: Built | null;
  /** Whether that one fits this host. */
  readonly isValid: boolean;
  readonly fresh: Fresh;
}

/**
 * Makes a template: finds its base, runs its steps, boots a machine of the root, brings it into the state that sandboxes start from, and saves
 * it. Whatever fails, nothing of it is left but the layers, which the next try takes up.
 *
 * One that is made again for another agent or host is made of what it was made of, without a registry; with `pull`, and nothing new there, it
 * stays as it is.
 */
export async function build(core: Core, { request, before, isValid, fresh }: BuildWork, signal: AbortSignal, tell: Tell): Promise<Built> {
  const startedMs = performance.now();
  try {
    using scope = new DisposableStack();
    const keep = (id: Digest): void => {
      scope.use(core.layers.use([id]));
    };
    const { root, warnings } = (before && !fresh.pull && !fresh.noCache && knownRoot(core, before)) || (await makeRoot());
    if (root === null) return before as Built;
    const layers = root.layers ? core.layers.use(root.layers.map(({ id }) => id)) : null;
    try {
      const snapshot = await boot(core, request, root, layers, signal, tell);
      const creationTimeMs = Math.round(performance.now() - startedMs);
      core.log.info({ template: request.id, creationTimeMs, snapshotBytes: snapshot.bytes }, "template ready");
      const record = { request, root, snapshot, warnings, createdAtMs: core.clock.nowMs(), creationTimeMs };
      return { record, snapshot: new SharedSnapshot(snapshot), layers };
    } catch (error) {
      layers?.[Symbol.dispose]();
      throw error;
    }

    /** Null = what is there already is still right. */
    async function makeRoot(): Promise<{ root: TemplateRoot | null; warnings: readonly string[] }> {
      tell({ kind: "phase", phase: "resolve", detail: request.image ?? request.id });
      const base = await findBase(core, request, signal);
      if (before && isValid && !fresh.noCache && (await isUnchanged(core, before, base, signal))) return { root: null, warnings: [] };
      const hold = (layers: readonly Digest[]): void => {
        scope.use(core.layers.hold(layers));
      };
      const taken = await takeBase(core, base, { pull: fresh.pull, signal, tell, hold });
      for (const { id } of taken.layers ?? []) keep(id);
      const warnings = base.kind === "host" ? base.warnings : [];
      for (const text of warnings) tell({ kind: "warning", text });
      return { root: await withSteps(core, request, taken, { noCache: fresh.noCache, signal, tell, keep }), warnings };
    }
  } catch (error) {
    if (signal.aborted) throw signal.reason;
    const failure = asVerdict(error, request);
    // What programs have printed is their caller's.
    const { code, detail } = failure;
    core.log.warn(
      { template: request.id, code, ...detail.context, reason: detail.reason && String(detail.reason) },
      "a template could not be built",
    );
    throw failure;
  }
}

function asVerdict(error: unknown, { id }: TemplateRequest): MitosError {
  const ours = asMitosError(error, `template ${id}`);
  return ours.code === "internal" ? new MitosError("build_failed", { cause: ours.message, reason: error }) : ours;
}

/** What it was made of, when all of that is still here. */
function knownRoot(core: Core, { record }: Built): { root: TemplateRoot; warnings: readonly string[] } | null {
  const { root, warnings } = record;
  return root.layers?.every(({ id }) => core.layers.has(id)) === false ? null : { root, warnings };
}

async function isUnchanged(core: Core, { record }: Built, base: Base, signal: AbortSignal): Promise<boolean> {
  return (await askBaseKey(core, base, signal)) === record.root.baseKey;
}

async function withSteps(
  core: Core,
  request: TemplateRequest,
  base: TemplateRoot,
  options: Parameters<typeof runSteps>[3],
): Promise<TemplateRoot> {
  const hasSteps = (request.steps ?? []).length > 0;
  if (base.layers === null || base.baseKey === null) {
    if (hasSteps) throw stepsWithoutImage(core);
    return base;
  }
  const start = { layers: base.layers, config: base.config, key: keyWithin(base.baseKey, request.owner?.organisation) };
  const { layers, config } = await runSteps(core, request, start, options);
  const rootBytes = layers.reduce((sum, { id }) => sum + (core.layers.get(id)?.bytes ?? 0), 0);
  const source: TemplateSource = { ...base.source, kind: hasSteps ? "build" : base.source.kind, layers: layers.length, rootBytes };
  return { ...base, source, layers, config };
}

function stepsWithoutImage({ driver }: Core): MitosError {
  return new MitosError("invalid_input", {
    cause: `steps need an image to build on, and this template is made of ${ownRootOf(driver)}`,
    remediation: "Name an image with its tag, such as debian:12-slim or python:3.12-slim.",
  });
}

// ---------------------------------------------------------------- the machine that is saved

async function boot(
  core: Core,
  request: TemplateRequest,
  root: TemplateRoot,
  layers: LayerUse | null,
  signal: AbortSignal,
  tell: Tell,
): Promise<Snapshot> {
  const { id, network, resources, workload, warm } = request;
  // Said before a machine is started for nothing.
  const command = workload ? commandOf(workload, root.config) : null;
  const ready = workload && readyOf(workload, root.config);
  const spec = {
    id,
    network,
    resources,
    config: root.config,
    root: layers ? ({ kind: "layers", layers: layers.layers } as const) : ({ kind: "host" } as const),
    workMsMax: overheadMsMax + 1000 * ((ready?.timeoutSeconds ?? 0) + (warm?.timeoutSeconds ?? 0)),
  };
  tell({ kind: "phase", phase: "boot", detail: layers ? `a root of ${layers.layers.length} layers` : ownRootOf(core.driver) });
  return withMachine(core, spec, signal, async (session) => {
    if (root.config.user) await requireUser(session.guest.runtime, root.config.user);
    if (workload && command) {
      tell({ kind: "phase", phase: "start", detail: command.join(" ").slice(0, 200) });
      await runWorkload(session.guest.runtime, { env: workload.env, command, ready }, signal);
    }
    await warmUp(core, session.guest, { id, root, warm }, tell);
    return save(core, session, tell);
  });
}

/** Said now rather than by every program of every sandbox. */
async function requireUser(runtime: Runtime, user: string): Promise<void> {
  let problem = "";
  try {
    // The one program that every machine has.
    for await (const event of runtime.exec({ argv: ["/opt/mitos/bin/mitos-guest", "version"], cwd: "/" })) {
      if (event.kind === "exit") problem = event.error;
    }
  } catch (error) {
    problem = asMitosError(error, "it could not be tried").message;
  }
  if (!problem) return;
  throw new MitosError("build_failed", {
    cause: `nothing can be run as the user ${user}: ${problem}`,
    remediation: "Name a user of the image, or make it in a run step before the user step.",
    context: { step_kind: "user" },
  });
}

interface WarmUp {
  readonly id: string;
  readonly root: TemplateRoot;
  readonly warm?: WarmCode | undefined;
}

/** A root without an interpreter makes a template without a warm kernel, which run_code reports when it is asked for. */
async function warmUp(core: Core, guest: Guest, { id, root, warm }: WarmUp, tell: Tell): Promise<void> {
  const other: Language = root.language === "javascript" ? "python" : "javascript";
  const wanted = root.language === null ? [] : root.layers ? [root.language, other] : [root.language];
  for (const language of wanted) {
    tell({ kind: "phase", phase: "warm", detail: language });
    const { available, detail } = await guest.warmKernel(language);
    if (available) break;
    const level = root.layers ? "info" : "warn";
    core.log[level]({ template: id, language, detail }, "the template has no such interpreter to wake with");
  }
  if (warm) await runWarmCode(guest, warm, tell);
}

/** @throws build_failed with the traceback */
async function runWarmCode({ runtime }: Guest, { language, code, timeoutSeconds }: WarmCode, tell: Tell): Promise<void> {
  tell({ kind: "phase", phase: "warm", detail: `${language} code of the template` });
  const output = new Output((stream, text) => tell({ kind: "log", step: null, stream, text }));
  for await (const { msg } of runtime.runCode({ code, language, timeoutMs: timeoutSeconds * 1000 })) {
    if (msg.case === "stdout" || msg.case === "stderr") output.add(msg.case, msg.value);
    if (msg.case !== "error") continue;
    const { name, value, traceback } = msg.value;
    throw new MitosError("build_failed", {
      cause:
        `the code that warms the ${language} kernel failed with ${name}: ${value}\n${traceback.join("\n").slice(-tailCharacters)}`.trimEnd(),
      remediation: "Correct the code, or install what it imports in a step before it.",
      context: { step_kind: "warm" },
    });
  }
  output.end();
}

async function save(core: Core, { machine, guest }: Session, tell: Tell): Promise<Snapshot> {
  tell({ kind: "phase", phase: "save", detail: "" });
  await guest.quiesce();
  // The machine ends with its snapshot; that its link ends then is no loss.
  guest.close(new MitosError("canceled", { cause: "the template is being saved" }));
  const take = (dir: string) => core.driver.snapshot(machine, dir, { leaveRunning: false, durable: false });
  const snapshot = await core.places.save(
    "template",
    { expectedBytes: (await machine.meter()).memoryBytes, machineRoomBytes: core.driver.snapshotRoom?.(machine) },
    take,
  );
  core.counters.saved("template", snapshot.bytes);
  core.driver.prepare(machine, 1);
  return snapshot;
}
