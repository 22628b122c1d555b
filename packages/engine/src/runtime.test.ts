import { setImmediate as nextTurn } from "node:timers/promises";
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { guest, sandbox as pb } from "@mitos/protocol/proto";
import { beforeEach, describe, expect, it } from "vitest";
import type { ProcessEvent, ProcessStart, Runtime } from "./actions.ts";
import { LinkClient } from "./link/client.ts";
import { type FakeCall, FakeGuest } from "./link/fake-guest.ts";
import { frameType } from "./link/frame.ts";
import { createRuntime } from "./runtime.ts";

let fake: FakeGuest;
let link: LinkClient;
let runtime: Runtime;
let active: number;
let begun: number;

beforeEach(async () => {
  fake = new FakeGuest();
  link = new LinkClient(fake.transport);
  await link.hello();
  active = 0;
  begun = 0;
  runtime = createRuntime(link, {
    onActivity: () => {
      active += 1;
      begun += 1;
      return () => {
        active -= 1;
      };
    },
  });
});

const event = (msg: MessageInitShape<typeof guest.ExecOutputSchema>["msg"]): Uint8Array =>
  toBinary(guest.ExecOutputSchema, create(guest.ExecOutputSchema, { msg } as MessageInitShape<typeof guest.ExecOutputSchema>));

async function until(condition: () => boolean): Promise<void> {
  for (let turn = 0; turn < 2_000 && !condition(); turn += 1) await nextTurn();
  expect(condition()).toBe(true);
}

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const collected: T[] = [];
  for await (const item of items) collected.push(item);
  return collected;
}

async function* source(...parts: Uint8Array[]): AsyncGenerator<Uint8Array> {
  yield* parts;
}

describe("exec", () => {
  it("sends what was asked for and gives the events in order", async () => {
    let start: guest.ProcessStart | undefined;
    fake.handler = async (call) => {
      start = fromBinary(guest.ExecInputSchema, call.first).msg.value as guest.ProcessStart;
      await call.send(event({ case: "started", value: { pid: 7, startedUnixMs: 5n } as guest.ProcessStarted }));
      await call.send(event({ case: "output", value: { stream: 2, offset: 3n, data: Buffer.from("no") } as unknown as guest.Output }));
      await call.send(event({ case: "gap", value: { stream: 1, from: 1n, to: 9n } as guest.Gap }));
      await call.send(event({ case: "exit", value: { exitCode: 3, execTimeMs: Number.NaN } as guest.ProcessExit }));
      await call.end();
    };
    const events = await all(runtime.exec({ argv: ["ls", "-l"], env: { A: "1" }, cwd: "/tmp", user: "nobody", timeoutMs: 1_500.2 }));
    expect(start).toMatchObject({ argv: ["ls", "-l"], env: [{ key: "A", value: "1" }], cwd: "/tmp", user: "nobody", timeoutMs: 1_501n });
    expect(start).toMatchObject({ shellCommand: "", stdin: false, detached: false });
    expect(events).toEqual([
      { kind: "started", pid: 7, startedUnixMs: 5 },
      { kind: "output", stream: "stderr", offset: 3, data: Buffer.from("no") },
      { kind: "gap", stream: "stdout", from: 1, to: 9 },
      { kind: "exit", exitCode: 3, signal: 0, timedOut: false, execTimeMs: 0, error: "" },
    ] satisfies ProcessEvent[]);
    await until(() => active === 0);
  });

  it("sends RESET when the iteration is left early, and is no activity any more", async () => {
    fake.handler = (call) => call.send(event({ case: "started", value: { pid: 7 } as guest.ProcessStarted }));
    for await (const _ of runtime.exec({ argv: ["forever"] })) {
      expect(active).toBe(1);
      break;
    }
    await until(() => fake.sent(frameType.reset).length === 1);
    expect(active).toBe(0);
  });

  it.each<[string, guest.ExecOutput["msg"], () => Promise<unknown>]>([
    [
      "exec",
      { case: "exit", value: {} as guest.ProcessExit },
      async () => {
        for await (const { kind } of runtime.exec({ argv: ["true"] })) if (kind === "exit") break;
      },
    ],
    [
      "attach",
      { case: "exit", value: {} as guest.ProcessExit },
      async () => {
        for await (const { kind } of runtime.attach(7, { follow: true })) if (kind === "exit") break;
      },
    ],
    ["start", { case: "started", value: { pid: 7 } as guest.ProcessStarted }, () => runtime.start({ argv: ["true"] })],
  ])("of which nothing but END is to come is left without RESET: %s", async (_, last, leave) => {
    let call: FakeCall | undefined;
    fake.handler = async (opened) => {
      call = opened;
      await call.send(event(last));
    };
    await leave();
    await call?.end();
    await until(() => active === 0);
    await link.ping(); // and what was to be sent before
    expect(fake.sent(frameType.reset)).toEqual([]);
  });

  it("keeps the order of input written at once, in frames of at most 60,000 bytes", async () => {
    let call: FakeCall | undefined;
    fake.handler = async (opened) => {
      call = opened;
    };
    const attachment = runtime.exec({ argv: ["cat"], stdin: true });
    const parts = [Buffer.alloc(100_000, 1), Buffer.alloc(5, 2), Buffer.alloc(70_000, 3)];
    await Promise.all([...parts.map((part) => attachment.writeStdin(part)), attachment.closeStdin()]);
    await until(() => call?.received.length === 6);
    const messages = call?.received.map((bytes) => fromBinary(guest.ExecInputSchema, bytes).msg) ?? [];
    expect(Buffer.concat(messages.slice(0, 5).map((msg) => msg.value as Uint8Array))).toEqual(Buffer.concat(parts));
    expect(messages[5]).toEqual({ case: "stdinClose", value: true });
    expect(fake.sent(frameType.data).every((frame) => frame.payload.byteLength <= 60_100)).toBe(true);
  });

  it("signals a process that does not read its input", async () => {
    const signals: guest.SignalProcessRequest[] = [];
    fake.handler = async (call) => {
      call.autoCredit = false;
      if (call.method === "Exec") return call.send(event({ case: "started", value: { pid: 7 } as guest.ProcessStarted }));
      signals.push(fromBinary(guest.SignalProcessRequestSchema, call.first));
      await call.send(new Uint8Array(0));
      await call.end();
    };
    const attachment = runtime.exec({ argv: ["sleep", "9"], stdin: true });
    await attachment[Symbol.asyncIterator]().next();
    const writing = attachment.writeStdin(new Uint8Array(1_000_000));
    await attachment.signal(2);
    expect(signals).toEqual([expect.objectContaining({ pid: 7, signal: 2, group: true })]);
    link.close();
    await expect(writing).rejects.toMatchObject({ code: "unavailable" });
  });

  it.each<[string, ProcessStart, string]>([
    ["no command", {}, "invalid_input"],
    ["two commands", { argv: ["a"], shellCommand: "a" }, "invalid_input"],
    ["an empty argv", { argv: [] }, "invalid_input"],
    ["an empty shell command", { shellCommand: "" }, "invalid_input"],
    ["NUL in argv", { argv: ["a\0b"] }, "invalid_input"],
    ["a lone surrogate", { argv: ["\ud800"] }, "invalid_input"],
    ["a command of more than 1 MiB", { shellCommand: "x".repeat(1_048_577) }, "invalid_input"],
    ["NUL in cwd", { argv: ["a"], cwd: "/\0" }, "invalid_input"],
    ["a name of a variable with =", { argv: ["a"], env: { "a=b": "" } }, "invalid_input"],
    ["an empty name of a variable", { argv: ["a"], env: { "": "x" } }, "invalid_input"],
    ["NUL in a variable", { argv: ["a"], env: { A: "\0" } }, "invalid_input"],
    ["too large an environment", { argv: ["a"], env: { A: "x".repeat(131_072) } }, "invalid_input"],
    ["a negative time-out", { argv: ["a"], timeoutMs: -1 }, "invalid_input"],
    ["no number as time-out", { argv: ["a"], timeoutMs: Number.NaN }, "invalid_input"],
    ["a time-out that nobody counts", { argv: ["a"], timeoutMs: 2 ** 31 * 1000 + 1 }, "timeout_too_large"],
    ["a terminal of a negative size", { argv: ["a"], pty: { cols: -1, rows: 2 } }, "invalid_input"],
    ["a terminal of a huge size", { argv: ["a"], pty: { cols: 80, rows: 65_536 } }, "invalid_input"],
  ])("refuses %s before anything is sent", async (_, start, code) => {
    expect(() => runtime.exec(start)).toThrow(expect.objectContaining({ code }));
    await expect(runtime.start(start)).rejects.toMatchObject({ code });
    await nextTurn();
    expect(fake.sent(frameType.open)).toHaveLength(0);
    expect(begun).toBe(0);
  });

  it("does not believe an offset that is no safe number", async () => {
    fake.handler = (call) =>
      call.send(event({ case: "output", value: { stream: 1, offset: 2n ** 60n, data: Buffer.from("x") } as unknown as guest.Output }));
    await expect(all(runtime.exec({ argv: ["a"] }))).rejects.toMatchObject({ code: "unavailable" });
  });
});

describe("start", () => {
  it("answers with the pid of the detached process", async () => {
    fake.handler = async (call) => {
      expect(fromBinary(guest.ExecInputSchema, call.first).msg.value).toMatchObject({ detached: true });
      await call.send(event({ case: "started", value: { pid: 9, startedUnixMs: 4n } as guest.ProcessStarted }));
      await call.end();
    };
    await expect(runtime.start({ argv: ["server"] })).resolves.toEqual({ pid: 9, startedUnixMs: 4 });
  });

  it("fails with exec_failed when the program cannot be started", async () => {
    fake.handler = async (call) => {
      await call.send(event({ case: "exit", value: { exitCode: 127, error: "no such file" } as guest.ProcessExit }));
      await call.end();
    };
    await expect(runtime.start({ argv: ["nothing"] })).rejects.toMatchObject({ code: "exec_failed", detail: { cause: "no such file" } });
  });
});

describe("files", () => {
  const fileAnswer =
    (info: MessageInitShape<typeof pb.FileInfoSchema>, ...data: Uint8Array[]) =>
    async (call: FakeCall) => {
      const infoMessage = create(guest.ReadFileOutputSchema, { msg: { case: "info", value: create(pb.FileInfoSchema, info) } });
      await call.send(toBinary(guest.ReadFileOutputSchema, infoMessage));
      for (const value of data) {
        await call.send(toBinary(guest.ReadFileOutputSchema, create(guest.ReadFileOutputSchema, { msg: { case: "data", value } })));
      }
      await call.end();
    };

  it("reads a range, with the info first", async () => {
    fake.handler = fileAnswer({ size: 10n }, Buffer.from("ab"), Buffer.from("cd"));
    const { info, data } = await runtime.readFile("/a", { offset: 2, length: 4 });
    expect(info.size).toBe(10n);
    expect(Buffer.concat(await all(data)).toString()).toBe("abcd");
    expect(fromBinary(guest.ReadFileRangeSchema, fake.calls.get(2)?.first as Uint8Array)).toMatchObject({
      path: "/a",
      offset: 2n,
      length: 4n,
    });
  });

  it("does not pass on more than was asked for", async () => {
    fake.handler = fileAnswer({ size: 10n }, Buffer.from("abcdef"));
    const { data } = await runtime.readFile("/a", { offset: 0, length: 4 });
    await expect(all(data)).rejects.toMatchObject({ code: "unavailable" });
  });

  it("fails with the guest's reason", async () => {
    fake.handler = (call) => call.end("not_found", "no such file: /a");
    await expect(runtime.readFile("/a", { offset: 0, length: 0 })).rejects.toMatchObject({ code: "not_found" });
    expect(active).toBe(0);
  });

  it("writes in pieces that fit into frames and answers with the count", async () => {
    let received = 0;
    fake.handler = async (call) => {
      expect(fromBinary(pb.WriteFileRequestSchema, call.first).msg).toMatchObject({ case: "open", value: { path: "/a", mode: 0o600 } });
      for (let message = await call.receive(); message; message = await call.receive()) {
        expect(message.byteLength).toBeLessThanOrEqual(65_536);
        received += (fromBinary(pb.WriteFileRequestSchema, message).msg.value as Uint8Array).byteLength;
      }
      await call.send(toBinary(pb.WriteFileResultSchema, create(pb.WriteFileResultSchema, { bytesWritten: BigInt(received) })));
      await call.end();
    };
    await expect(runtime.writeFile("/a", 0o600, source(Buffer.alloc(500_000), Buffer.alloc(0), Buffer.alloc(7)))).resolves.toBe(500_007);
    expect(active).toBe(0);
  });

  it("resets the write when its source fails, and fails with that", async () => {
    fake.handler = async () => undefined;
    // biome-ignore lint/correctness/useYield: it fails before its first part
    async function* failing(): AsyncGenerator<Uint8Array> {
      throw new Error("the client went away");
    }
    await expect(runtime.writeFile("/a", 0o600, failing())).rejects.toThrow("the client went away");
    await until(() => fake.sent(frameType.reset).length === 1);
  });

  it("stops taking from the source when the guest refuses the rest", async () => {
    fake.handler = async (call) => {
      await call.receive();
      await call.end("resource_exhausted", "no space left");
    };
    let taken = 0;
    let closed = false;
    async function* endless(): AsyncGenerator<Uint8Array> {
      try {
        for (;;) {
          taken += 1;
          yield Buffer.alloc(60_000);
        }
      } finally {
        closed = true;
      }
    }
    await expect(runtime.writeFile("/a", 0o600, endless())).rejects.toMatchObject({ code: "sandbox_exhausted" });
    expect(closed).toBe(true);
    expect(taken).toBeLessThan(100);
  });

  it.each(["", "a\0b", "x".repeat(4_097), "\udc00"])("refuses the path %j before anything is sent", async (bad) => {
    const attempts = [
      () => runtime.list(bad),
      () => runtime.stat(bad),
      () => runtime.mkdir(bad),
      () => runtime.remove(bad),
      () => runtime.rename("/a", bad),
      () => runtime.rename(bad, "/a"),
      () => runtime.setMode(bad, 0o644),
      () => runtime.makeSymlink("/a", bad),
      () => runtime.readLink(bad),
      () => runtime.readFile(bad, { offset: 0, length: 0 }),
      () => runtime.writeFile(bad, 0o644, source()),
      () => runtime.upload(bad, source()),
      () => runtime.watch(bad, false),
      () => runtime.archive(bad),
    ];
    for (const attempt of attempts) await expect((async () => attempt())()).rejects.toMatchObject({ code: "invalid_input" });
    expect(fake.sent(frameType.open)).toHaveLength(0);
  });
});

describe("everything else", () => {
  it.each<[string, () => unknown]>([
    ["port 0", () => runtime.tunnel(0)],
    ["port 65,536", () => runtime.tunnel(65_536)],
    ["pid 0", () => runtime.signalProcess(0, 9, false)],
    ["signal 65", () => runtime.signalProcess(5, 65, false)],
    ["a negative offset", () => runtime.attach(5, { stdoutFrom: -1, follow: true })],
    ["a mode of more than permission bits", () => runtime.setMode("/a", 0o10000)],
    ["a negative range", () => runtime.readFile("/a", { offset: -1, length: 0 })],
    ["half an interval", () => runtime.vitals(0.5)],
    ["a run_code time-out that nobody counts", () => runtime.runCode({ code: "1", language: "python", timeoutMs: 1e13 })],
  ])("refuses %s before anything is sent", async (_, attempt) => {
    await expect((async () => attempt())()).rejects.toMatchObject({ code: expect.stringMatching("invalid_input|timeout_too_large") });
    await nextTurn();
    expect(fake.sent(frameType.open)).toHaveLength(0);
  });

  it("is no activity when the link is closed", async () => {
    link.close();
    await expect(runtime.stat("/a")).rejects.toMatchObject({ code: "unavailable" });
    expect(() => runtime.exec({ argv: ["a"] })).toThrow(expect.objectContaining({ code: "unavailable" }));
    expect(active).toBe(0);
  });
});
