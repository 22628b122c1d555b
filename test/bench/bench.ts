import { BenchServer } from "./bench-server.ts";
import { ByHand } from "./by-hand.ts";
import type { Scale } from "./scale.ts";

/** What rows are measured with: a server, runsc by hand, and how much of everything. */
export class Bench implements AsyncDisposable {
  readonly scale: Scale;
  readonly server: BenchServer;
  readonly hand: ByHand;

  private constructor(scale: Scale, server: BenchServer, hand: ByHand) {
    this.scale = scale;
    this.server = server;
    this.hand = hand;
  }

  static async open(scale: Scale): Promise<Bench> {
    const server = await BenchServer.start();
    try {
      return new Bench(scale, server, await ByHand.open(server.dataDir));
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
