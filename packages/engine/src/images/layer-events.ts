import type { BuildEvent } from "../actions.ts";
import type { Clock } from "../clock.ts";
import type { Digest } from "../layers/layer.ts";

export type LayerEvent = BuildEvent & { readonly kind: "layer" };

/** Between two events of one layer that differ in bytes alone. */
const betweenMs = 200;

/** Tells how far one layer has come: each new state at once, bytes now and then. */
export class LayerProgress {
  readonly #clock: Clock;
  readonly #emit: (event: LayerEvent) => void;
  readonly #layer: { readonly digest: Digest; readonly totalBytes: number };
  #state: LayerEvent["state"] = "waiting";
  #doneBytes = 0;
  #toldAtMs = 0;

  constructor(clock: Clock, layer: { digest: Digest; totalBytes: number }, emit: (event: LayerEvent) => void) {
    this.#clock = clock;
    this.#layer = layer;
    this.#emit = emit;
  }

  enter(state: LayerEvent["state"], doneBytes = this.#doneBytes): void {
    this.#state = state;
    this.#doneBytes = doneBytes;
    this.#tell();
  }

  reach(doneBytes: number): void {
    this.#doneBytes = doneBytes;
    if (this.#clock.nowMs() - this.#toldAtMs >= betweenMs) this.#tell();
  }

  #tell(): void {
    this.#toldAtMs = this.#clock.nowMs();
    this.#emit({ atMs: this.#toldAtMs, kind: "layer", ...this.#layer, state: this.#state, doneBytes: this.#doneBytes });
  }
}
