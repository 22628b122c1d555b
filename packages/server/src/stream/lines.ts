import type { FastifyReply } from "fastify";
import { writeTo } from "./write.ts";

/** An answer of JSON lines, each sent as it comes. Until it has begun, a failure can still be answered with a status of its own. */
export class JsonLines {
  readonly #reply: FastifyReply;
  #begun = false;

  constructor(reply: FastifyReply) {
    this.#reply = reply;
  }

  get begun(): boolean {
    return this.#begun;
  }

  /** Sends the headers, so that the client has an answer to hold on to (and to close) while nothing is written yet. */
  begin(): void {
    if (this.#begun) return;
    this.#begun = true;
    this.#reply.hijack();
    // nginx, by default, would hold the lines back until it has a few pages of them.
    const headers = { "content-type": "application/x-ndjson", "cache-control": "no-store", "x-accel-buffering": "no" };
    this.#reply.raw.writeHead(200, headers);
    this.#reply.raw.flushHeaders();
  }

  /** @throws when the client goes away */
  async write(line: object): Promise<void> {
    this.begin();
    await writeTo(this.#reply.raw, `${JSON.stringify(line)}\n`);
  }

  end(): void {
    if (this.#begun) this.#reply.raw.end();
  }
}
