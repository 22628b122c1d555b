/**
 * The one way out of a sandbox. The agent inside asks for a connection by name or address; the gate decides by the sandbox's policy, resolves
 * the name itself, connects to an address that it has checked, and carries bytes. What the agent says is never trusted.
 */

import type { Socket } from "node:net";
import { finished } from "node:stream/promises";
import { MitosError } from "@mitos/protocol";
import type { EgressDenial, Log, NetworkPolicy } from "../actions.ts";
import type { Clock } from "../clock.ts";
import type { EgressAnswer, EgressStream, SandboxEgress } from "../guest.ts";
import { Semaphore } from "../mutex.ts";
import { formatAddress, type IpAddress, parseAddress, unwrap } from "./addresses.ts";
import type { EgressNetwork } from "./network.ts";
import {
  checkResolved,
  checkTarget,
  type Denial,
  describeTarget,
  type EgressPolicy,
  parseName,
  parsePolicy,
  parseTarget,
  portsOfName,
  type Target,
} from "./policy.ts";

/** Per sandbox. */
export const connectionsMax = 128;
const lookupsAtOnce = 4;
/** For the look-up and all attempts to connect. */
const openMsMax = 20_000;
const attemptMsMax = 8_000;
const attemptsMax = 4;
/** How long an upstream that sends nothing more may take nothing more either. */
const drainMsMax = 120_000;
/** Denials are logged at most this often, per sandbox; the next line says how many were left out. */
const denialLogMs = 1_000;

/** What has passed, since this server took the sandbox up. */
export interface EgressUsage {
  sentBytes: number;
  receivedBytes: number;
}

export interface EgressSubject {
  readonly id: string;
  readonly network: NetworkPolicy;
  readonly usage: EgressUsage;
}

export class EgressGate {
  /** How many connections and names were denied. */
  denials = 0;
  readonly #listeners = new Set<(denial: EgressDenial) => void>();
  readonly #network: EgressNetwork;
  readonly #log: Log;
  readonly #clock: Clock;

  constructor(network: EgressNetwork, log: Log, clock: Clock) {
    this.#network = network;
    this.#log = log;
    this.#clock = clock;
  }

  /** Tells of denials as often as they are logged. @returns ends the telling */
  onDenied(listener: (denial: EgressDenial) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** The gate for one machine of one sandbox. */
  open(subject: EgressSubject): SandboxEgress {
    const policy = this.#policyOf(subject);
    const lookups = new Semaphore(lookupsAtOnce);
    const logDenial = this.#denialLog(subject.id);
    let connections = 0;

    /** @throws permission_denied */
    const require = (target: Target, denial: Denial | undefined): void => {
      if (!denial) return;
      logDenial(target, denial);
      throw denied(target, denial);
    };

    /** What it throws is for the program to read. */
    const dial = async (target: Target, signal: AbortSignal): Promise<Socket> => {
      require(target, checkTarget(policy, target));
      const candidates = target.address ? [target.address] : await lookups.run(() => this.#resolve(target.name, signal));
      const denials = candidates.map((address) => this.#ownDenial(address) ?? checkResolved(policy, target, address));
      const allowed = candidates.filter((_, index) => !denials[index]);
      if (allowed.length === 0) require(target, denials[0]);
      return this.#connect(allowed, target, signal);
    };

    return {
      ports: (text) => {
        const name = parseName(text);
        if (!name) throw new MitosError("invalid_input", { cause: `${JSON.stringify(text.slice(0, 300))} is not a DNS name` });
        const found = portsOfName(policy, name);
        if ("reason" in found) {
          const target = { name, port: 0 };
          logDenial(target, found);
          throw denied(target, found);
        }
        return found satisfies EgressAnswer;
      },

      connect: async (host, port, stream) => {
        if (connections >= connectionsMax) {
          const message = `egress is limited to ${connectionsMax} connections at a time`;
          throw new MitosError("sandbox_exhausted", { message, remediation: "Close a connection first." });
        }
        connections += 1;
        try {
          const target = parseTarget(host, port);
          const socket = await dial(target, AbortSignal.any([stream.signal, AbortSignal.timeout(openMsMax)]));
          await relay(socket, stream, subject.usage);
        } finally {
          connections -= 1;
        }
      },
    };
  }

  async #resolve(name: string, signal: AbortSignal): Promise<IpAddress[]> {
    const texts = await this.#network.resolve(name, signal);
    return texts.flatMap((text) => {
      const address = parseAddress(text);
      return address ? unwrap(address) : [];
    });
  }

  #ownDenial(address: IpAddress): Denial | undefined {
    const text = formatAddress(address);
    // Those with a zone are link-local, which are refused anyway.
    const own = this.#network.ownAddresses().some((each) => {
      const parsed = parseAddress(each);
      return parsed !== undefined && formatAddress(unwrap(parsed)) === text;
    });
    return own ? { reason: `${text} is an address of the server's own host, which no rule can allow` } : undefined;
  }

  /** Tries one address after another. No name is resolved from here on, so what was checked is what is connected to. */
  async #connect(addresses: readonly IpAddress[], target: Target, signal: AbortSignal): Promise<Socket> {
    let failure: unknown = new MitosError("unavailable", { message: `${describeTarget(target)} has no address` });
    for (const address of addresses.slice(0, attemptsMax)) {
      try {
        return await this.#network.connect(
          formatAddress(address),
          target.port,
          AbortSignal.any([signal, AbortSignal.timeout(attemptMsMax)]),
        );
      } catch (error) {
        failure = error;
        if (signal.aborted) break;
      }
    }
    throw failure;
  }

  /** A policy that an earlier version has stored and that cannot be read opens nothing. */
  #policyOf({ id, network }: EgressSubject): EgressPolicy {
    try {
      return parsePolicy(network);
    } catch (error) {
      this.#log.warn(
        { sandbox: id, error: String(error) },
        "the network rules of a sandbox cannot be read: it may not connect to anything",
      );
      return parsePolicy({ ...network, block: true, allowDomains: [], allowCidrs: [] });
    }
  }

  #denialLog(sandbox: string): (target: Target, denial: Denial) => void {
    let loggedAtMs = Number.NEGATIVE_INFINITY;
    let leftOut = 0;
    return (target, { reason }) => {
      this.denials += 1;
      const nowMs = this.#clock.nowMs();
      if (nowMs - loggedAtMs < denialLogMs) {
        leftOut += 1;
        return;
      }
      const to = describeTarget(target);
      this.#log.info({ sandbox, to, reason, leftOut }, "egress denied");
      for (const listener of this.#listeners) listener({ id: sandbox, to, leftOut });
      loggedAtMs = nowMs;
      leftOut = 0;
    };
  }
}

function denied(target: Target, { reason, remedy }: Denial): MitosError {
  const message = `egress to ${describeTarget(target)} is denied: ${reason}${remedy ? `; ${remedy}` : ""}`;
  return new MitosError("permission_denied", { message });
}

/** Carries bytes both ways until both have ended, or one is broken: then both are. */
async function relay(socket: Socket, stream: EgressStream, usage: EgressUsage): Promise<void> {
  const cut = (): void => {
    socket.destroy();
  };
  stream.signal.addEventListener("abort", cut, { once: true });
  try {
    if (stream.signal.aborted) throw new MitosError("canceled");
    await stream.accept({});
    await Promise.all([inwards(socket, stream, usage), outwards(socket, stream, usage)]);
    // Both ends are said by now, though ours may still wait for credit: nothing is to be aborted.
  } catch (error) {
    if (error instanceof MitosError) throw error;
    throw new MitosError("unavailable", { message: "the connection broke", reason: error });
  } finally {
    stream.signal.removeEventListener("abort", cut);
    socket.destroy();
  }
}

async function inwards(socket: Socket, stream: EgressStream, usage: EgressUsage): Promise<void> {
  // Its end leaves the other direction open.
  for await (const chunk of socket.iterator({ destroyOnReturn: false }) as AsyncIterable<Uint8Array>) {
    usage.receivedBytes += chunk.byteLength;
    await stream.send(chunk);
  }
  await stream.end();
  socket.setTimeout(drainMsMax, () => socket.destroy());
}

async function outwards(socket: Socket, stream: EgressStream, usage: EgressUsage): Promise<void> {
  for await (const chunk of stream) {
    usage.sentBytes += chunk.byteLength;
    if (!socket.write(chunk)) await drained(socket);
  }
  socket.end();
  await finished(socket, { readable: false });
}

function drained(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    const settle = (): void => {
      socket.off("drain", settle);
      socket.off("close", settle);
      resolve();
    };
    socket.once("drain", settle);
    socket.once("close", settle);
    if (socket.destroyed) settle();
  });
}
