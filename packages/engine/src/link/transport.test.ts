import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { encodeFrames, type Frame, FrameReader, frameType } from "./frame.ts";
import { connectShim, type ShimConnection } from "./transport.ts";
import { LinkViolation } from "./violation.ts";

let folder: string;
let server: Server;
let shimEnd: Socket;
let shim: ShimConnection;
let received: Frame[];
let answer: (frame: Frame, text: string) => void;

const json = (type: number, channel: number, value: unknown): Frame => ({
  type,
  flags: 0,
  channel,
  payload: Buffer.from(JSON.stringify(value)),
});
const say = (...frames: Frame[]): void => void shimEnd.write(encodeFrames(frames));

beforeEach(async () => {
  folder = mkdtempSync(path.join(tmpdir(), "mitos-shim-test-"));
  received = [];
  answer = () => undefined;
  const accepted = new Promise<Socket>((resolve) => {
    server = createServer(resolve);
  });
  await new Promise<void>((resolve) => server.listen(path.join(folder, "shim.sock"), resolve));
  shim = await connectShim(path.join(folder, "shim.sock"));
  shimEnd = await accepted;
  let parts: Buffer[] = [];
  const reader = new FrameReader((type, flags, channel, payload) => {
    const frame = { type, flags, channel, payload: Buffer.from(payload) };
    received.push(frame);
    parts.push(frame.payload);
    if (flags === 0) {
      answer(frame, Buffer.concat(parts).toString());
      parts = [];
    }
  });
  shimEnd.on("data", (chunk: Buffer) => reader.push(chunk));
  shimEnd.on("error", () => undefined);
});

afterEach(async () => {
  shim.close();
  shimEnd.destroy();
  await new Promise((resolve) => server.close(resolve));
  rmSync(folder, { recursive: true, force: true });
});

describe("the connection to a shim", () => {
  it("answers each of several requests with its own reply", async () => {
    answer = ({ channel }, text) => {
      // The second is answered first.
      if (channel === 1) return;
      say(json(frameType.shimReply, channel, { ok: true, op: JSON.parse(text).op }), json(frameType.shimReply, 1, { ok: true, first: 1 }));
    };
    const [first, second] = await Promise.all([shim.request("meter"), shim.request("signal", { signal: "SIGSTOP" })]);
    expect(first).toEqual({ ok: true, first: 1 });
    expect(second).toEqual({ ok: true, op: "signal" });
  });

  it("cuts a large request with MORE and puts a cut reply together", async () => {
    const large = "x".repeat(200_000);
    answer = ({ channel }, text) => {
      expect(JSON.parse(text)).toEqual({ op: "run", argv: [large] });
      const reply = Buffer.from(JSON.stringify({ ok: true, stdout: large }));
      for (let at = 0; at < reply.byteLength; at += 60_000) {
        const payload = reply.subarray(at, at + 60_000);
        say({ type: frameType.shimReply, flags: at + 60_000 < reply.byteLength ? 1 : 0, channel, payload });
        say({ type: frameType.data, flags: 0, channel, payload: Buffer.from("in between") });
      }
    };
    await expect(shim.request("run", { argv: [large] })).resolves.toEqual({ ok: true, stdout: large });
    expect(received.length).toBe(4);
  });

  it("fails a request that the shim refuses, with its text", async () => {
    answer = ({ channel }) => say(json(frameType.shimReply, channel, { ok: false, error: "no machine" }));
    await expect(shim.request("signal")).rejects.toMatchObject({
      code: "internal",
      detail: { cause: "the shim refused signal: no machine" },
    });
  });

  it("hands link frames to the link only, and events to their listener, also those that came early", async () => {
    const frames: number[] = [];
    shim.transport.onFrame((type) => frames.push(type));
    say(json(frameType.shimEvent, 0, { event: "exit" }), { type: frameType.data, flags: 0, channel: 2, payload: Buffer.from("x") });
    answer = ({ channel }) => say(json(frameType.shimReply, channel, { ok: true }));
    await shim.request("meter");
    const events: unknown[] = [];
    shim.onEvent((event) => events.push(event));
    expect(events).toEqual([{ event: "exit" }]);
    expect(frames).toEqual([frameType.data]);
  });

  it("makes a writer wait while the socket is full", async () => {
    shimEnd.pause();
    const frame = encodeFrames([{ type: frameType.data, flags: 0, channel: 2, payload: Buffer.alloc(60_000) }]);
    let waiting = false;
    for (let index = 0; index < 200 && !waiting; index += 1) {
      const sent = shim.transport.send(frame).then(() => "sent");
      waiting = (await Promise.race([sent, new Promise((resolve) => setTimeout(resolve, 20, "waiting"))])) === "waiting";
    }
    expect(waiting).toBe(true);
    const drained = shim.transport.send(frame);
    shimEnd.resume();
    await drained;
  });

  it("fails what is pending and tells the link when the shim is gone", async () => {
    const closed = new Promise((resolve) => shim.transport.onClose(resolve));
    const pending = shim.request("meter");
    shimEnd.destroy();
    await expect(pending).rejects.toMatchObject({ code: "unavailable" });
    await closed;
    await shim.closed;
    await expect(shim.request("meter")).rejects.toMatchObject({ code: "unavailable" });
    await expect(shim.transport.send(new Uint8Array(1))).rejects.toThrow();
  });

  it.each([
    ["a header that breaks a rule", Buffer.from([9, 0, 0, 0, 0x11, 0, 0, 0, 0, 0])],
    ["a request of its own", encodeFrames([json(frameType.shimRequest, 1, {})])],
    ["a reply that is not JSON", encodeFrames([{ type: frameType.shimReply, flags: 0, channel: 1, payload: Buffer.from("{") }])],
    ["a reply that is no object", encodeFrames([json(frameType.shimReply, 1, [])])],
  ])("is closed when the shim sends %s", async (_, bytes) => {
    shimEnd.write(bytes);
    await expect(shim.closed).resolves.toBeInstanceOf(LinkViolation);
  });

  it("says that a shim cannot be reached", async () => {
    await expect(connectShim(path.join(folder, "none.sock"))).rejects.toMatchObject({ code: "unavailable" });
  });
});
