import type { SnapshotQuiet } from "./driver.ts";
import type { Guest } from "./guest.ts";

/** The quiet of a guest for a snapshot, and how long it lasted. */
export class Quiet implements SnapshotQuiet {
  readonly #guest: Pick<Guest, "quiesce">;
  #quiesced: { resume(): Promise<void> } | undefined;
  #beganAtMs = 0;
  #pausedMs = 0;

  constructor(guest: Pick<Guest, "quiesce">) {
    this.#guest = guest;
  }

  /** From when programs were asked to stand still until they went on. */
  get pausedMs(): number {
    return this.#pausedMs;
  }

  async begin(): Promise<void> {
    if (this.#quiesced) return;
    this.#beganAtMs = performance.now();
    this.#quiesced = await this.#guest.quiesce();
  }

  async end(): Promise<void> {
    const quiesced = this.#quiesced;
    this.#quiesced = undefined;
    if (!quiesced) return;
    await quiesced.resume();
    this.#pausedMs += performance.now() - this.#beganAtMs;
  }
}
