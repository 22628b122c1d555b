import { isImageReference, MitosError, type TemplateId } from "@mitos/protocol";
import type { BuildEvent, BuildStep, Workload } from "../actions.ts";
import type { Core } from "../core.ts";
import type { ImageConfig } from "../images/image.ts";
import type { Digest } from "../layers/layer.ts";
import { requireBuilt } from "../templates.ts";
import { labelOf } from "./steps.ts";

/** Says that an image was a template, and when its program is ready: one JSON value, the ready check. */
export const readyLabel = "run.mitos.ready";

/**
 * Makes an image of a template's root and configuration and puts it into a registry. What its machine has in memory stays here.
 *
 * @throws not_found, conflict (it is being built), invalid_input (the host's files; no reference), unauthorized, unavailable
 */
export async function pushTemplate(
  core: Core,
  id: TemplateId,
  reference: string,
  { signal, onEvent }: { signal?: AbortSignal | undefined; onEvent?: ((event: BuildEvent) => void) | undefined } = {},
): Promise<{ readonly reference: string; readonly digest: Digest }> {
  if (!isImageReference(reference))
    throw new MitosError("invalid_input", { cause: "an image goes to a reference such as registry.example/team/tool:1" });
  const { record } = requireBuilt(core, id);
  const { layers, config } = record.root;
  if (layers === null) {
    throw new MitosError("invalid_input", {
      cause: `template ${id} is made of the host's own files, which are no image`,
      remediation: "Build it on an image, such as debian:12-slim, and push that.",
    });
  }
  using _use = core.layers.use(layers.map((layer) => layer.id));
  const { workload, steps = [] } = record.request;
  return await core.images.push(
    { layers, config: workload ? withWorkload(config, workload) : config, history: steps.map(historyOf) },
    reference,
    { ...(signal ? { signal } : {}), ...(onEvent ? { onEvent } : {}) },
  );
}

/** What the template starts is what the image starts. */
function withWorkload(config: ImageConfig, { command, env, ready }: Workload): ImageConfig {
  return {
    ...config,
    env: { ...config.env, ...env },
    ...(command.length > 0 ? { entrypoint: [], command } : {}),
    labels: { ...config.labels, ...(ready ? { [readyLabel]: JSON.stringify(ready) } : {}) },
  };
}

function historyOf(step: BuildStep): string {
  return `${step.kind} ${labelOf(step)}`;
}
