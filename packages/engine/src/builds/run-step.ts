import { limits, MitosError } from "@mitos/protocol";
import type { NetworkPolicy, ProcessExit, Runtime } from "../actions.ts";
import type { Core } from "../core.ts";
import type { MachineResources } from "../driver.ts";
import type { ImageConfig } from "../images/image.ts";
import type { Layer } from "../layers/layer.ts";
import { withMachine } from "./machine.ts";
import { Output } from "./output.ts";

/** Compilers and package managers want more than what runs afterwards. */
const memSizeMiBMin = 1024;
/** All but the agent and itself. */
export const killAll = "kill -KILL -1";
/** A step ends with its command: what that has left running would hold its output open. */
const thenKillAll = `/bin/sh -c "$1"; code=$?; ${killAll} 2>/dev/null; exit $code`;
const killMsMax = 60_000;
/** To read what a step has changed. */
const changesMsMax = 30 * 60 * 1000;

export interface RunStep {
  readonly id: string;
  readonly command: string;
  readonly base: readonly Layer[];
  readonly config: ImageConfig;
  readonly network: NetworkPolicy;
  readonly resources: MachineResources;
}

/**
 * Runs one command in a machine of its own, made of the layers so far. What it changes becomes a layer.
 *
 * @throws build_failed when it does not end with 0, takes longer than `limits.buildStepTimeoutSeconds` or more memory than there is
 */
export async function runStep(
  core: Core,
  { id, command, base, config, network, resources }: RunStep,
  signal: AbortSignal,
  tell: (stream: "stdout" | "stderr", text: string) => void,
): Promise<Layer> {
  const spec = {
    id,
    root: { kind: "layers", layers: base },
    resources: { ...resources, memSizeMiB: memSizeMiBFor(core, resources) },
    scratch: "disk",
    network,
    config,
    workMsMax: limits.buildStepTimeoutSeconds * 1000 + changesMsMax,
  } as const;
  return withMachine(core, spec, signal, async ({ guest }) => {
    const output = new Output(tell);
    let exit: ProcessExit | undefined;
    const timeoutMs = limits.buildStepTimeoutSeconds * 1000;
    try {
      for await (const event of guest.runtime.exec({ argv: ["/bin/sh", "-c", thenKillAll, "sh", command], timeoutMs }, signal)) {
        if (event.kind === "output") output.add(event.stream, event.data);
        if (event.kind === "exit") exit = event;
      }
    } finally {
      output.end();
    }
    if (!exit || exit.error || exit.timedOut || exit.signal || exit.exitCode !== 0) throw failed(exit, output.tail);
    await endPrograms(guest.runtime);
    return core.layers.addChanges(guest.changes(signal), base, { signal });
  });
}

/** What runs as another user than the step does not end with it, and must not write while changes are read. */
async function endPrograms(runtime: Runtime): Promise<void> {
  for await (const _ of runtime.exec({ argv: ["/bin/sh", "-c", killAll], user: "0", cwd: "/", timeoutMs: killMsMax }));
}

/** More than the template has, as far as the host has it to give. */
function memSizeMiBFor(core: Core, { memSizeMiB }: MachineResources): number {
  return Math.max(memSizeMiB, Math.min(memSizeMiBMin, Math.floor(core.admission.roomBytes / (1024 * 1024))));
}

function failed(exit: ProcessExit | undefined, tail: string): MitosError {
  const cause = `${describe(exit)}${tail ? `; its output ended with:\n${tail}` : " and printed nothing"}`;
  return new MitosError("build_failed", { cause });
}

function describe(exit: ProcessExit | undefined): string {
  if (!exit) return "it ended without an exit code";
  if (exit.error) return `it could not be run: ${exit.error}`;
  if (exit.timedOut) return `it was not done after ${limits.buildStepTimeoutSeconds} s and was killed`;
  if (exit.signal) return `it was killed by signal ${exit.signal}`;
  return `it ended with exit code ${exit.exitCode}`;
}
