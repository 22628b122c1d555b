import { findRunsc } from "../../packages/engine/src/drivers/gvisor/find.ts";
import { baselineRunsc } from "./baseline-runsc.ts";
import { BenchServer } from "./bench-server.ts";
import { ByHand } from "./by-hand.ts";
import type { Hand } from "./hands.ts";
import { baseline as ofBaseline, sameBuild as ofSameBuild } from "./row.ts";
import { type WarmUp, warmUp } from "./warm-up.ts";

export interface BenchOptions {
  readonly warmUp: WarmUp;
  /** Default: never fires. */
  readonly signal?: AbortSignal;
}

type OpenParts = Pick<Bench, "server" | "baseline" | "sameBuild" | "notes" | "signal">;

/** What rows are measured with: a server that has served for a while, and runsc by hand. */
export class Bench implements AsyncDisposable {
  readonly server: BenchServer;
  /** What ours is judged by, with the distribution's runsc where that can be had. */
  readonly baseline: ByHand;
  /** With the server's runsc: shown beside it. The same object where that is what is judged by. */
  readonly sameBuild: ByHand;
  /** What is otherwise than usual. */
  readonly notes: readonly string[];
  /** Fires when it is to end. Whatever takes longer than a few seconds looks at it in between. */
  readonly signal: AbortSignal;
  readonly #toDispose: AsyncDisposableStack;

  private constructor(open: OpenParts, toDispose: AsyncDisposableStack) {
    this.server = open.server;
    this.baseline = open.baseline;
    this.sameBuild = open.sameBuild;
    this.notes = open.notes;
    this.signal = open.signal;
    this.#toDispose = toDispose;
  }

  static async open({ warmUp: calls, signal = new AbortController().signal }: BenchOptions): Promise<Bench> {
    await using toDispose = new AsyncDisposableStack();
    const server = toDispose.use(await BenchServer.start());
    const own = await findRunsc(undefined);
    const { runsc, notes } = await baselineRunsc(own);
    const baseline = toDispose.use(await ByHand.open(server.dataDir, runsc));
    const sameBuild = runsc === own ? baseline : toDispose.use(await ByHand.open(server.dataDir, own));
    await warmUp(server, calls, signal);
    return new Bench({ server, baseline, sameBuild, notes, signal }, toDispose.move());
  }

  /** Each different one: all of them are measured in every round. */
  get hands(): readonly Hand[] {
    const judging = { hand: this.baseline, sample: ofBaseline };
    return this.sameBuild === this.baseline ? [judging] : [judging, { hand: this.sameBuild, sample: ofSameBuild }];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#toDispose.disposeAsync();
  }
}
