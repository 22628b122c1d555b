import { once } from "node:events";
import { connect } from "node:net";
import type { Tunnel } from "@mitos/engine";
import { MitosError } from "@mitos/protocol";

/** Tunnels as an engine gives them, to real servers on this machine's loopback in the place of a sandbox's. */
export class LoopbackTunnels {
  /** How many are open now. */
  open = 0;

  readonly tunnel = async (port: number, signal?: AbortSignal): Promise<Tunnel> => {
    const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    try {
      await once(socket, "connect", signal ? { signal } : {});
    } catch (error) {
      socket.destroy();
      throw new MitosError("unavailable", { cause: `nothing answers on port ${port} of the sandbox`, reason: error });
    }
    this.open += 1;
    socket.on("close", () => {
      this.open -= 1;
    });
    socket.on("error", () => {});
    signal?.addEventListener("abort", () => socket.destroy(), { once: true });
    const chunks = socket[Symbol.asyncIterator]() as AsyncIterator<Uint8Array>;
    return {
      send: (data) => new Promise((resolve, reject) => socket.write(data, (error) => (error ? reject(error) : resolve()))),
      end: async () => void socket.end(),
      abort: () => void socket.destroy(),
      [Symbol.asyncIterator]: () => chunks,
    };
  };
}
