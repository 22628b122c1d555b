import type { ReadyCheck, Workload } from "../actions.ts";
import type { ImageConfig } from "../images/image.ts";
import { checkReady } from "./request.ts";

/** An image that was pushed from a template says here when its program is ready: the ready check as JSON. */
const readyLabel = "run.mitos.ready";

export function withReadyLabel(config: ImageConfig, ready: ReadyCheck | undefined): ImageConfig {
  const { [readyLabel]: _, ...labels } = config.labels;
  return { ...config, labels: ready ? { ...labels, [readyLabel]: JSON.stringify(ready) } : labels };
}

/** Its own; or what the image says, where it starts what the image starts. */
export function readyOf({ command, ready }: Workload, config: ImageConfig): ReadyCheck | undefined {
  return ready ?? (command.length === 0 ? readyByLabel(config) : undefined);
}

/** Of an image of anybody: what is not a ready check is none. */
export function readyByLabel({ labels }: ImageConfig): ReadyCheck | undefined {
  try {
    const ready = JSON.parse(labels[readyLabel] ?? "") as ReadyCheck;
    checkReady(ready);
    return ready;
  } catch {
    return undefined;
  }
}
