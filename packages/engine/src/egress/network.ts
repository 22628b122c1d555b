/** The network of this host, as the egress gate uses it. */

import { Resolver } from "node:dns/promises";
import { readFile } from "node:fs/promises";
import { connect as connectTcp, type Socket } from "node:net";
import { networkInterfaces } from "node:os";
import { MitosError } from "@mitos/protocol";

export interface EgressNetwork {
  /** The addresses of a name, in the order in which they should be tried. @throws unavailable */
  resolve(name: string, signal: AbortSignal): Promise<readonly string[]>;
  /** A connection to an address, never to a name. Half-open: the end of one direction leaves the other. @throws unavailable */
  connect(address: string, port: number, signal: AbortSignal): Promise<Socket>;
  /** The addresses of this host itself. */
  ownAddresses(): readonly string[];
}

const queryTimeoutMs = 4_000;
const queryTries = 2;
const keepAliveMs = 60_000;

export const hostNetwork: EgressNetwork = { resolve, connect, ownAddresses };

/**
 * /etc/hosts, then the name servers of /etc/resolv.conf. Not getaddrinfo: that cannot be cancelled, and a few slow look-ups of one sandbox
 * would hold the threads that all share.
 */
async function resolve(name: string, signal: AbortSignal): Promise<readonly string[]> {
  const listed = addressesIn(await readFile("/etc/hosts", "utf8").catch(() => ""), name);
  if (listed.length > 0) return listed;
  const resolver = new Resolver({ timeout: queryTimeoutMs, tries: queryTries });
  const cancel = (): void => resolver.cancel();
  signal.addEventListener("abort", cancel, { once: true });
  try {
    signal.throwIfAborted();
    const [v4, v6] = await Promise.allSettled([resolver.resolve4(name), resolver.resolve6(name)]);
    const found = [v4, v6].flatMap((result) => (result.status === "fulfilled" ? result.value : []));
    if (found.length > 0) return found;
    const { code = "no answer" } = v4.status === "rejected" ? (v4.reason as { code?: string }) : {};
    throw new MitosError("unavailable", { message: `${name} could not be resolved`, cause: code, reason: v4 });
  } finally {
    signal.removeEventListener("abort", cancel);
  }
}

export function addressesIn(hosts: string, name: string): string[] {
  return hosts.split("\n").flatMap((line) => {
    const [address, ...names] = (line.split("#", 1)[0] ?? "").trim().split(/\s+/);
    return address && names.some((each) => each.toLowerCase() === name) ? [address] : [];
  });
}

function connect(address: string, port: number, signal: AbortSignal): Promise<Socket> {
  return new Promise((fulfil, reject) => {
    const socket = connectTcp({
      host: address,
      port,
      allowHalfOpen: true,
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: keepAliveMs,
    });
    const settle = (error?: Error): void => {
      signal.removeEventListener("abort", abort);
      socket.off("error", settle);
      if (!error) {
        fulfil(socket);
        return;
      }
      socket.destroy();
      const { code = error.message } = error as NodeJS.ErrnoException;
      reject(new MitosError("unavailable", { message: `${address} port ${port} does not answer`, cause: code, reason: error }));
    };
    const abort = (): void => settle(new Error("it took too long, or nobody waits any more"));
    socket.on("error", () => {}); // whoever reads or writes sees it
    socket.once("error", settle);
    socket.once("connect", () => settle());
    if (signal.aborted) abort();
    else signal.addEventListener("abort", abort, { once: true });
  });
}

function ownAddresses(): readonly string[] {
  return Object.values(networkInterfaces()).flatMap((addresses) => (addresses ?? []).map(({ address }) => address));
}
