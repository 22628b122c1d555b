import { setImmediate as nextTurn } from "node:timers/promises";
import { create, toBinary } from "@bufbuild/protobuf";
import { MitosError } from "@mitos/protocol";
import { guest } from "@mitos/protocol/proto";
import { afterEach, beforeEach, expect, it } from "vitest";
import { LinkClient } from "./client.ts";
import { FakeGuest } from "./fake-guest.ts";
import { type Frame, frameType, uint32Bytes } from "./frame.ts";
import { seededRandom } from "./seeded-random.ts";
import { LinkViolation } from "./violation.ts";

const heldBytesMax = 1_000_000;
const outOfBand: unknown[] = [];
const note = (error: unknown): void => void outOfBand.push(error);

beforeEach(() => void process.on("unhandledRejection", note));
afterEach(() => void process.off("unhandledRejection", note));

it("random frames of the guest end the session or do nothing, never throw elsewhere and never make the host hold more (fuzz smoke)", async () => {
  const { seed, next } = seededRandom();
  const types = Object.values(frameType);
  let violations = 0;
  let survived = 0;
  for (let run = 0; run < 200; run += 1) {
    const fake = new FakeGuest();
    const link = new LinkClient(fake.transport, { heldBytesMax });
    link.onGuestCall(guest.Host.method.forkSelf, async () => ({ children: ["a"] }));
    link.onGuestStream(guest.Host.method.egress, async (_, stream) => {
      if (next() % 4 === 0) throw new MitosError("permission_denied");
      await stream.accept({});
      for await (const chunk of stream) await stream.send(chunk);
      await stream.end();
    });
    const opened = { last: 0 };
    fake.handler = async () => undefined;
    await link.hello();
    const calls: Promise<unknown>[] = [];
    const execs: { abort(): void }[] = [];
    for (let index = 0; index < 4; index += 1) {
      const exec = link.duplex(guest.Agent.method.exec, {}, { isLast: () => true });
      execs.push(exec);
      if (next() % 2 === 0) calls.push(next() % 2 === 0 ? drain(exec.messages) : leave(exec.messages));
      else calls.push(exec.send({ msg: { case: "stdin", value: new Uint8Array(next() % 400_000) } }));
      calls.push(link.unary(guest.Agent.method.list, { parent: "/" }));
    }
    if (next() % 3 === 0) calls.push(link.quiesce({ timeoutMs: 50 }).then((quiet) => quiet.resume()));
    const settled = Promise.allSettled(calls);
    await nextTurn();
    for (let index = 0; index < 60; index += 1) {
      fake.raw(randomFrame(next, types, opened));
      if (next() % 4 === 0) await nextTurn();
      expect(link.heldBytes, `seed ${seed}`).toBeLessThanOrEqual(heldBytesMax);
      expect(link.openChannels, `seed ${seed}`).toBeLessThanOrEqual(1_024);
    }
    survived += 1;
    link.close();
    const reason = await link.closed;
    if (reason) {
      violations += 1;
      expect(reason, `seed ${seed}`).toBeInstanceOf(LinkViolation);
    }
    for (const result of await settled) {
      if (result.status === "rejected") expect(result.reason, `seed ${seed}`).toBeInstanceOf(MitosError);
    }
    // What had ended well before may still be taken, until its caller says that it will not.
    for (const exec of execs) exec.abort();
    expect(link.openChannels, `seed ${seed}`).toBe(0);
    expect(link.heldBytes, `seed ${seed}`).toBe(0);
  }
  await nextTurn();
  expect(outOfBand, `seed ${seed}`).toEqual([]);
  expect(violations, `seed ${seed}`).toBeGreaterThan(0);
  expect(survived).toBe(200);
});

/** Mostly legal frames, so that a session lives for a while. */
function randomFrame(next: () => number, types: readonly number[], opened: { last: number }): Frame {
  const channel = opened.last > 0 && next() % 3 === 0 ? opened.last : 2 * (1 + (next() % 8));
  const flags = next() % 5 === 0 ? 1 : 0;
  switch (next() % 40) {
    case 0:
      return {
        type: types[next() % types.length] as number,
        flags: next() % 2,
        channel: next() % 20,
        payload: Buffer.alloc(next() % 70, next()),
      };
    case 1:
    case 2:
      return { type: frameType.end, flags: 0, channel, payload: Buffer.alloc(0) };
    case 3:
      return { type: frameType.reset, flags: 0, channel, payload: status(["not_found", "", "weird"][next() % 3] as string) };
    case 4:
    case 5:
    case 6:
    case 7:
      return { type: frameType.credit, flags: 0, channel, payload: uint32Bytes(next() % 100_000) };
    case 8:
    case 9: {
      const method = ["ForkSelf", "Egress", "Egress", "Nothing"][next() % 4] as string;
      const open = create(guest.OpenSchema, { method, end: next() % 2 === 0 });
      opened.last = next() % 20 === 0 ? 1 + 2 * (next() % 2_000) : opened.last + (opened.last === 0 ? 1 : 2);
      return { type: frameType.open, flags: 0, channel: opened.last, payload: toBinary(guest.OpenSchema, open) };
    }
    default:
      return { type: frameType.data, flags, channel, payload: Buffer.alloc(next() % 3 === 0 ? next() % 20_000 : next() % 50) };
  }
}

function status(code: string): Uint8Array {
  return toBinary(guest.StatusSchema, create(guest.StatusSchema, { code, message: "m" }));
}

/** After the last message. */
async function leave(messages: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of messages) break;
}

async function drain(messages: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of messages);
}
