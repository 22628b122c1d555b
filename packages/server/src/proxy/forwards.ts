import { once } from "node:events";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import type { Engine, Log } from "@mitos/engine";
import { limits, MitosError, type SandboxId } from "@mitos/protocol";
import { join } from "./exchange.ts";
import { openTunnelSocket } from "./tunnel-socket.ts";

interface Forward {
  readonly server: Server;
  readonly listening: Promise<number>;
}

/**
 * Listeners on this host's loopback, each for one port of a sandbox. They outlive a pause and end with their sandbox: a connection that is
 * made while it is paused is closed at once.
 */
export class Forwards {
  readonly #engine: Engine;
  readonly #log: Log;
  readonly #bySandbox = new Map<SandboxId, Map<number, Forward>>();
  readonly #connections = new Map<SandboxId, Set<AbortController>>();
  readonly #stopListening: () => void;
  #closed = false;

  constructor(engine: Engine, log: Log) {
    this.#engine = engine;
    this.#log = log;
    this.#stopListening = engine.onEnd(({ id }) => this.#end(id));
  }

  /** The same port gives the same listener. @returns its port on 127.0.0.1. @throws quota_exceeded, unavailable */
  async open(sandbox: SandboxId, port: number): Promise<number> {
    if (this.#closed) throw new MitosError("unavailable", { cause: "the server is going down" });
    const forwards = this.#bySandbox.get(sandbox) ?? new Map<number, Forward>();
    const earlier = forwards.get(port);
    if (earlier) return earlier.listening;
    if (forwards.size >= limits.forwardsPerSandboxMax) {
      throw new MitosError("too_many_streams", {
        message: "too many ports of this sandbox are forwarded",
        cause: `the limit is ${limits.forwardsPerSandboxMax}`,
        remediation: "Use one of the forwards that exist, or a preview (POST /v1/preview).",
        context: { sandbox },
      });
    }
    // Half-open, so that a client that has sent everything still gets its answer.
    const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => void this.#accept(sandbox, port, socket));
    const forward: Forward = { server, listening: listen(server) };
    // On record before anything is awaited: an end of the sandbox meanwhile finds it.
    this.#bySandbox.set(sandbox, forwards.set(port, forward));
    try {
      return await forward.listening;
    } catch (error) {
      forwards.delete(port);
      throw new MitosError("unavailable", { message: "this host could not listen for the forward", cause: String(error), reason: error });
    }
  }

  close(): void {
    this.#closed = true;
    this.#stopListening();
    for (const sandbox of [...this.#bySandbox.keys()]) this.#end(sandbox);
  }

  #end(sandbox: SandboxId): void {
    for (const { server } of this.#bySandbox.get(sandbox)?.values() ?? []) server.close();
    this.#bySandbox.delete(sandbox);
    const gone = new MitosError("unavailable", { cause: "the forward has ended" });
    for (const connection of this.#connections.get(sandbox) ?? []) connection.abort(gone);
  }

  async #accept(sandbox: SandboxId, port: number, client: Socket): Promise<void> {
    client.on("error", () => {});
    const connections = this.#connections.get(sandbox) ?? new Set();
    if (connections.size >= limits.forwardedConnectionsPerSandboxMax) {
      client.resetAndDestroy();
      return;
    }
    const over = new AbortController();
    this.#connections.set(sandbox, connections.add(over));
    client.once("close", () => over.abort(new MitosError("canceled", { cause: "the client went away" })));
    // A client that goes away while the tunnel is opened shows only to a reader.
    client.pause();
    try {
      const socket = await openTunnelSocket(this.#engine.runtime(sandbox), port, over.signal);
      await join(client, Buffer.alloc(0), socket);
    } catch (error) {
      this.#log.debug({ sandbox, port, err: error }, "a forwarded connection came to nothing");
      client.resetAndDestroy();
    } finally {
      connections.delete(over);
      if (connections.size === 0) this.#connections.delete(sandbox);
    }
  }
}

async function listen(server: Server): Promise<number> {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return (server.address() as AddressInfo).port;
}
