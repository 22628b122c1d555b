import { createHash, randomBytes } from "node:crypto";
import { setImmediate as nextTurn } from "node:timers/promises";
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { MitosError } from "@mitos/protocol";
import { guest, type sandbox } from "@mitos/protocol/proto";
import { describe, expect, it } from "vitest";
import { LinkClient, type LinkOptions } from "./client.ts";
import { type FakeCall, FakeGuest, type FakeGuestOptions } from "./fake-guest.ts";
import { type Frame, frameType, noPayload, uint32Bytes } from "./frame.ts";
import { LinkViolation } from "./violation.ts";

const { method } = guest.Agent;

async function connected(options: FakeGuestOptions = {}, linkOptions: LinkOptions = {}) {
  const fake = new FakeGuest(options);
  const link = new LinkClient(fake.transport, linkOptions);
  await link.hello();
  return { fake, link };
}

async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn += 1) await nextTurn();
}

/** Waits for a condition, at most 2,000 turns of the event loop. */
async function until(condition: () => boolean): Promise<void> {
  for (let turn = 0; turn < 2_000 && !condition(); turn += 1) await nextTurn();
  expect(condition()).toBe(true);
}

const output = (data: Uint8Array, offset = 0n): Uint8Array =>
  toBinary(
    guest.ExecOutputSchema,
    create(guest.ExecOutputSchema, { msg: { case: "output", value: { stream: guest.Stream.STDOUT, offset, data } } }),
  );

const exit = toBinary(guest.ExecOutputSchema, create(guest.ExecOutputSchema, { msg: { case: "exit", value: {} } }));

async function collect(messages: AsyncIterable<guest.ExecOutput>): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for await (const message of messages) if (message.msg.case === "output") parts.push(message.msg.value.data);
  return Buffer.concat(parts);
}

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

describe("handshake", () => {
  it("opens a session with HELLO and HELLO_ACK", async () => {
    const { fake, link } = await connected();
    expect(fake.sent(frameType.hello)).toHaveLength(1);
    await expect(link.ping()).resolves.toBeGreaterThan(0);
  });

  it("sends HELLO and ADOPT in one write and answers with ADOPTED", async () => {
    const fake = new FakeGuest();
    const link = new LinkClient(fake.transport);
    const adopted = await link.adopt({ sandboxId: "sandbox-1", generation: 7n });
    expect(adopted.generation).toBe(7n);
    expect(fake.writes).toEqual([2]);
    expect(fake.frames.map((frame) => frame.type)).toEqual([frameType.hello, frameType.adopt]);
  });

  it("says in HELLO whether ADOPT follows, so that a restored machine keeps its programs frozen until then", async () => {
    const adopted = new FakeGuest();
    await new LinkClient(adopted.transport).adopt({ sandboxId: "sandbox-1" });
    const { fake } = await connected();
    const helloOf = ({ frames }: FakeGuest) => fromBinary(guest.HelloSchema, frames[0]?.payload ?? new Uint8Array(0));
    expect(helloOf(adopted)).toMatchObject({ protocolVersion: 5, adoptFollows: true });
    expect(helloOf(fake)).toMatchObject({ protocolVersion: 5, adoptFollows: false });
  });

  it("adopts in a session that is open already without a second HELLO", async () => {
    const { fake, link } = await connected();
    await link.adopt({ sandboxId: "sandbox-1" });
    expect(fake.sent(frameType.hello)).toHaveLength(1);
  });

  it("gives up a quiet moment at once when the guest says that its programs run on", async () => {
    const fake = new FakeGuest({ quiesceError: "one waits for a device" });
    const link = new LinkClient(fake.transport);
    await link.hello();
    await expect(link.quiesce()).rejects.toMatchObject({
      code: "unavailable",
      detail: { cause: "it could not be made quiet: one waits for a device" },
    });
    await expect(link.ping()).resolves.toBeGreaterThan(0);
    expect(fake.sent(frameType.resume)).toHaveLength(1);
  });

  it("refuses a machine whose ADOPTED carries an error, and ends the session", async () => {
    const fake = new FakeGuest({ adoptError: "no entropy" });
    const link = new LinkClient(fake.transport);
    await expect(link.adopt({ sandboxId: "sandbox-1" })).rejects.toMatchObject({
      code: "unavailable",
      detail: { cause: "it could not be adopted: no entropy" },
    });
    await expect(link.unary(method.listProcesses, {})).rejects.toMatchObject({ code: "unavailable" });
  });

  it("refuses an agent of another protocol with snapshot_incompatible", async () => {
    const fake = new FakeGuest({ protocolVersion: 99 });
    await expect(new LinkClient(fake.transport).hello()).rejects.toMatchObject({ code: "snapshot_incompatible" });
  });

  it("gives up a guest that never answers", async () => {
    const fake = new FakeGuest({ answerHello: false });
    const link = new LinkClient(fake.transport, { handshakeTimeoutMs: 20 });
    await expect(link.adopt({ sandboxId: "sandbox-1" })).rejects.toMatchObject({ code: "unavailable" });
    await expect(link.closed).resolves.toBeInstanceOf(Error);
  });

  it("ignores what an earlier session left on the way", async () => {
    const fake = new FakeGuest({ answerHello: false });
    const link = new LinkClient(fake.transport);
    const hello = link.hello();
    await until(() => fake.session !== "");
    fake.acknowledge("somebody else's");
    fake.raw({ type: frameType.data, flags: 0, channel: 40, payload: Buffer.from("stale") });
    fake.raw({ type: frameType.open, flags: 0, channel: 9, payload: Buffer.from([0xff]) });
    fake.control(frameType.quiesced, toBinary(guest.QuiescedSchema, create(guest.QuiescedSchema, { round: 99n })));
    fake.acknowledge(fake.session);
    await hello;
    await expect(link.ping()).resolves.toBeGreaterThan(0);
  });
});

describe("calls", () => {
  it("answers a unary call", async () => {
    const { fake, link } = await connected();
    fake.handler = async (call) => {
      const { path } = fromBinary(guest.ReadLinkRequestSchema, call.first);
      await call.send(toBinary(guest.ReadLinkReplySchema, create(guest.ReadLinkReplySchema, { target: `${path}!` })));
      await call.end();
    };
    await expect(link.unary(method.readLink, { path: "/a" })).resolves.toMatchObject({ target: "/a!" });
    await turns(3);
    expect(link.openChannels).toBe(0);
  });

  it.each([
    ["not_found", "not_found", 404, "not_found"],
    ["permission_denied", "permission_denied", 403, "permission_denied"],
    ["already_exists", "already_exists", 409, "already_exists"],
    ["failed_precondition", "failed_precondition", 409, "failed_precondition"],
    ["resource_exhausted", "sandbox_exhausted", 413, "resource_exhausted"],
    ["invalid_argument", "invalid_input", 400, "invalid_argument"],
    ["unimplemented", "not_supported", 501, "unimplemented"],
    ["internal", "file_failed", 500, "internal"],
    ["constructor", "file_failed", 500, "internal"],
  ])("maps the guest's %s to %s", async (status, code, http, connect) => {
    const { fake, link } = await connected();
    fake.handler = (call) => call.end(status, "why\nnot");
    await expect(link.unary(method.readLink, { path: "/a" })).rejects.toMatchObject({
      code,
      detail: { cause: "why not" },
      entry: { status: http, connect },
    });
  });

  it("sends a first message that is too large for OPEN as DATA, cut with MORE", async () => {
    const { fake, link } = await connected();
    let size = 0;
    fake.handler = async (call) => {
      expect(call.first.byteLength).toBe(0);
      size = fromBinary(guest.WriteStdinRequestSchema, (await call.receive()) as Uint8Array).data.byteLength;
      await call.send(noPayload);
      await call.end();
    };
    await link.unary(method.writeStdin, { pid: 4, data: new Uint8Array(700_000) });
    expect(size).toBe(700_000);
  });

  it("takes a reply of many frames", async () => {
    const { fake, link } = await connected({ chunkBytes: 1_000 });
    const target = "x".repeat(3_000_000);
    fake.handler = async (call) => {
      await call.send(toBinary(guest.ReadLinkReplySchema, create(guest.ReadLinkReplySchema, { target })));
      await call.end();
    };
    expect((await link.unary(method.readLink, { path: "/a" })).target).toBe(target);
    expect(link.heldBytes).toBe(0);
  });

  it("fails a call whose answer is late, and resets it", async () => {
    const { fake, link } = await connected();
    fake.handler = async () => undefined;
    await expect(link.unary(method.readLink, { path: "/a" }, { timeoutMs: 10 })).rejects.toMatchObject({ code: "unavailable" });
    await until(() => fake.sent(frameType.reset).length === 1);
  });

  it("sends small frames of one turn in one write", async () => {
    const { fake, link } = await connected();
    fake.handler = async (call) => {
      await call.send(toBinary(guest.ReadLinkReplySchema, create(guest.ReadLinkReplySchema, {})));
      await call.end();
    };
    await Promise.all(Array.from({ length: 20 }, (_, index) => link.unary(method.readLink, { path: `/${index}` })));
    expect(fake.writes[1]).toBe(20);
  });

  it("refuses the 513th open channel with too_many_streams", async () => {
    const { fake, link } = await connected();
    fake.handler = async () => undefined;
    for (let index = 0; index < 512; index += 1) link.duplex(method.exec, {});
    expect(() => link.duplex(method.exec, {})).toThrow(expect.objectContaining({ code: "too_many_streams" }));
  });
});

describe("flow control", () => {
  it("stops a guest whose reader is slow at its credit, and loses nothing", async () => {
    const { fake, link } = await connected();
    const sent = randomBytes(1_000_000);
    let done = 0;
    fake.handler = async (call) => {
      for (let at = 0; at < sent.byteLength; at += 10_000) {
        await call.send(output(sent.subarray(at, at + 10_000)));
        done = at + 10_000;
      }
      await call.end();
    };
    const exec = link.duplex(method.exec, {});
    await turns(300);
    expect(done).toBeLessThan(262_144);
    // Its credit, and the buffer for a message that has only begun.
    expect(link.heldBytes).toBeLessThan(410_000);
    expect(sha256(await collect(exec.messages))).toBe(sha256(sent));
    expect(link.heldBytes).toBe(0);
  });

  it("lets a few large answers get further ahead than others, and holds no more than their window", async () => {
    const { fake, link } = await connected();
    const done: number[] = [];
    const part = create(guest.ReadFileOutputSchema, { msg: { case: "data", value: new Uint8Array(60_000) } });
    fake.handler = async (call) => {
      for (let at = 0; at < 3_000_000; at += 60_000) {
        await call.send(toBinary(guest.ReadFileOutputSchema, part));
        done.push(call.number);
      }
      await call.end();
    };
    const reads = Array.from({ length: 9 }, () => link.serverStream(method.readFile, {}, { isWide: true }));
    for (const read of reads) for (let taken = 0; taken < 5; taken += 1) await read.next();
    await turns(300);
    const ahead = [...Map.groupBy(done, (number) => number).values()].map((sent) => sent.length * 60_000);
    expect(ahead.filter((bytes) => bytes > 1_000_000)).toHaveLength(8);
    expect(Math.max(...ahead)).toBeLessThan(5 * 60_000 + 262_144 + 1_048_576 + 65_536);
    // A call that is over leaves its room to another.
    for (const read of reads) await read.return?.();
    expect(link.heldBytes).toBe(0);
    const next = link.serverStream(method.readFile, {}, { isWide: true });
    for (let taken = 0; taken < 5; taken += 1) await next.next();
    await turns(300);
    expect(done.filter((number) => number === Math.max(...done)).length * 60_000).toBeGreaterThan(1_000_000);
    await next.return?.();
  });

  it("waits when the guest gives no credit, and goes on when it does", async () => {
    const { fake, link } = await connected();
    let call: FakeCall | undefined;
    fake.handler = async (opened) => {
      opened.autoCredit = false;
      call = opened;
    };
    const exec = link.duplex(method.exec, {});
    let handedOn = 0;
    const sending = (async () => {
      for (let index = 0; index < 10; index += 1) {
        await exec.send({ msg: { case: "stdin", value: new Uint8Array(60_000).fill(index) } });
        handedOn += 1;
      }
      exec.end();
    })();
    await turns(50);
    expect(handedOn).toBe(4);
    const bytes = fake.sent(frameType.data).reduce((sum, frame) => sum + frame.payload.byteLength, 0);
    expect(bytes).toBe(262_144);
    call?.grant(1_000_000);
    await sending;
    await until(() => call?.receivedEnd === true);
    expect(call?.received.map((message) => fromBinary(guest.ExecInputSchema, message).msg.value)).toEqual(
      Array.from({ length: 10 }, (_, index) => Buffer.alloc(60_000, index)),
    );
  });

  it("serves ready channels in turn", async () => {
    const { fake, link } = await connected();
    const calls: FakeCall[] = [];
    fake.handler = async (call) => void calls.push(call);
    const big = link.duplex(method.exec, {});
    const small = link.duplex(method.exec, {});
    await until(() => calls.length === 2);
    const bigSent = big.send({ msg: { case: "stdin", value: new Uint8Array(5_000_000) } });
    const smallSent = small.send({ msg: { case: "stdin", value: new Uint8Array(10) } });
    await Promise.all([smallSent, bigSent]);
    const order = fake.sent(frameType.data).map((frame) => frame.channel);
    expect(order.indexOf(4)).toBeLessThanOrEqual(1);
  });

  it("does not take more from a writer while the transport is blocked", async () => {
    const { fake, link } = await connected();
    fake.handler = async () => undefined;
    const exec = link.duplex(method.exec, {});
    await turns(3);
    let unblock = (): void => undefined;
    fake.blocked = new Promise((resolve) => {
      unblock = resolve;
    });
    await exec.send({ msg: { case: "stdin", value: new Uint8Array(1_000) } });
    let second = false;
    const sending = exec.send({ msg: { case: "stdin", value: new Uint8Array(1_000) } }).then(() => {
      second = true;
    });
    await turns(20);
    expect(second).toBe(false);
    unblock();
    await sending;
  });
});

describe("cancellation", () => {
  it.each(["abort", "break", "return"])("sends RESET once on %s", async (how) => {
    const { fake, link } = await connected();
    fake.handler = async (call) => call.send(output(Buffer.from("x")));
    const aborter = new AbortController();
    const exec = link.duplex(method.exec, {}, { signal: aborter.signal });
    if (how === "break") {
      for await (const _ of exec.messages) break;
    } else {
      await exec.messages.next();
      const waiting = exec.messages.next();
      if (how === "abort") aborter.abort();
      else await exec.messages.return?.();
      await expect(waiting).rejects.toMatchObject({ code: "canceled" });
    }
    await until(() => fake.sent(frameType.reset).length > 0);
    await turns(5);
    expect(fake.sent(frameType.reset)).toHaveLength(1);
    expect(fromBinary(guest.StatusSchema, fake.sent(frameType.reset)[0]?.payload as Uint8Array).code).toBe("canceled");
    expect(link.openChannels).toBe(0);
    await expect(exec.send({})).rejects.toMatchObject({ code: "canceled" });
  });

  it("does not start a call for a signal that is aborted already", async () => {
    const { fake, link } = await connected();
    expect(() => link.duplex(method.exec, {}, { signal: AbortSignal.abort() })).toThrow(expect.objectContaining({ code: "canceled" }));
    expect(fake.sent(frameType.open)).toHaveLength(0);
  });

  it("delivers what came before the guest's failure, then the failure", async () => {
    const { fake, link } = await connected();
    fake.handler = async (call) => {
      await call.send(output(Buffer.from("a")));
      await call.send(output(Buffer.from("b")));
      await call.end("internal", "it broke");
    };
    const exec = link.duplex(method.exec, {});
    await until(() => fake.calls.get(2)?.receivedEnd === true);
    await expect(exec.messages.next()).resolves.toMatchObject({ done: false });
    await expect(exec.messages.next()).resolves.toMatchObject({ done: false });
    await expect(exec.messages.next()).rejects.toMatchObject({ code: "exec_failed" });
  });

  it("lets what is under way on a lost link wait for the reason why its machine ended", async () => {
    const lastWords = Promise.withResolvers<void>();
    const { fake, link } = await connected({}, { lastWords: () => lastWords.promise });
    fake.handler = async () => undefined;
    let settled = false;
    const asked = link.unary(method.stat, { path: "/" });
    asked.catch(() => {}).finally(() => (settled = true));
    await until(() => fake.sent(frameType.open).length === 1);
    fake.disconnect();
    await link.closed;
    await turns(10);
    expect(settled).toBe(false);
    await expect(link.unary(method.stat, { path: "/" })).rejects.toMatchObject({ code: "unavailable" });
    link.close(new MitosError("oom_killed"));
    await expect(asked).rejects.toMatchObject({ code: "oom_killed" });
  });

  it("fails what is under way on a lost link when nobody knows the reason", async () => {
    const { fake, link } = await connected({}, { lastWords: () => nextTurn() });
    fake.handler = async () => undefined;
    const asked = link.unary(method.stat, { path: "/" });
    asked.catch(() => {});
    await until(() => fake.sent(frameType.open).length === 1);
    fake.disconnect();
    await expect(asked).rejects.toMatchObject({ code: "unavailable" });
  });

  it("fails what is under way with unavailable when the link is lost", async () => {
    const { fake, link } = await connected();
    fake.handler = async () => undefined;
    const exec = link.duplex(method.exec, {});
    const waiting = exec.messages.next();
    const pending = link.unary(method.readLink, { path: "/" });
    fake.disconnect();
    await expect(waiting).rejects.toMatchObject({ code: "unavailable" });
    await expect(pending).rejects.toMatchObject({ code: "unavailable" });
    await expect(link.closed).resolves.toBeInstanceOf(Error);
  });
});

describe("a caller that leaves a call after its last message", () => {
  const isLast = ({ msg }: guest.ExecOutput) => msg.case === "exit";

  /** An exec whose program has ended, as its caller knows. */
  async function exited(linkOptions: LinkOptions = {}, signal?: AbortSignal) {
    const { fake, link } = await connected({}, linkOptions);
    const opened = Promise.withResolvers<FakeCall>();
    fake.handler = async (call) => {
      opened.resolve(call);
      await call.send(output(Buffer.from("x")));
      await call.send(exit);
    };
    let callsEnded = 0;
    const exec = link.duplex(method.exec, {}, { isLast, signal, onEnd: () => (callsEnded += 1) });
    for (const last of ["output", "exit"]) expect((await exec.messages.next()).value?.msg.case).toBe(last);
    return { fake, link, exec, call: await opened.promise, resets: () => fake.sent(frameType.reset).length, ended: () => callsEnded };
  }

  it.each(["return", "abort", "signal"] as const)("by %s waits for nothing, and lets the call come to its END", async (how) => {
    const aborter = new AbortController();
    const { fake, link, exec, call, resets, ended } = await exited({}, aborter.signal);
    const waiting = exec.messages.next();
    const left = { return: () => exec.messages.return?.(), abort: () => exec.abort(), signal: () => aborter.abort() }[how]?.();
    await expect(waiting).rejects.toMatchObject({ code: "canceled" });
    await left;
    await expect(exec.messages.next()).rejects.toMatchObject({ code: "canceled" });
    await expect(exec.send({})).rejects.toMatchObject({ code: "canceled" });
    aborter.abort();
    await turns(20);
    expect([link.openChannels, ended()]).toEqual([1, 0]);
    await call.end();
    await until(() => call.receivedEnd);
    expect([link.openChannels, ended(), resets()]).toEqual([0, 1, 0]);
    expect(fake.sent(frameType.end)).toHaveLength(1);
  });

  it("lets go of a call whose END never comes when the link ends", async () => {
    const { fake, link, exec, ended } = await exited();
    await exec.messages.return?.();
    expect(link.openChannels).toBe(1);
    fake.disconnect();
    await link.closed;
    expect([link.openChannels, ended(), link.heldBytes]).toEqual([0, 1, 0]);
  });

  it("resets a call whose END does not come in time", async () => {
    const { link, exec, call, resets, ended } = await exited({ endTimeoutMs: 20 });
    await exec.messages.return?.();
    expect([link.openChannels, resets()]).toEqual([1, 0]);
    await expect.poll(resets).toBe(1);
    expect([link.openChannels, ended()]).toEqual([0, 1]);
    await call.end();
    await expect(link.ping()).resolves.toBeGreaterThan(0);
  });

  it.each([
    ["more", (call: FakeCall) => call.send(output(Buffer.alloc(50_000)))],
    [
      "a part of more",
      async ({ guest: fake, number }: FakeCall) => fake.raw({ type: frameType.data, flags: 1, channel: number, payload: Buffer.alloc(9) }),
    ],
  ])("resets a call that says %s", async (_, say) => {
    const { link, exec, call, resets } = await exited();
    await exec.messages.return?.();
    await say(call);
    await until(() => resets() === 1);
    expect([link.openChannels, link.heldBytes]).toEqual([0, 0]);
  });

  it("holds nothing of what came after the last message and was not taken", async () => {
    const { link, exec, call, resets } = await exited();
    await call.send(output(Buffer.alloc(50_000)));
    call.guest.raw({ type: frameType.data, flags: 1, channel: call.number, payload: Buffer.alloc(9) });
    expect(link.heldBytes).toBeGreaterThan(50_000);
    await exec.messages.return?.();
    expect(link.heldBytes).toBe(0);
    await call.end();
    await until(() => call.receivedEnd);
    expect([link.openChannels, resets()]).toEqual([0, 0]);
  });

  it("gives up input that the program has not read, and ends no message in its middle", async () => {
    const { link, exec, call, resets } = await exited();
    call.autoCredit = false;
    const writing = exec.send({ msg: { case: "stdin", value: new Uint8Array(1_000_000) } });
    writing.catch(() => undefined);
    await until(() => call.credit > 0 && call.guest.sent(frameType.data).length >= 4);
    await exec.messages.return?.();
    await expect(writing).rejects.toMatchObject({ code: "canceled" });
    expect(link.openChannels).toBe(1);
    await call.end();
    await until(() => resets() === 1);
    expect([link.openChannels, call.receivedEnd]).toEqual([0, false]);
  });

  it("is none that leaves before it: that is RESET at once", async () => {
    const { fake, link } = await connected();
    fake.handler = async (call) => {
      await call.send(output(Buffer.from("x")));
      await call.send(exit);
    };
    const exec = link.duplex(method.exec, {}, { isLast });
    await until(() => link.heldBytes > 2 * 384); // the exit is here, and nobody knows of it
    await exec.messages.next();
    await exec.messages.return?.();
    expect([link.openChannels, link.heldBytes]).toEqual([0, 0]);
    await until(() => fake.sent(frameType.reset).length === 1);
  });
});

describe("quiet moments", () => {
  it("sends nothing between QUIESCE and RESUME, and goes on byte for byte in both directions", async () => {
    const { fake, link } = await connected({ chunkBytes: 777 });
    const up = randomBytes(2_000_000);
    const down = randomBytes(2_000_000);
    const got: Uint8Array[] = [];
    fake.handler = async (call) => {
      if (call.number !== 2) return;
      const sending = (async () => {
        for (let at = 0; at < down.byteLength; at += 7_919) await call.send(output(down.subarray(at, at + 7_919), BigInt(at)));
      })();
      for (let message = await call.receive(); message; message = await call.receive()) {
        const { msg } = fromBinary(guest.ExecInputSchema, message);
        if (msg.case === "stdin") got.push(msg.value);
      }
      await sending;
      await call.end();
    };
    const exec = link.duplex(method.exec, {});
    const sending = (async () => {
      for (let at = 0; at < up.byteLength; at += 150_000) {
        await exec.send({ msg: { case: "stdin", value: up.subarray(at, at + 150_000) } });
      }
      exec.end();
    })();
    const receiving = collect(exec.messages);
    for (let round = 0; round < 5; round += 1) {
      await turns(8);
      const quiet = await link.quiesce();
      const before = fake.frames.length;
      expect(fake.frames.at(-1)?.type).toBe(frameType.quiesce);
      const late = link.duplex(method.exec, {});
      late.abort();
      await turns(10);
      expect(fake.frames.length).toBe(before);
      await quiet.resume();
      await turns(2);
      expect(fake.frames[before]?.type).toBe(frameType.resume);
    }
    await sending;
    expect(sha256(await receiving)).toBe(sha256(down));
    await until(() => got.reduce((sum, part) => sum + part.byteLength, 0) === up.byteLength);
    expect(sha256(Buffer.concat(got))).toBe(sha256(up));
  });

  it("sends RESUME and goes on when the guest does not become quiet in time", async () => {
    const { fake, link } = await connected({ answerQuiesce: false });
    await expect(link.quiesce({ timeoutMs: 20 })).rejects.toMatchObject({ code: "unavailable" });
    await until(() => fake.sent(frameType.resume).length === 1);
    // Its answer comes after all: it belongs to a round that is over.
    fake.control(frameType.quiesced, toBinary(guest.QuiescedSchema, create(guest.QuiescedSchema, { round: 1n })));
    await expect(link.ping()).resolves.toBeGreaterThan(0);
  });

  it("refuses a second quiet moment while one lasts", async () => {
    const { link } = await connected();
    const quiet = await link.quiesce();
    await expect(link.quiesce()).rejects.toMatchObject({ code: "conflict" });
    await quiet.resume();
    await quiet.resume();
    await (await link.quiesce()).resume();
  });
});

describe("tunnels", () => {
  it("carries bytes both ways and goes on sending after the guest's half-close", async () => {
    const { fake, link } = await connected();
    const got: Uint8Array[] = [];
    fake.handler = async (call) => {
      expect(fromBinary(guest.TunnelOpenSchema, call.first).port).toBe(80);
      await call.send(noPayload);
      await call.send(Buffer.from("hello"));
      await call.end();
      for (let message = await call.receive(); message; message = await call.receive()) got.push(message);
    };
    const tunnel = await link.tunnel(80);
    const received: Uint8Array[] = [];
    for await (const part of tunnel) received.push(part);
    expect(Buffer.concat(received).toString()).toBe("hello");
    await tunnel.send(new Uint8Array(200_000).fill(5));
    await tunnel.end();
    await until(() => link.openChannels === 0);
    await until(() => got.reduce((sum, part) => sum + part.byteLength, 0) === 200_000);
  });

  it("fails with the guest's status when nothing listens", async () => {
    const { fake, link } = await connected();
    fake.handler = (call) => call.end("unavailable", "connection refused");
    await expect(link.tunnel(80)).rejects.toMatchObject({ code: "unavailable", detail: { cause: "connection refused" } });
    expect(link.openChannels).toBe(0);
  });
});

describe("calls from the guest", () => {
  it("serves a method and answers with its reply", async () => {
    const { fake, link } = await connected();
    link.onGuestCall(guest.Host.method.forkSelf, async ({ count }) => ({
      children: Array.from({ length: count }, (_, i) => `child-${i}`),
    }));
    fake.open("ForkSelf", toBinary(guest.ForkSelfRequestSchema, create(guest.ForkSelfRequestSchema, { count: 2 })));
    await until(() => fake.sent(frameType.end).length === 1);
    const [data] = fake.sent(frameType.data);
    expect(data?.channel).toBe(1);
    expect(fromBinary(guest.ForkSelfReplySchema, data?.payload as Uint8Array).children).toEqual(["child-0", "child-1"]);
  });

  it("refuses unknown methods with RESET unimplemented", async () => {
    const { fake } = await connected();
    fake.open("Sudo", noPayload);
    await until(() => fake.sent(frameType.reset).length === 1);
    expect(fromBinary(guest.StatusSchema, fake.sent(frameType.reset)[0]?.payload as Uint8Array).code).toBe("unimplemented");
  });

  it("refuses the 513th channel with RESET resource_exhausted", async () => {
    const { fake, link } = await connected();
    const signals: AbortSignal[] = [];
    link.onGuestCall(guest.Host.method.forkSelf, (_, signal) => {
      signals.push(signal);
      return new Promise(() => undefined);
    });
    for (let index = 0; index < 513; index += 1) fake.open("ForkSelf", noPayload);
    await until(() => fake.sent(frameType.reset).length === 1);
    expect(fake.sent(frameType.reset)[0]?.channel).toBe(1025);
    link.close();
    expect(signals.every((signal) => signal.aborted)).toBe(true);
  });
});

describe("streams from the guest", () => {
  const egressOpen = (host: string) => toBinary(guest.EgressOpenSchema, create(guest.EgressOpenSchema, { host, port: 443 }));
  const data = (channel: number, payload: Uint8Array): Frame => ({ type: frameType.data, flags: 0, channel, payload });
  const end = (channel: number): Frame => ({ type: frameType.end, flags: 0, channel, payload: noPayload });

  it("carry bytes both ways after they were accepted, with an end for each direction", async () => {
    const { fake, link } = await connected();
    const received: string[] = [];
    link.onGuestStream(guest.Host.method.egress, async ({ host }, stream) => {
      await stream.accept({});
      await stream.send(Buffer.from(`welcome to ${host}`));
      await stream.end();
      for await (const chunk of stream) received.push(Buffer.from(chunk).toString());
    });
    const channel = fake.open("Egress", egressOpen("a.test"), false);
    await until(() => fake.sent(frameType.end).length === 1);
    expect(fake.sent(frameType.data).map(({ payload }) => Buffer.from(payload).toString())).toEqual(["", "welcome to a.test"]);
    fake.raw(data(channel, Buffer.from("still ")), data(channel, Buffer.from("here")), end(channel));
    await until(() => received.length === 2);
    expect(received.join("")).toBe("still here");
    expect(link.openChannels).toBe(0);
  });

  it("are refused with the status of the failure, and cost nothing then", async () => {
    const { fake, link } = await connected();
    link.onGuestStream(guest.Host.method.egress, () =>
      Promise.reject(new MitosError("permission_denied", { message: "egress is denied: no rule allows it" })),
    );
    fake.open("Egress", egressOpen("a.test"), false);
    await until(() => fake.sent(frameType.reset).length === 1);
    const status = fromBinary(guest.StatusSchema, fake.sent(frameType.reset)[0]?.payload as Uint8Array);
    expect(status).toMatchObject({ code: "permission_denied", message: "egress is denied: no rule allows it" });
    expect(link.openChannels).toBe(0);
  });

  it("send no more than the guest gives credit for, and give credit for what was taken", async () => {
    const { fake, link } = await connected();
    let sentChunks = 0;
    const taken: number[] = [];
    link.onGuestStream(guest.Host.method.egress, async (_, stream) => {
      await stream.accept({});
      const sending = (async () => {
        for (; sentChunks < 20; sentChunks += 1) await stream.send(new Uint8Array(60_000));
      })();
      for await (const chunk of stream) taken.push(chunk.byteLength);
      await sending;
    });
    const channel = fake.open("Egress", egressOpen("a.test"), false);
    const sentBytes = () => fake.sent(frameType.data).reduce((sum, { payload }) => sum + payload.byteLength, 0);
    await until(() => sentBytes() === 262_144);
    await turns(10);
    expect([sentBytes(), sentChunks]).toEqual([262_144, 4]);
    fake.raw({ type: frameType.credit, flags: 0, channel, payload: uint32Bytes(2_000_000) });
    await until(() => sentBytes() === 1_200_000);

    for (let index = 0; index < 4; index += 1) fake.raw(data(channel, new Uint8Array(60_000)));
    await until(() => fake.sent(frameType.credit).length > 0);
    expect(taken).toHaveLength(4);
    link.close();
  });

  it("end the session when the guest sends more than its credit", async () => {
    const { fake, link } = await connected();
    link.onGuestStream(guest.Host.method.egress, () => new Promise(() => undefined));
    const channel = fake.open("Egress", egressOpen("a.test"), false);
    for (let index = 0; index < 5; index += 1) fake.raw(data(channel, new Uint8Array(60_000)));
    await expect(link.closed).resolves.toBeInstanceOf(LinkViolation);
    expect(link.heldBytes).toBe(0);
  });

  it("tell their handler when the guest resets them or the session ends, but not after a good end", async () => {
    const { fake, link } = await connected();
    const signals: AbortSignal[] = [];
    link.onGuestStream(guest.Host.method.egress, async (_, stream) => {
      const isFirst = signals.push(stream.signal) === 1;
      await stream.accept({});
      if (isFirst) await stream.end();
      else await new Promise(() => undefined);
    });
    const ended = fake.open("Egress", egressOpen("a.test"), false);
    const reset = fake.open("Egress", egressOpen("a.test"), false);
    fake.open("Egress", egressOpen("a.test"), false);
    await until(() => signals.length === 3 && fake.sent(frameType.end).length === 1);
    fake.raw(end(ended), { type: frameType.reset, flags: 0, channel: reset, payload: noPayload });
    expect(signals.map(({ aborted }) => aborted)).toEqual([false, true, false]);
    link.close();
    expect(signals.map(({ aborted }) => aborted)).toEqual([false, true, true]);
  });

  it("stand still while the machine is quiet, and go on where they stopped", async () => {
    const { fake, link } = await connected();
    let stream: { send(data: Uint8Array): Promise<void> } | undefined;
    link.onGuestStream(guest.Host.method.egress, async (_, opened) => {
      await opened.accept({});
      stream = opened;
      await new Promise(() => undefined);
    });
    fake.open("Egress", egressOpen("a.test"), false);
    await until(() => stream !== undefined && fake.sent(frameType.data).length === 1);
    const quiet = await link.quiesce();
    const sent = stream?.send(Buffer.from("later"));
    await turns(10);
    expect(fake.sent(frameType.data)).toHaveLength(1);
    await quiet.resume();
    await sent;
    await until(() => fake.sent(frameType.data).length === 2);
    expect(Buffer.from(fake.sent(frameType.data)[1]?.payload as Uint8Array).toString()).toBe("later");
    link.close();
  });

  it("cannot flood the host with refusals that the guest does not read", async () => {
    const { fake, link } = await connected();
    link.onGuestStream(guest.Host.method.egress, () => Promise.reject(new MitosError("permission_denied")));
    fake.blocked = new Promise(() => undefined);
    for (let index = 0; index < 6_000; index += 1) {
      fake.open("Egress", egressOpen("a.test"), false);
      if (index % 100 === 0) await nextTurn();
    }
    await expect(link.closed).resolves.toBeInstanceOf(LinkViolation);
  });
});

describe("a hostile guest", () => {
  const frame = (type: number, channel: number, payload: Uint8Array = noPayload, flags = 0): Frame => ({ type, flags, channel, payload });
  const data = (bytes: number, flags = 0): Frame => frame(frameType.data, 2, new Uint8Array(bytes), flags);

  it.each<[string, Frame[]]>([
    ["sends HELLO", [frame(frameType.hello, 0)]],
    ["acknowledges twice", [frame(frameType.helloAck, 0)]],
    ["sends QUIESCED unasked", [frame(frameType.quiesced, 0, Buffer.from([8, 9]))]],
    ["sends ADOPTED unasked", [frame(frameType.adopted, 0, Buffer.from([8, 1]))]],
    ["sends PONG unasked", [frame(frameType.pong, 0, Buffer.from("x"))]],
    ["sends PING", [frame(frameType.ping, 0)]],
    ["sends a control frame on a channel", [frame(frameType.pong, 2)]],
    ["sends DATA on channel 0", [frame(frameType.data, 0)]],
    ["sends DATA on a channel never opened", [frame(frameType.data, 6)]],
    ["sends DATA on a guest channel never opened", [frame(frameType.data, 1)]],
    ["opens a channel of the host", [frame(frameType.open, 6)]],
    ["opens a channel twice", [frame(frameType.open, 3), frame(frameType.open, 3)]],
    ["opens an earlier channel", [frame(frameType.open, 3), frame(frameType.open, 1)]],
    ["sends an OPEN that cannot be decoded", [frame(frameType.open, 1, Buffer.from([0x0a, 0x7f]))]],
    ["sends more than its credit", Array.from({ length: 5 }, () => data(60_000))],
    ["sends DATA after END", [frame(frameType.end, 2), frame(frameType.end, 2), data(1)]],
    ["ends inside a message", [data(1, 1), frame(frameType.end, 2)]],
    ["sends MORE on END", [frame(frameType.end, 2, noPayload, 1)]],
    ["sends CREDIT of 3 bytes", [frame(frameType.credit, 2, new Uint8Array(3))]],
    ["sends CREDIT without measure", [frame(frameType.credit, 2, uint32Bytes(0x7fffffff))]],
    ["sends a status that cannot be decoded", [frame(frameType.reset, 2, Buffer.from([0x0a, 0x7f]))]],
    ["sends a frame of the shim", [frame(frameType.shimEvent, 0)]],
  ])("that %s ends the session and what is under way", async (_, frames) => {
    const { fake, link } = await connected();
    fake.handler = async () => undefined;
    const tunnelled = _ === "sends DATA after END";
    const exec = link.duplex(method.exec, {});
    const pending = link.unary(method.readLink, { path: "/" });
    // END twice on a call that has gone is legal; on one that is still open for the host it is not.
    if (tunnelled) {
      exec.abort();
      await turns(3);
      fake.handler = async (call) => {
        await call.send(noPayload);
        fake.raw(frame(frameType.end, call.number), frame(frameType.data, call.number));
      };
      await link.tunnel(1).catch(() => undefined);
    } else {
      await turns(3);
      fake.raw(...frames);
    }
    await expect(link.closed).resolves.toBeInstanceOf(LinkViolation);
    await expect(pending).rejects.toMatchObject({ code: "unavailable" });
    if (!tunnelled) await expect(exec.messages.next()).rejects.toMatchObject({ code: expect.stringMatching("unavailable|exec_failed") });
    await expect(link.unary(method.readLink, { path: "/" })).rejects.toMatchObject({ code: "unavailable" });
  });

  it("that sends anything between QUIESCED and RESUME ends the session", async () => {
    const { fake, link } = await connected();
    await link.quiesce();
    fake.raw(frame(frameType.data, 2));
    await expect(link.closed).resolves.toBeInstanceOf(LinkViolation);
  });

  it("that answers with an undecodable message ends the session", async () => {
    const { fake, link } = await connected();
    fake.handler = async (call) => call.send(Buffer.from([0x0a, 0x7f]));
    await expect(link.unary(method.readLink, { path: "/" })).rejects.toMatchObject({ code: "unavailable" });
    await expect(link.closed).resolves.toBeInstanceOf(LinkViolation);
  });

  it("may send late frames for channels that are closed", async () => {
    const { fake, link } = await connected();
    fake.handler = async (call) => call.send(output(Buffer.from("x")));
    const exec = link.duplex(method.exec, {});
    await exec.messages.next();
    exec.abort();
    fake.raw(data(10), data(10, 1), frame(frameType.credit, 2, uint32Bytes(5)), frame(frameType.reset, 2), frame(frameType.end, 2));
    await expect(link.ping()).resolves.toBeGreaterThan(0);
  });

  it("cannot make the host hold more than the cap: the call that goes over it is reset", async () => {
    const { fake, link } = await connected({}, { heldBytesMax: 1_000_000 });
    fake.handler = async (call) => call.send(new Uint8Array(2_000_000));
    const exec = link.duplex(method.exec, {});
    const other = link.duplex(method.exec, {});
    await until(() => fake.sent(frameType.reset).length > 0);
    expect(link.heldBytes).toBeLessThanOrEqual(1_000_000);
    await expect(exec.messages.next()).rejects.toMatchObject({ code: "sandbox_exhausted" });
    other.abort();
    await turns(5);
    expect(link.heldBytes).toBe(0);
  });

  it("cannot make the host hold messages without size", async () => {
    const { fake, link } = await connected({}, { heldBytesMax: 1_000_000 });
    fake.handler = async () => undefined;
    const exec = link.duplex(method.exec, {});
    await turns(3);
    for (let index = 0; index < 20_000; index += 1) fake.raw(data(0));
    expect(link.heldBytes).toBeLessThanOrEqual(1_000_000);
    await expect(exec.messages.next()).rejects.toMatchObject({ code: "sandbox_exhausted" });
  });

  it("gets no credit for parts while whole messages wait", async () => {
    const { fake, link } = await connected();
    fake.handler = async () => undefined;
    const exec = link.duplex(method.exec, {});
    await turns(3);
    fake.raw(data(1_000));
    for (let index = 0; index < 5; index += 1) fake.raw(data(50_000, 1));
    await turns(5);
    expect(fake.sent(frameType.credit)).toHaveLength(0);
    await exec.messages.next().catch(() => undefined);
    link.close();
  });

  it("cannot expand a small message into a flood of objects", async () => {
    const { fake, link } = await connected();
    const entries = new Uint8Array(1_000_000);
    for (let at = 0; at < entries.byteLength; at += 2) entries[at] = 0x0a;
    fake.handler = async (call) => {
      await call.send(entries);
      await call.end();
    };
    await expect(link.unary(method.list, { parent: "/" })).rejects.toMatchObject({ code: "sandbox_exhausted" });
  });

  const runAnswer = (message: MessageInitShape<typeof sandbox.RunCodeResponseSchema>) =>
    toBinary(method.runCode.output, create(method.runCode.output, message));
  it.each<[string, () => Uint8Array]>([
    [
      "representations of a result",
      () => {
        const data = Object.fromEntries(Array.from({ length: 60_000 }, (_, index) => [`k${index}`, noPayload]));
        return runAnswer({ msg: { case: "result", value: { data } } });
      },
    ],
    ["lines of a traceback", () => runAnswer({ msg: { case: "error", value: { traceback: Array.from({ length: 140_000 }, () => "") } } })],
    ["results, of which the last is the answer", () => Buffer.alloc(400_000, Buffer.from([0x1a, 0]))],
    [
      "fields that the host does not know, in a group",
      () => Buffer.concat([Buffer.from([0x7b]), Buffer.alloc(400_000, Buffer.from([0x10, 1])), Buffer.from([0x7c])]),
    ],
  ])("cannot make the host decode a flood of %s", async (_, answer) => {
    const { fake, link } = await connected();
    fake.handler = async (call) => {
      await call.send(answer());
      await call.end();
    };
    await expect(link.duplex(method.runCode, {}).messages.next()).rejects.toMatchObject({ code: "sandbox_exhausted" });
    await expect(link.ping()).resolves.toBeGreaterThan(0);
  });

  it("ends the session with a large answer that is malformed within", async () => {
    const { fake, link } = await connected();
    const answer = Buffer.concat([Buffer.from([0x0a, 0x80, 0xea, 0x30]), Buffer.alloc(800_000), Buffer.from([0x22, 0x02, 0x1a, 0x7f])]);
    fake.handler = async (call) => call.send(answer);
    await expect(link.duplex(method.runCode, {}).messages.next()).rejects.toMatchObject({ code: "unavailable" });
    await expect(link.closed).resolves.toBeInstanceOf(LinkViolation);
  });

  it("is none whose listing has as many entries as an agent sends, or whose processes", async () => {
    const { fake, link } = await connected();
    const info = { isDir: true, size: 1n, mode: 0o755, modifiedAtUnix: 1_790_000_000n };
    const row = { ppid: 1, command: "sleep", state: "S", cpuPercent: 1, rssBytes: 4096n };
    fake.handler = async (call) => {
      if (call.method === "List") {
        const entries = Array.from({ length: 200_000 }, (_, index) => ({ ...info, name: `${index}`, path: `/a/${index}` }));
        await call.send(toBinary(method.list.output, create(method.list.output, { entries })));
      } else {
        const processes = Array.from({ length: 65_536 }, (_, index) => ({ ...row, pid: index + 1 }));
        await call.send(toBinary(method.processes.output, create(method.processes.output, { processes })));
      }
      await call.end();
    };
    expect((await link.unary(method.list, { parent: "/" })).entries).toHaveLength(200_000);
    expect((await link.unary(method.processes, {})).processes).toHaveLength(65_536);
  });
});

describe("channels of a hostile guest", () => {
  const data = (channel: number, bytes: number, flags = 0): Frame => ({
    type: frameType.data,
    flags,
    channel,
    payload: new Uint8Array(bytes),
  });
  const statusOf = ({ payload }: Frame) => fromBinary(guest.StatusSchema, payload);
  const request = toBinary(guest.EgressPortsRequestSchema, create(guest.EgressPortsRequestSchema, { name: "a.test" }));

  async function served(options: LinkOptions = {}) {
    const { fake, link } = await connected({}, options);
    let calls = 0;
    link.onGuestCall(guest.Host.method.egressPorts, async () => {
      calls += 1;
      return {};
    });
    link.onGuestStream(guest.Host.method.egress, () => new Promise(() => undefined));
    return { fake, link, calls: () => calls };
  }

  it.each(["EgressPorts", "Egress"])("cannot have the host put a message together that is longer than a frame's (%s)", async (name) => {
    const { fake, link } = await served();
    const channel = fake.open(name, noPayload, false);
    fake.raw(data(channel, 40_000, 1));
    expect(link.heldBytes).toBeLessThanOrEqual(65_536);
    fake.raw(data(channel, 30_000, 1));
    await expect(link.closed).resolves.toMatchObject({ message: "a message of more than 65536 bytes" });
    expect(link.heldBytes).toBe(0);
  });

  it("takes a message as long as a frame's, cut in parts, and gives credit for it when it is taken", async () => {
    const { fake, link } = await connected();
    const taken: number[] = [];
    let take = (): void => undefined;
    link.onGuestStream(guest.Host.method.egress, async (_, stream) => {
      await new Promise<void>((resolve) => {
        take = resolve;
      });
      await stream.accept({});
      for await (const chunk of stream) taken.push(chunk.byteLength);
    });
    const channel = fake.open("Egress", toBinary(guest.EgressOpenSchema, create(guest.EgressOpenSchema, { host: "a.test" })), false);
    for (const bytes of [65_535, 65_535, 65_535]) fake.raw(data(channel, bytes, 1), data(channel, 1));
    await turns(10);
    expect(fake.sent(frameType.credit)).toHaveLength(0);
    take();
    await until(() => taken.length === 3);
    expect(taken).toEqual([65_536, 65_536, 65_536]);
    await until(() => fake.sent(frameType.credit).length > 0);
    link.close();
  });

  it.each(["EgressPorts", "Egress"])("are refused when their first message does not come in time (%s)", async (name) => {
    const { fake, link } = await served({ firstMessageMs: 20 });
    const channel = fake.open(name, noPayload, false);
    fake.raw(data(channel, 1_000, 1));
    await expect.poll(() => fake.sent(frameType.reset).map(statusOf)).toMatchObject([{ code: "deadline_exceeded" }]);
    expect([link.openChannels, link.heldBytes]).toEqual([0, 0]);
  });

  it("have no deadline after their first message", async () => {
    const { fake, link } = await served({ firstMessageMs: 20 });
    const channel = fake.open("Egress", noPayload, false);
    fake.raw(data(channel, 0));
    fake.open("Egress", toBinary(guest.EgressOpenSchema, create(guest.EgressOpenSchema, { host: "a.test" })), false);
    await new Promise((resolve) => setTimeout(resolve, 60));
    expect(link.openChannels).toBe(2);
    link.close();
  });

  it("keep nothing behind the only message of a call", async () => {
    const { fake, link, calls } = await served();
    const early = fake.open("EgressPorts", noPayload, false);
    fake.raw({ ...data(early, 0), payload: request }, data(early, 60_000, 1));
    const late = fake.open("EgressPorts", request, false);
    await until(() => fake.sent(frameType.end).length === 1);
    fake.raw(data(late, 60_000));
    await until(() => fake.sent(frameType.reset).length === 2);
    expect(fake.sent(frameType.reset).map((frame) => [frame.channel, statusOf(frame).code])).toEqual([
      [early, "invalid_argument"],
      [late, "invalid_argument"],
    ]);
    expect([link.openChannels, link.heldBytes, calls()]).toEqual([0, 0, 1]);
  });
});

describe("a guest that says nothing", () => {
  it("is asked, and lost when it does not answer while a call waits", async () => {
    const { fake, link } = await connected({}, { silenceMs: 20 });
    fake.handler = () => new Promise(() => {});
    const call = link.unary(method.list, { parent: "/" });
    await expect(link.ping()).resolves.toBeGreaterThan(0);
    fake.mute = true;
    await expect(call).rejects.toMatchObject({ code: "unavailable" });
    expect(await link.closed).toMatchObject({ message: expect.stringContaining("has not answered") });
    expect(fake.sent(frameType.ping).length).toBeGreaterThanOrEqual(2);
  });

  it("is left alone while it answers, is asked to be quiet, or no call waits", async () => {
    const { fake, link } = await connected({}, { silenceMs: 10 });
    const pings = () => fake.sent(frameType.ping).length;
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(pings()).toBe(0);
    fake.handler = () => new Promise(() => {});
    const call = link.unary(method.list, { parent: "/" }).catch((error: unknown) => error);
    await expect.poll(pings).toBeGreaterThan(2);
    const quiet = await link.quiesce();
    const before = pings();
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(pings()).toBe(before);
    await quiet.resume();
    await expect.poll(pings).toBeGreaterThan(before);
    link.close();
    expect(await call).toMatchObject({ code: "unavailable" });
  });
});
