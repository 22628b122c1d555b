import { randomBytes } from "node:crypto";
import type { MitosError } from "@mitos/protocol";
import { guest as pb } from "@mitos/protocol/proto";

import type { Machine } from "./driver.ts";
import type { Adoption, Guest, GuestHooks } from "./guest.ts";
import { hostNameOf } from "./host-name.ts";
import { LinkClient, type LinkOptions } from "./link/client.ts";
import { createRuntime } from "./runtime.ts";

const entropyBytes = 32;
/** An interpreter with heavy start-up files on a busy machine still fits; one that hangs fails the build. */
const warmKernelMs = 60_000;
/** An emulated machine that shares its processor with others takes seconds. */
const warmMs = 30_000;
/** Together with their paths they fit into a frame or two. */
const ownersPerMessage = 512;
/** How long what is under way may wait, after its link was lost, to be told how the machine ended. */
const lastWordsMs = 5_000;
/** A host that is busy or was asleep is slow; a machine is given up only after this. */
const handshakeMs = 30_000;

export interface GuestWaits extends Pick<LinkOptions, "handshakeTimeoutMs" | "silenceMs"> {
  readonly quiesceTimeoutMs?: number;
}

/** A machine's agent over its link. Tests of agents that never answer wait less. */
export function connectGuest(machine: Machine, hooks: GuestHooks, waits: GuestWaits = {}): Guest {
  const link = new LinkClient(machine.transport, {
    handshakeTimeoutMs: handshakeMs,
    ...waits,
    lastWords: () => settledWithin(machine.exited, lastWordsMs),
  });
  let closing = false;
  void link.closed.then((error) => {
    if (!closing) hooks.onLost(error ?? new Error("the link has ended"));
  });
  link.onGuestCall(pb.Host.method.forkSelf, async ({ count, label }) => ({ children: [...(await hooks.onForkSelf(count, label))] }));
  link.onGuestStream(pb.Host.method.egress, ({ host, port }, stream) => hooks.egress.connect(host, port, stream));
  link.onGuestCall(pb.Host.method.egressPorts, async ({ name }) => {
    const { ports, any } = hooks.egress.ports(name);
    return { ports: [...ports], any };
  });
  return {
    runtime: createRuntime(link, hooks),
    async open(adoption) {
      if (adoption) await link.adopt(identityOf(adoption));
      else await link.hello();
    },
    async greet() {
      await link.hello({ adoptFollows: true });
    },
    async warm() {
      await link.unary(pb.Agent.method.warm, {}, { timeoutMs: warmMs });
    },
    async setOwners(entries, { copyBytesMax = 0 } = {}) {
      const batches = Array.from({ length: Math.ceil(entries.length / ownersPerMessage) }, (_, index) => ({
        owners: entries.slice(index * ownersPerMessage, (index + 1) * ownersPerMessage).map((entry) => ({ ...entry })),
      }));
      const [first, ...rest] = batches;
      if (!first) return 0;
      const call = link.duplex(pb.Agent.method.setOwners, { ...first, copyBytesMax: BigInt(copyBytesMax) }, {});
      try {
        for (const message of rest) await call.send(message);
        call.end();
        let filesLeft = 0;
        for await (const { left } of call.messages) filesLeft += Number(left);
        return filesLeft;
      } finally {
        call.abort();
      }
    },
    async *changes(signal) {
      for await (const { data } of link.serverStream(pb.Agent.method.changes, {}, { signal })) if (data.byteLength > 0) yield data;
    },
    quiesce: () => link.quiesce(waits.quiesceTimeoutMs === undefined ? {} : { timeoutMs: waits.quiesceTimeoutMs }),
    async warmKernel(language) {
      const { available, detail } = await link.unary(pb.Agent.method.warmKernel, { language }, { timeoutMs: warmKernelMs });
      return { available, detail };
    },
    close(error: MitosError) {
      closing = true;
      link.close(error);
    },
  };
}

async function settledWithin(promise: Promise<unknown>, ms: number): Promise<void> {
  const { promise: late, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  await Promise.race([promise, late]);
  clearTimeout(timer);
}

/** What must differ in every machine is made here, at the last moment. */
function identityOf(adoption: Adoption) {
  return {
    sandboxId: adoption.sandboxId,
    templateId: adoption.templateId,
    parentId: adoption.parentId ?? "",
    generation: BigInt(adoption.generation),
    entropy: randomBytes(entropyBytes),
    wallClockUnixNanos: BigInt(Date.now()) * 1_000_000n,
    hostName: hostNameOf(adoption.sandboxId),
    machineId: randomBytes(16).toString("hex"),
    env: { ...adoption.env },
    secrets: { ...adoption.secrets },
    forgetSecrets: adoption.forgetSecrets,
    deadlineUnixMs: BigInt(adoption.deadlineMs ?? 0),
    forkBudget: adoption.forkBudget,
    forksUsed: adoption.forksUsed,
    processesMax: adoption.processesMax,
    defaultUser: adoption.user ?? "",
    defaultCwd: adoption.cwd ?? "",
  };
}
