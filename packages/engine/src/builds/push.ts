import { isImageReference, MitosError, type TemplateId } from "@mitos/protocol";
import type { BuildEvent, BuildStep, Workload } from "../actions.ts";
import type { Core } from "../core.ts";
import { ownRootOf } from "../host-templates.ts";
import type { ImageConfig } from "../images/image.ts";
import type { Digest } from "../layers/layer.ts";
import { requireBuilt } from "../templates.ts";
import { readyOf, withReadyLabel } from "./ready-label.ts";
import { labelOf } from "./steps.ts";

/**
 * Makes an image of a template's root and configuration and puts it into a registry. What its machine has in memory stays here.
 *
 * @throws not_found, conflict (it is being built), invalid_input (it has no image; no reference), unauthorized, unavailable
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
      cause: `template ${id} is made of ${ownRootOf(core.driver)}, which is no image`,
      remediation: "Build it on an image, such as debian:12-slim, and push that.",
    });
  }
  using _use = core.layers.use(layers.map((layer) => layer.id));
  const { workload, steps = [] } = record.request;
  return await core.images.push(
    { layers, config: workload ? withWorkload(config, workload) : withReadyLabel(config, undefined), history: steps.map(historyOf) },
    reference,
    { ...(signal ? { signal } : {}), ...(onEvent ? { onEvent } : {}) },
  );
}

/** What the template starts is what the image starts. */
function withWorkload(config: ImageConfig, workload: Workload): ImageConfig {
  const { command, env } = workload;
  const started = command.length > 0 ? { entrypoint: [], command } : {};
  return withReadyLabel({ ...config, env: { ...config.env, ...env }, ...started }, readyOf(workload, config));
}

function historyOf(step: BuildStep): string {
  return `${step.kind} ${labelOf(step)}`;
}
