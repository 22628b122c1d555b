/**
 * The guest is hostile: here a program in the agent's place, behind the real shim, does what no agent does. Its own sandbox suffers, with a
 * typed reason and within bounded time and memory; the server and all others do not.
 */

import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import type { Engine, Log } from "@mitos/engine";
import { catalogue } from "@mitos/protocol";
import { create, type Sandbox } from "@mitos/sdk";
import { type RunningServer, startServer } from "@mitos/server";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { openEngineWith } from "../../packages/engine/src/engine.ts";
import { connectGuest } from "../../packages/engine/src/link-guest.ts";
import { heldBytes } from "../support/held-memory.ts";
import { noTraces, Tracker } from "../support/traces.ts";
import { until } from "../support/until.ts";
import { HostileDriver } from "./hostile-driver.ts";

const MiB = 1024 * 1024;
/** A message of a guest may be 64 MiB, in a buffer that doubles. */
const heldGrowthMax = 256 * MiB;
/** For hostile agents only: an honest one may be slow on a busy machine. */
const waits = { handshakeTimeoutMs: 2_000, silenceMs: 1_000, quiesceTimeoutMs: 500 };
/** What the server says, and what the client calls an exec whose last message tells of an error. */
const knownCodes = [...Object.keys(catalogue), "exec_stream_error"];

let dataDir: string;
let tracker: Tracker;
let driver: HostileDriver;
let engine: Engine;
let server: RunningServer;
/** Behaves, and is well whatever the others do. */
let neighbour: Sandbox;
const logged: string[] = [];
const outOfBand: unknown[] = [];
const note = (error: unknown): void => void outOfBand.push(error);

beforeAll(async () => {
  dataDir = mkdtempSync(path.join(os.tmpdir(), "mitos-test-"));
  tracker = new Tracker(dataDir);
  driver = new HostileDriver(dataDir);
  const write = (fields: object, message: string) => logged.push(`${message} ${JSON.stringify(fields)}`);
  const log: Log = { debug: write, info: write, warn: write, error: (fields, message) => write({ ...fields, isError: true }, message) };
  engine = await openEngineWith(
    // None wait: what a machine's agent does is chosen for each create.
    { dataDir, engine: "auto", poolSize: 0, log },
    {
      pickDriver: async () => driver,
      connectGuest: (machine, hooks) => connectGuest(machine, hooks, driver.behaviour === "" ? {} : waits),
    },
  );
  server = await startServer({ engine, host: "127.0.0.1", port: 0, log, version: "test" });
  neighbour = await make("");
  process.on("unhandledRejection", note);
});

afterAll(async () => {
  process.off("unhandledRejection", note);
  await server.close();
  await engine.close({ sandboxes: "end" });
  rmSync(dataDir, { recursive: true, force: true });
  expect(tracker.find()).toEqual(noTraces);
  expect(outOfBand).toEqual([]);
});

let heldBefore: number;
beforeEach(() => {
  logged.length = 0;
  heldBefore = heldBytes();
});
afterEach(async () => {
  expect(heldBytes() - heldBefore).toBeLessThan(heldGrowthMax);
  expect((await neighbour.exec("x")).exitCode).toBe(0);
  for (const { id, state } of engine.list()) if (id !== neighbour.id && state !== "ended") await engine.terminate(id);
  await until("nothing of the hostile machines is left", () => driver.machines.size === 1);
  expect(logged.filter((line) => line.includes("isError"))).toEqual([]);
  expect(logged.filter((line) => line.length > 20_000)).toEqual([]);
});

function make(behaviour: string): Promise<Sandbox> {
  driver.behaviour = behaviour;
  return create({ baseUrl: server.url, template: "base" });
}

/** What a call ended with: fails when it succeeds, when it hangs, or when its reason is none that is known or holds control characters. */
async function refusal(call: Promise<unknown>): Promise<Error & { code: string }> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error("the call has not ended within 20 s")), 20_000);
  const error = await Promise.race([call, late]).then(
    (value) => expect.fail(`it succeeded: ${JSON.stringify(value)?.slice(0, 200)}`),
    (reason: unknown) => reason,
  );
  clearTimeout(timer);
  const { code, message } = error as Error & { code: string };
  expect(knownCodes, message).toContain(code);
  expect(code, message).not.toBe("internal");
  expectPrintable(message);
  return error as Error & { code: string };
}

function expectPrintable(text: string): void {
  expect(text.length).toBeLessThan(8_192);
  expect(text).not.toMatch(/[\p{Cc}]/u);
}

const recordOf = ({ id }: Sandbox) => engine.list().find((one) => one.id === id);

describe("an agent that spoils its own start makes no sandbox", () => {
  it.each([
    ["never answers HELLO", "unavailable"],
    ["answers HELLO with noise", "unavailable"],
    ["answers HELLO for another session", "unavailable"],
    ["speaks another protocol", "snapshot_incompatible"],
    ["never answers ADOPT", "unavailable"],
    ["answers ADOPT with noise", "unavailable"],
    ["refuses to be adopted", "unavailable"],
  ])("when it %s", async (behaviour, code) => {
    expect(await refusal(make(behaviour))).toMatchObject({ code });
    expect(engine.list().filter(({ id, state }) => id !== neighbour.id && state !== "ended" && state !== "failed")).toEqual([]);
  });
});

describe("an agent that breaks a rule of the link loses its sandbox, which says so", () => {
  it.each([
    "sends more than its credit",
    "never ends a message",
    "opens a channel of the host's",
    "answers on a channel that was never opened",
    "gives credit without measure",
    "sends a REQUEST to the shim",
    "sends a REPLY of the shim",
    "sends an EVENT of the shim",
    "sends a length that is a lie",
    "sends an unknown frame",
    "sends noise",
    "sends HELLO_ACK again",
    "sends ADOPTED again",
    "sends QUIESCED unasked",
    "sends PONG unasked",
    "breaks off inside a frame",
    "closes its end",
    "ends itself",
    "never answers a call",
    "reads nothing and says nothing",
  ])("when it %s", async (behaviour) => {
    const sandbox = await make(behaviour);
    await refusal(sandbox.exec("x"));
    await until("the sandbox has failed", () => recordOf(sandbox)?.state === "failed");
    expectPrintable(String(recordOf(sandbox)?.endReason));
    expect(await refusal(sandbox.exec("x"))).toMatchObject({ code: "sandbox_not_running" });
  });

  it("when it answers ADOPT twice", async () => {
    const sandbox = await make("answers ADOPT twice").catch(() => undefined);
    if (sandbox) await until("the sandbox has failed", () => recordOf(sandbox)?.state === "failed");
  });

  it("when it answers PING with something else", async () => {
    const sandbox = await make("answers PING with something else");
    await engine
      .runtime(sandbox.id as never)
      .listProcesses()
      .catch(() => undefined);
    expect(recordOf(sandbox)?.state).toBe("running"); // nobody has asked it
  });

  it.each(["List", "Stat", "Mkdir", "ReadFile", "Processes", "Vitals", "RunCode", "ListProcesses"])(
    "when its answer to %s cannot be decoded",
    async (method) => {
      const sandbox = await make(`malformed:${method}`);
      expect(await refusal(ask(sandbox, method))).toMatchObject({ code: "unavailable" });
      await until("the sandbox has failed", () => recordOf(sandbox)?.state === "failed");
    },
  );

  it.each([
    ["twice", "Mkdir"],
    ["nothing", "Mkdir"],
    ["nothing", "Processes"],
  ])("when it answers %s to %s", async (behaviour, method) => {
    const sandbox = await make(`${behaviour}:${method}`);
    expect(await refusal(ask(sandbox, method))).toMatchObject({ code: "unavailable" });
    await until("the sandbox has failed", () => recordOf(sandbox)?.state === "failed");
  });
});

describe("an agent that keeps the rules and lies is not believed", () => {
  it.each([
    ["claims output beyond all numbers"],
    ["claims an unknown stream"],
    ["claims an absurd end"],
    ["fails with a text that no terminal should see"],
    ["fails with an unknown code"],
  ])("when it %s", async (behaviour) => {
    const sandbox = await make(behaviour);
    await refusal(sandbox.exec("x"));
    expect(recordOf(sandbox)?.state).toBe("running");
  });

  it.each(["ListProcesses", "Stat", "ReadFile", "WriteFile"])("when its answer to %s is absurd", async (method) => {
    const sandbox = await make(`absurd:${method}`);
    expect(await refusal(ask(sandbox, method))).toMatchObject({ code: "unavailable" });
    expect(recordOf(sandbox)?.state).toBe("running");
  });

  it("when it claims a negative pid, which is passed on and reaches no process of the host", async () => {
    const sandbox = await make("claims a negative pid");
    expect((await sandbox.exec("x")).exitCode).toBe(0);
  });
});

describe("an agent that asks for too much is told no, and its host has room for others", () => {
  it.each(["opens ten thousand channels", "asks for children in a storm", "asks for ways out in a storm"])(
    "when it %s",
    async (behaviour) => {
      const sandbox = await make(behaviour);
      await sandbox.exec("x").catch((error: { code: string }) => expect(knownCodes).toContain(error.code));
      expect((await neighbour.exec("x")).exitCode).toBe(0);
    },
  );

  it.each(["sends output for ever", "sends empty messages for ever"])(
    "when it %s, to a client that reads none of it and leaves",
    async (behaviour) => {
      const sandbox = await make(behaviour);
      const stop = new AbortController();
      const message = Buffer.from(JSON.stringify({ command: "x" }));
      const head = Buffer.alloc(5);
      head.writeUInt32BE(message.length, 1);
      const left = fetch(`${server.url}/sandbox.v1.Sandbox/ExecStream`, {
        method: "POST",
        headers: { "Content-Type": "application/connect+json", "X-Sandbox-Id": sandbox.id },
        body: Buffer.concat([head, message]),
        signal: stop.signal,
      }).catch(() => undefined);
      if (behaviour.includes("empty")) {
        const cpuMs = async () => (await engine.meter(sandbox.id as never)).cpuMs;
        const before = await cpuMs();
        await until("it floods", async () => (await cpuMs()) > before + 300);
      }
      for (let index = 0; index < 5; index += 1) expect((await neighbour.exec("x")).exitCode).toBe(0);
      expect(heldBytes() - heldBefore).toBeLessThan(heldGrowthMax);
      stop.abort();
      await left;
    },
  );

  it("when it begins a message on hundreds of channels and ends none", async () => {
    const sandbox = await make("starts messages on every channel and ends none");
    const stop = new AbortController();
    const calls = Array.from({ length: 400 }, async () => {
      for await (const _ of engine.runtime(sandbox.id as never).exec({ shellCommand: "x" }, stop.signal));
    });
    const settled = Promise.allSettled(calls);
    expect((await neighbour.exec("x")).exitCode).toBe(0);
    stop.abort();
    for (const result of await settled) expect(result).toMatchObject({ status: "rejected", reason: { code: expect.any(String) } });
  });

  it("when it reads nothing of what it is sent, however much that is", async () => {
    const sandbox = await make("stops reading files");
    const chunk = new Uint8Array(MiB);
    let taken = 0;
    const endless = (async function* () {
      for (;;) {
        taken += 1;
        yield chunk;
      }
    })();
    await refusal(engine.runtime(sandbox.id as never).writeFile("/f", 0o644, endless));
    expect(taken).toBeLessThan(64);
  });
});

describe("an agent that spoils a fork", () => {
  it.each(["never answers QUIESCE", "answers QUIESCE too late"])(
    "when it %s, the fork fails and its sandbox goes on",
    async (behaviour) => {
      const sandbox = await make(behaviour);
      expect(await refusal(sandbox.fork(1))).toMatchObject({ code: "unavailable" });
      expect((await sandbox.exec("x")).exitCode).toBe(0);
    },
  );

  it("when it goes on after QUIESCED, it has broken a rule", async () => {
    const sandbox = await make("goes on after QUIESCED");
    // Whether it succeeds depends on what comes first.
    await sandbox.fork(1).catch((error: { code: string }) => expect(knownCodes).toContain(error.code));
    await until("the sandbox has failed", () => recordOf(sandbox)?.state === "failed");
  });
});

/** Something that makes the server call the method. */
async function ask(sandbox: Sandbox, method: string): Promise<unknown> {
  const runtime = engine.runtime(sandbox.id as never);
  const stop = AbortSignal.timeout(20_000);
  switch (method) {
    case "List":
      return sandbox.files.list("/");
    case "Stat":
      return runtime.stat("/f");
    case "Mkdir":
      return runtime.mkdir("/f");
    case "ReadFile":
      return sandbox.files.read("/f");
    case "WriteFile":
      return sandbox.files.write("/f", "x");
    case "ListProcesses":
      return sandbox.processes();
    case "Processes":
      return runtime.processes();
    case "RunCode":
      return runtime.runCode({ code: "1", language: "python", timeoutMs: 1_000 }, stop)[Symbol.asyncIterator]().next();
    default:
      return runtime.vitals(1, stop)[Symbol.asyncIterator]().next();
  }
}
