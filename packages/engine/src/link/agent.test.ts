/** The link against the real agent behind a real shim. The agent runs as a plain process here: what needs a sandbox is tested in `test/`. */

import { spawn } from "node:child_process";
import { createHash, type Hash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { ProcessEvent, Runtime } from "../actions.ts";
import { createRuntime } from "../runtime.ts";
import { LinkClient } from "./client.ts";
import { connectShim, type ShimConnection } from "./transport.ts";

const triple = `${process.arch === "arm64" ? "aarch64" : "x86_64"}-unknown-linux-gnu`;
const guestBinary = process.env.MITOS_GUEST ?? path.resolve(import.meta.dirname, "../../../../guest/target", triple, "release/mitos-guest");

let folder: string;
let workspace: string;
let shim: ShimConnection;
let link: LinkClient;
let runtime: Runtime;
let agentPid: number;
const active = { calls: 0 };

beforeAll(async () => {
  if (!existsSync(guestBinary)) throw new Error(`${guestBinary} has not been built: run npm run setup, or set MITOS_GUEST`);
  folder = mkdtempSync(path.join(tmpdir(), "mitos-agent-test-"));
  const root = path.join(folder, "root");
  workspace = path.join(root, "workspace");
  for (const name of ["run", "etc", "workspace"]) mkdirSync(path.join(root, name), { recursive: true });
  mkdirSync(path.join(folder, "shim"), { mode: 0o700 });
  const starting = spawn(guestBinary, ["shim", "--dir", path.join(folder, "shim")], { stdio: ["ignore", "pipe", "inherit"] });
  const [ready] = await Promise.race([once(starting.stdout, "data"), once(starting, "close")]);
  if (String(ready) !== "ready\n") throw new Error(`${guestBinary} shim ended instead of being ready: ${ready}`);
  shim = await connectShim(path.join(folder, "shim", "shim.sock"));
  const run = shim.request("run", {
    argv: [guestBinary, "agent"],
    stdio: "link",
    env: { MITOS_AGENT_TEST_ROOT: root, PATH: process.env.PATH ?? "/usr/bin:/bin" },
    timeout_ms: 300_000,
  });
  run.catch(() => undefined); // it is answered when the agent ends, or not at all
  link = new LinkClient(shim.transport);
  const adopted = await link.adopt({
    sandboxId: "sandbox-1",
    generation: 3n,
    env: { GREETING: "hello" },
    entropy: randomBytes(32),
    wallClockUnixNanos: BigInt(Date.now()) * 1_000_000n,
    hostName: "sandbox-1",
    machineId: randomBytes(16).toString("hex"),
  });
  expect(adopted.generation).toBe(3n);
  runtime = createRuntime(link, {
    onActivity: () => {
      active.calls += 1;
      return () => {
        active.calls -= 1;
      };
    },
  });
  agentPid = Number((await text(runtime.exec({ shellCommand: "echo $PPID" }))).trim());
  await shim.request("watch", { pid: agentPid });
});

afterAll(async () => {
  if (agentPid) {
    // The link may be writing when the shim goes, and a failed write takes an unread answer with it: what counts is the agent's end.
    await shim.request("end", { reason: "terminated" }).catch(() => undefined);
    await until(() => !existsSync(`/proc/${agentPid}`));
  }
  shim?.close();
  if (folder) rmSync(folder, { recursive: true, force: true });
});

async function text(events: AsyncIterable<ProcessEvent>): Promise<string> {
  const parts: Uint8Array[] = [];
  for await (const event of events) if (event.kind === "output") parts.push(event.data);
  return Buffer.concat(parts).toString();
}

/** Follows a stream that must have neither gaps nor repetitions. */
async function hashOf(events: AsyncIterable<ProcessEvent>, onBytes?: (total: number) => void): Promise<{ bytes: number; sha256: string }> {
  const hash = createHash("sha256");
  let bytes = 0;
  for await (const event of events) {
    expect(event.kind).not.toBe("gap");
    if (event.kind !== "output") continue;
    expect(event.offset).toBe(bytes);
    hash.update(event.data);
    bytes += event.data.byteLength;
    onBytes?.(bytes);
  }
  return { bytes, sha256: hash.digest("hex") };
}

async function until(condition: () => boolean, timeoutMs = 10_000): Promise<void> {
  const end = Date.now() + timeoutMs;
  while (!condition() && Date.now() < end) await sleep(10);
  expect(condition()).toBe(true);
}

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

async function* chunksOf(bytes: Uint8Array, size: number, hash?: Hash): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.byteLength; at += size) {
    const chunk = bytes.subarray(at, at + size);
    hash?.update(chunk);
    yield chunk;
  }
}

describe("exec", () => {
  it("runs a shell command with the sandbox's environment and reports its exit code", async () => {
    const events: ProcessEvent[] = [];
    for await (const event of runtime.exec({ shellCommand: 'echo "$GREETING $NAME"; echo bad >&2; exit 7', env: { NAME: "you" } })) {
      events.push(event);
    }
    const output = (stream: string) =>
      events.flatMap((event) => (event.kind === "output" && event.stream === stream ? [Buffer.from(event.data).toString()] : [])).join("");
    expect(output("stdout")).toBe("hello you\n");
    expect(output("stderr")).toBe("bad\n");
    expect(events[0]).toMatchObject({ kind: "started" });
    expect(events.at(-1)).toMatchObject({ kind: "exit", exitCode: 7, signal: 0, timedOut: false, error: "" });
    await until(() => active.calls === 0);
  });

  it("carries 5 MB of input through cat and back", async () => {
    const input = randomBytes(5_000_000);
    const attachment = runtime.exec({ argv: ["cat"], stdin: true });
    const writing = (async () => {
      for await (const chunk of chunksOf(input, 100_000)) await attachment.writeStdin(chunk);
      await attachment.closeStdin();
    })();
    expect(await hashOf(attachment)).toEqual({ bytes: input.byteLength, sha256: sha256(input) });
    await writing;
  });

  it("kills the process group when the iteration is left early", async () => {
    let pid = 0;
    for await (const event of runtime.exec({ shellCommand: "sleep 1000 & sleep 1000" })) {
      if (event.kind === "started") pid = event.pid;
      break;
    }
    expect(pid).toBeGreaterThan(1);
    await until(() => !existsSync(`/proc/${pid}`));
  });

  it("ends a program at its time-out with 124", async () => {
    const events: ProcessEvent[] = [];
    for await (const event of runtime.exec({ argv: ["sleep", "1000"], timeoutMs: 100 })) events.push(event);
    expect(events.at(-1)).toMatchObject({ kind: "exit", exitCode: 124, timedOut: true });
  });

  it("runs a terminal that is resized and takes input", async () => {
    const attachment = runtime.exec({ argv: ["/bin/sh"], stdin: true, pty: { term: "xterm", cols: 80, rows: 24 } });
    let screen = "";
    const watching = (async () => {
      for await (const event of attachment) if (event.kind === "output") screen += Buffer.from(event.data).toString();
    })();
    await attachment.writeStdin(Buffer.from("stty size; echo ready-$((40 + 2))\n"));
    await until(() => screen.includes("ready-42"));
    expect(screen).toContain("24 80");
    await attachment.resize(132, 50);
    await attachment.writeStdin(Buffer.from("stty size; exit\n"));
    await watching;
    expect(screen).toContain("50 132");
  });

  it("signals a program that does not read its input", async () => {
    const attachment = runtime.exec({ argv: ["sleep", "1000"], stdin: true });
    const events = attachment[Symbol.asyncIterator]();
    await events.next();
    const writing = attachment.writeStdin(new Uint8Array(2_000_000)).catch((error) => error);
    await attachment.signal(15);
    let last: ProcessEvent | undefined;
    for (let result = await events.next(); !result.done; result = await events.next()) last = result.value;
    expect(last).toMatchObject({ kind: "exit", signal: 15 });
    expect(await writing).toMatchObject({ code: "canceled" });
  });
});

describe("processes that run on", () => {
  it("are listed, and their output is read again from any offset", async () => {
    const { pid } = await runtime.start({ shellCommand: "printf 0123456789; exec sleep 1000" });
    await until(() => existsSync(`/proc/${pid}`));
    const read = async (stdoutFrom: number) => text(runtime.attach(pid, { stdoutFrom, follow: false }));
    for (let tries = 0; tries < 100 && (await read(0)) !== "0123456789"; tries += 1) await sleep(20);
    expect(await read(0)).toBe("0123456789");
    expect(await read(4)).toBe("456789");
    expect(await runtime.listProcesses()).toContainEqual(expect.objectContaining({ pid, state: "running", exit: null, stdoutBytes: 10 }));
    const following = text(runtime.attach(pid, { stdoutFrom: 8, follow: true }));
    await runtime.signalProcess(pid, 9, true);
    expect(await following).toBe("89");
    expect(await runtime.listProcesses()).toContainEqual(
      expect.objectContaining({ pid, state: "exited", exit: expect.objectContaining({ signal: 9 }) }),
    );
  });

  it("are refused with not_found when they do not exist", async () => {
    await expect(text(runtime.attach(2_000_000, { follow: true }))).rejects.toMatchObject({ code: "not_found" });
  });

  it("take input that is written later", async () => {
    const { pid } = await runtime.start({ argv: ["cat"], stdin: true });
    await runtime.writeStdin(pid, Buffer.from("late"), true);
    expect(await text(runtime.attach(pid, { follow: true }))).toBe("late");
  });
});

describe("files", () => {
  it("carry 20 MB there and back, and parts of it", async () => {
    const content = randomBytes(20_000_000);
    const file = path.join(workspace, "big");
    expect(await runtime.writeFile(file, 0o640, chunksOf(content, 333_333))).toBe(content.byteLength);
    const { info, data } = await runtime.readFile(file, { offset: 0, length: 0 });
    expect(info.size).toBe(20_000_000n);
    expect(info.mode & 0o777).toBe(0o640);
    const hash = createHash("sha256");
    for await (const part of data) hash.update(part);
    expect(hash.digest("hex")).toBe(sha256(content));
    const range = await runtime.readFile(file, { offset: 1_000_001, length: 70_000 });
    const parts: Uint8Array[] = [];
    for await (const part of range.data) parts.push(part);
    expect(Buffer.concat(parts).equals(content.subarray(1_000_001, 1_070_001))).toBe(true);
  });

  it("fail with the code for their cause", async () => {
    await expect(runtime.stat(path.join(workspace, "nothing"))).rejects.toMatchObject({ code: "not_found", entry: { status: 404 } });
    await expect(runtime.readFile(path.join(workspace, "nothing"), { offset: 0, length: 0 })).rejects.toMatchObject({ code: "not_found" });
    await runtime.makeSymlink("/somewhere", path.join(workspace, "link"));
    expect(await runtime.readLink(path.join(workspace, "link"))).toBe("/somewhere");
    await expect(runtime.makeSymlink("/somewhere", path.join(workspace, "link"))).rejects.toMatchObject({ entry: { status: 409 } });
  });

  it("leave nothing behind when their source fails", async () => {
    const before = (await runtime.list(workspace)).entries.length;
    const half = path.join(workspace, "half");
    async function* failing(): AsyncGenerator<Uint8Array> {
      yield randomBytes(2_000_000);
      await until(() => existsSync(half));
      throw new Error("gone");
    }
    await expect(runtime.writeFile(half, 0o644, failing())).rejects.toThrow("gone");
    await until(() => !existsSync(half));
    expect((await runtime.list(workspace)).entries.length).toBe(before);
  });
});

describe("tunnels", () => {
  it("carry bytes both ways with half-close", async () => {
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      const hash = createHash("sha256");
      socket.on("data", (chunk) => hash.update(chunk));
      socket.on("end", () => socket.end(hash.digest("hex")));
      socket.on("error", () => undefined);
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    const bytes = randomBytes(3_000_000);
    const tunnel = await runtime.tunnel(port);
    await tunnel.send(bytes);
    await tunnel.end();
    const parts: Uint8Array[] = [];
    for await (const part of tunnel) parts.push(part);
    expect(Buffer.concat(parts).toString()).toBe(sha256(bytes));
    server.close();
    await once(server, "close");
    await expect(runtime.tunnel(port)).rejects.toMatchObject({ name: "MitosError" });
    await until(() => link.openChannels === 0);
  });
});

describe("a quiet moment", () => {
  it("leaves 50 MB of output and 10 MB of input byte for byte as they are", async () => {
    const output = randomBytes(50_000_000);
    const input = randomBytes(10_000_000);
    writeFileSync(path.join(workspace, "source"), output);
    let received = 0;
    const down = hashOf(runtime.exec({ argv: ["cat", path.join(workspace, "source")] }), (total) => {
      received = total;
    });
    const consumer = runtime.exec({ argv: ["sha256sum"], stdin: true });
    const answered = text(consumer);
    const up = (async () => {
      for await (const chunk of chunksOf(input, 250_000)) await consumer.writeStdin(chunk);
      await consumer.closeStdin();
    })();
    let quietMoments = 0;
    while (received < output.byteLength) {
      const before = received;
      const quiet = await link.quiesce();
      const standing = received;
      await sleep(20);
      // What had arrived before QUIESCED may still be handed on; the stream itself stands still.
      expect(received - standing).toBeLessThanOrEqual(262_144);
      await quiet.resume();
      quietMoments += 1;
      await until(() => received > before || received === output.byteLength);
    }
    expect(quietMoments).toBeGreaterThan(3);
    expect(await down).toEqual({ bytes: output.byteLength, sha256: sha256(output) });
    await up;
    expect(await answered).toContain(sha256(input));
  });

  it("in which the server dies leaves every process to the next one", async () => {
    const { pid } = await runtime.start({ shellCommand: "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done; exec sleep 1000" });
    const lost = text(runtime.attach(pid, { follow: true })).catch((error) => error);
    await link.quiesce();
    const next = await connectShim(path.join(folder, "shim", "shim.sock"));
    expect(await lost).toMatchObject({ code: "unavailable" });
    shim = next;
    link = new LinkClient(next.transport);
    await link.hello();
    runtime = createRuntime(link, { onActivity: () => () => undefined });
    const following = text(runtime.attach(pid, { follow: true }));
    while ((await text(runtime.attach(pid, { follow: false }))) !== "1\n2\n3\n4\n5\n") await sleep(20);
    await runtime.signalProcess(pid, 9, true);
    expect(await following).toBe("1\n2\n3\n4\n5\n");
  });
});

describe("a slow reader", () => {
  it("stops the program, loses nothing, and holds up nobody else", async () => {
    const events = runtime.exec({ shellCommand: "head -c 20000000 /dev/zero | tr '\\0' x" })[Symbol.asyncIterator]();
    await events.next();
    await sleep(300);
    expect(link.heldBytes).toBeLessThan(1_000_000);
    expect(await text(runtime.exec({ shellCommand: "echo others" }))).toBe("others\n");
    expect(link.heldBytes).toBeLessThan(1_000_000);
    expect((await hashOf({ [Symbol.asyncIterator]: () => events })).bytes).toBe(20_000_000);
    expect(link.heldBytes).toBe(0);
  });
});
