/** For tests of what registries may do wrong: one that does as each test says, and a clock under which nobody waits. */

import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from "node:http";
import { createServer as createSecureServer } from "node:https";
import type { AddressInfo, Socket } from "node:net";
import type { Clock } from "../clock.ts";
import { Authenticator } from "./auth.ts";
import { DockerConfig } from "./docker-config.ts";
import { endpointOf } from "./endpoint.ts";
import { HttpClient } from "./http.ts";
import { Registry } from "./registry.ts";

export interface Asked {
  readonly method: string;
  readonly url: string;
  readonly headers: IncomingHttpHeaders;
  /** What there is of it within the first KiBs. */
  readonly body: string;
  readonly bodyBytes: number;
}

export type Answer = (asked: Asked, response: ServerResponse) => void;

/** An HTTP server on loopback that answers as a test says, and keeps what it was asked. */
export class FakeRegistry implements AsyncDisposable {
  readonly asked: Asked[] = [];
  answer: Answer;
  readonly #server;
  readonly #sockets = new Set<Socket>();
  readonly #scheme: "http" | "https";

  private constructor(answer: Answer, tls: { key: string; cert: string } | undefined) {
    this.answer = answer;
    const listener = (request: IncomingMessage, response: ServerResponse) => void this.#take(request, response);
    this.#scheme = tls ? "https" : "http";
    this.#server = tls ? createSecureServer(tls, listener) : createServer(listener);
    this.#server.on("connection", (socket: Socket) => {
      this.#sockets.add(socket);
      socket.once("close", () => this.#sockets.delete(socket));
    });
  }

  /** @param tls - https with this certificate */
  static async start(answer: Answer, tls?: { key: string; cert: string }): Promise<FakeRegistry> {
    const registry = new FakeRegistry(answer, tls);
    await new Promise<void>((resolve) => registry.#server.listen(0, "127.0.0.1", resolve));
    return registry;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  get host(): string {
    return `127.0.0.1:${this.port}`;
  }

  get origin(): string {
    return `${this.#scheme}://${this.host}`;
  }

  /** As our client sees it. @param dockerConfig - default: none */
  client(clock: Clock = new HastyClock(), dockerConfig = "/nonexistent/config.json"): Registry {
    const http = new HttpClient(clock);
    return new Registry(endpointOf(this.host, new Set()), http, new Authenticator(http, clock, new DockerConfig(dockerConfig)), clock);
  }

  async #take(request: IncomingMessage, response: ServerResponse): Promise<void> {
    let body = "";
    let bodyBytes = 0;
    for await (const chunk of request as AsyncIterable<Buffer>) {
      if (bodyBytes < 16 * 1024) body += chunk.toString();
      bodyBytes += chunk.length;
    }
    const asked = { method: request.method ?? "", url: request.url ?? "", headers: request.headers, body, bodyBytes };
    this.asked.push(asked);
    this.answer(asked, response);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }
}

/** Pauses are over at once, and counted; limits on silence are reached when a test says so. */
export class HastyClock implements Clock {
  readonly pausesMs: number[] = [];
  readonly #limits = new Set<() => void>();
  #aheadMs = 0;

  nowMs(): number {
    return Date.now() + this.#aheadMs;
  }

  after(delayMs: number, wake: () => void): () => void {
    if (delayMs >= 30_000) {
      this.#limits.add(wake);
      return () => this.#limits.delete(wake);
    }
    this.pausesMs.push(delayMs);
    const timer = setImmediate(wake);
    return () => clearImmediate(timer);
  }

  /** Whoever is waited for has said nothing for too long. */
  reachLimits(): void {
    for (const wake of [...this.#limits]) wake();
  }

  get limitsWaiting(): number {
    return this.#limits.size;
  }

  advance(ms: number): void {
    this.#aheadMs += ms;
  }
}
