import { BenchServer } from "./bench-server.ts";
import { ByHand } from "./by-hand.ts";

/** What rows are measured with: a server, and runsc by hand. */
export class Bench implements AsyncDisposable {
  readonly server: BenchServer;
  readonly hand: ByHand;
  /** Fires when it is to end. Whatever takes longer than a few seconds looks at it in between. */
  readonly signal: AbortSignal;

  private constructor(server: BenchServer, hand: ByHand, signal: AbortSignal) {
    this.server = server;
    this.hand = hand;
    this.signal = signal;
  }

  static async open(signal = new AbortController().signal): Promise<Bench> {
    const server = await BenchServer.start();
    try {
      return new Bench(server, await ByHand.open(server.dataDir), signal);
    } catch (error) {
      await server[Symbol.asyncDispose]();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.hand[Symbol.asyncDispose]();
    } finally {
      await this.server[Symbol.asyncDispose]();
    }
  }
}
