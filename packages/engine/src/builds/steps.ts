import { MitosError } from "@mitos/protocol";
import type { BuildEvent, BuildStep, TemplateRequest } from "../actions.ts";
import { asMitosError, type Core } from "../core.ts";
import type { Image, ImageConfig } from "../images/image.ts";
import type { Digest, Layer, LayerUse } from "../layers/layer.ts";
import { orAborted } from "../or-aborted.ts";
import { stepKey } from "./chain.ts";
import { configAfter, expandSteps, resolveIn } from "./config.ts";
import type { Tell } from "./events.ts";
import { runStep } from "./run-step.ts";

/** How much of what a step has said is told to a build that joins it later. */
const lateCharactersMax = 4 * 1024 * 1024;
/** How much of a command is shown. */
const labelCharactersMax = 200;

/** What a root is made of, as far as a build has come. */
export interface RootState {
  /** Lowest first. */
  readonly layers: Image["layers"];
  readonly config: ImageConfig;
}

/** A state and the name under which what follows from it is stored. */
interface Chained extends RootState {
  readonly key: Digest;
}

export interface StepOptions {
  readonly noCache: boolean;
  readonly signal: AbortSignal;
  readonly tell: Tell;
  /** Takes a layer into use until whoever builds has written down that it is needed. */
  readonly keep: (id: Digest) => void;
}

/**
 * Runs the steps of a template upon a base. What is stored of them is taken from there; each other one is run once, however many builds ask for
 * it at the same time.
 *
 * @throws build_failed with the step; invalid_input for a copy step whose context is not there
 */
export async function runSteps(core: Core, request: TemplateRequest, base: Chained, options: StepOptions): Promise<RootState> {
  const steps = expandSteps(request.steps ?? [], base.config);
  await requireContexts(core, steps, base.key, options.noCache);
  let state = base;
  for (const [index, step] of steps.entries()) {
    options.signal.throwIfAborted();
    const startedMs = performance.now();
    const tellState = (how: "running" | "cached" | "done" | "failed"): void => {
      const ms = Math.round(performance.now() - startedMs);
      options.tell({ kind: "step", index, count: steps.length, type: step.kind, label: labelOf(step), state: how, ms });
    };
    const key = stepKey(state.key, step);
    const config = configAfter(state.config, step);
    try {
      const stored = options.noCache ? undefined : storedStep(core, key);
      let layer = stored?.layer ?? null;
      if (layer) options.keep(layer);
      if (stored && changesFiles(step)) core.counters.steps.cached += 1;
      tellState(stored ? "cached" : "running");
      if (!stored && changesFiles(step)) {
        layer = await shareStep(core, request, { step, key, state }, options, (stream, text) =>
          options.tell({ kind: "log", step: index, stream, text }),
        );
      } else if (!stored) {
        storeStep(core, request, key, null);
      }
      if (!stored) tellState("done");
      state = { key, config, layers: layer ? [...state.layers, { id: layer, origin: null }] : state.layers };
    } catch (error) {
      if (!options.signal.aborted) tellState("failed");
      throw options.signal.aborted ? error : atStep(error, step, index);
    }
  }
  return state;
}

/** `env` and `user` change no file; a working directory is one that may have to be made. */
function changesFiles({ kind }: BuildStep): boolean {
  return kind === "run" || kind === "copy" || kind === "workdir";
}

/** One whose layer was collected is not stored any more. */
function storedStep(core: Core, key: Digest): { readonly layer: Digest | null } | undefined {
  const step = core.stepStore.get(key);
  if (!step || (step.layer !== null && !core.layers.has(step.layer))) return undefined;
  core.stepStore.touch(key, core.clock.nowMs());
  return step;
}

/** @param layer - null = it has changed no file */
function storeStep(core: Core, { id }: TemplateRequest, key: Digest, layer: Pick<Layer, "id" | "bytes"> | null): void {
  const nowMs = core.clock.nowMs();
  const { id: layerId = null, bytes = 0 } = layer ?? {};
  core.stepStore.put({ key, layer: layerId, bytes, createdAtMs: nowMs, lastUsedAtMs: nowMs, template: id });
}

/** Before anything is run: a client brings the files of its copy steps first. What is stored needs them no more. */
async function requireContexts(core: Core, steps: readonly BuildStep[], from: Digest, noCache: boolean): Promise<void> {
  let key = from;
  for (const [index, step] of steps.entries()) {
    key = stepKey(key, step);
    if (step.kind !== "copy" || (!noCache && storedStep(core, key))) continue;
    if (await core.images.hasContext(step.context)) continue;
    throw new MitosError("invalid_input", {
      cause: `build_steps[${index}] copies ${step.context}, which is not here`,
      remediation: `Send the files first, as a tar with this digest: PUT /v1/contexts/${step.context}.`,
      context: { step: index, step_kind: "copy" },
    });
  }
}

// ---------------------------------------------------------------- one step, once

interface StepWork {
  readonly step: BuildStep;
  readonly key: Digest;
  readonly state: RootState;
}

type Line = Pick<Extract<BuildEvent, { kind: "log" }>, "stream" | "text">;

/** A step that runs now, for everybody who waits for it. */
export interface RunningStep {
  /** Null = it has changed no file. The layer is in use as long as somebody waits. */
  readonly done: Promise<{ readonly id: Digest; readonly use: LayerUse } | null>;
  readonly lines: Line[];
  readonly listeners: Set<(line: Line) => void>;
  readonly controller: AbortController;
  waiting: number;
}

/** Joins one that runs, or begins it. It is ended when the last of those who wait has left. */
async function shareStep(
  core: Core,
  request: TemplateRequest,
  work: StepWork,
  { signal, keep }: Pick<StepOptions, "signal" | "keep">,
  tell: (stream: Line["stream"], text: string) => void,
): Promise<Digest | null> {
  // What one network lets through another does not: such runs are two, though what they make is stored under one name.
  const name = JSON.stringify([work.key, request.network, request.resources]);
  const running = core.runningSteps.get(name) ?? begin(core, request, work, name);
  const listener = ({ stream, text }: Line): void => tell(stream, text);
  for (const line of running.lines) listener(line);
  running.listeners.add(listener);
  running.waiting += 1;
  try {
    const made = await orAborted(running.done, signal, () => signal.reason);
    if (made) keep(made.id);
    return made?.id ?? null;
  } finally {
    running.listeners.delete(listener);
    running.waiting -= 1;
    if (running.waiting === 0) {
      running.controller.abort(signal.reason ?? new MitosError("canceled"));
      if (core.runningSteps.get(name) === running) core.runningSteps.delete(name);
      // Whoever leaves last sees its machine gone.
      const made = await running.done.catch(() => null);
      made?.use[Symbol.dispose]();
    }
  }
}

function begin(core: Core, request: TemplateRequest, work: StepWork, name: string): RunningStep {
  const controller = new AbortController();
  const lines: Line[] = [];
  let kept = 0;
  const listeners = new Set<(line: Line) => void>();
  const tell = (stream: Line["stream"], text: string): void => {
    const line = { stream, text };
    if (kept < lateCharactersMax) lines.push(line);
    kept += text.length;
    for (const listener of listeners) listener(line);
  };
  const done = make(core, request, work, controller.signal, tell);
  const running: RunningStep = { done, lines, listeners, controller, waiting: 0 };
  core.runningSteps.set(name, running);
  const forget = (): void => {
    if (core.runningSteps.get(name) === running) core.runningSteps.delete(name);
  };
  done.then(forget, forget);
  return running;
}

async function make(
  core: Core,
  request: TemplateRequest,
  { step, key, state }: StepWork,
  signal: AbortSignal,
  tell: (stream: Line["stream"], text: string) => void,
): Promise<Awaited<RunningStep["done"]>> {
  using base = core.layers.use(state.layers.map(({ id }) => id));
  core.counters.steps.run += 1;
  const layer = await makeLayer(core, request, { step, state }, base.layers, signal, tell);
  const made = layer.entries > 0 ? { id: layer.id, use: core.layers.use([layer.id]) } : null;
  try {
    storeStep(core, request, key, made && layer);
  } catch (error) {
    made?.use[Symbol.dispose]();
    throw error;
  }
  return made;
}

function makeLayer(
  core: Core,
  { id, network, resources }: TemplateRequest,
  { step, state }: Pick<StepWork, "step" | "state">,
  base: readonly Layer[],
  signal: AbortSignal,
  tell: (stream: Line["stream"], text: string) => void,
): Promise<Layer> {
  const root = { uid: 0, gid: 0, signal };
  switch (step.kind) {
    case "run":
      return runStep(core, { id, command: step.command, base, config: state.config, network, resources }, signal, tell);
    case "copy":
      return core.layers.addCopy(core.images.openContext(step.context), base, { dest: resolveIn(state.config, step.dest), ...root });
    case "workdir":
      return core.layers.addCopy(emptyTar(), base, { dest: `${resolveIn(state.config, step.path).replace(/\/$/, "")}/`, ...root });
    default:
      throw new Error(`broken invariant: a step of kind ${step.kind} changes no file`);
  }
}

async function* emptyTar(): AsyncGenerator<Uint8Array> {
  yield Buffer.alloc(1024);
}

// ---------------------------------------------------------------- how a step is told

/** Values of variables may be secrets. */
export function labelOf(step: BuildStep): string {
  switch (step.kind) {
    case "run":
      return step.command.length > labelCharactersMax ? `${step.command.slice(0, labelCharactersMax)}…` : step.command;
    case "env":
      return step.name;
    case "workdir":
      return step.path;
    case "user":
      return step.user;
    case "copy":
      return `${step.source} ${step.dest}`;
  }
}

function atStep(error: unknown, step: BuildStep, index: number): MitosError {
  const ours = asMitosError(error, "it failed");
  // What is not the step's fault keeps its code, so that it is known whether to try again.
  if (ours.code !== "build_failed" && ours.code !== "internal") return ours;
  const { cause = "it failed", context, ...rest } = ours.detail;
  return new MitosError("build_failed", {
    ...rest,
    cause: `step ${index} (${step.kind} ${labelOf(step)}): ${cause}`,
    context: { ...context, step: index, step_kind: step.kind },
    remediation: rest.remediation ?? "Change that step and create the template again: the steps before it are not run again.",
  });
}
