import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import {
  connect,
  currentSandbox,
  fork,
  GuestError,
  GuestUnavailableError,
  identity,
  isOnMitos,
  socketPath,
  spawnSubagent,
} from "./guest.ts";

describe("outside a sandbox", () => {
  beforeEach(() => vi.stubEnv("MITOS_SOCKET", ""));
  afterEach(() => vi.unstubAllEnvs());

  it("everything that needs one says that there is none", async () => {
    expect(() => socketPath()).toThrow(GuestUnavailableError);
    expect(() => connect()).toThrow(GuestUnavailableError);
    await expect(identity()).rejects.toThrow(GuestUnavailableError);
    await expect(fork()).rejects.toMatchObject({ name: "GuestUnavailableError", code: "guest_unavailable", remediation: /inside/ });
    await expect(connect("/does/not/exist.sock").info()).rejects.toThrow(/nothing answers at \/does\/not\/exist\.sock \(ENOENT\)/);
  });

  it("sub-agents stay where they are, without an error", async () => {
    expect([isOnMitos(), await currentSandbox()]).toEqual([false, null]);
    expect(await spawnSubagent(3)).toEqual({
      onMitos: false,
      children: [],
      first: undefined,
      reason: expect.stringContaining("MITOS_SOCKET"),
    });
  });
});

/** An agent that answers each request with what the test says, and records what it was asked. */
async function agent(answer: (socket: Socket) => void) {
  const folder = mkdtempSync(path.join(tmpdir(), "mitos-guest-"));
  const asked: unknown[] = [];
  const server = createServer((socket) => {
    socket.on("error", () => undefined);
    socket.once("data", (line) => {
      asked.push(JSON.parse(String(line)));
      answer(socket);
    });
  });
  server.listen(path.join(folder, "s"));
  await once(server, "listening");
  return {
    client: connect(path.join(folder, "s")),
    asked,
    async [Symbol.asyncDispose]() {
      server.close();
      await once(server, "close");
      rmSync(folder, { recursive: true });
    },
  };
}

const says = (answer: unknown) => (socket: Socket) => void socket.end(`${JSON.stringify(answer)}\n`);

describe("the agent's socket", () => {
  it("is asked one line at a time", async () => {
    await using it = await agent(says({ ok: true, fork: { children: ["a", "b"] } }));
    expect(await it.client.fork(2, { label: "x" })).toEqual(["a", "b"]);
    expect(await it.client.fork()).toEqual(["a", "b"]);
    expect(it.asked).toEqual([
      { type: "fork", fork: { n: 2, label: "x" } },
      { type: "fork", fork: { n: 1, label: "" } },
    ]);
  });

  it("tells who and how much, with what is missing left out", async () => {
    const wire = {
      identity: { sandboxId: "sb-1", templateId: "base", parentId: "" },
      budget: { maxForks: 3, forksUsed: 1 },
      generation: 4,
    };
    await using it = await agent(says({ ok: true, info: wire }));
    expect(await it.client.info()).toEqual({
      identity: { sandboxId: "sb-1", templateId: "base" },
      budget: { maxForks: 3, maxCheckpoints: 0, forksUsed: 1 },
    });
    expect((await it.client.identity()).sandboxId).toBe("sb-1");
  });

  it("is heard when its answer comes in pieces", async () => {
    await using it = await agent((socket) => {
      socket.write('{"ok":true,"fork":{"chil');
      setImmediate(() => socket.write('dren":["ä"]}}\n'));
    });
    expect(await it.client.fork()).toEqual(["ä"]);
  });

  it.each([
    ["a refusal", says({ ok: false, error: "no room", code: "quota_exceeded" }), "quota_exceeded", "no room"],
    ["a refusal of an agent that knows no codes", says({ ok: false, error: "not enabled" }), "refused", "not enabled"],
    ["a refusal without a reason", says({}), "refused", "without a reason"],
    ["an answer that is no object", says([]), "invalid_response", "one JSON object"],
    ["an answer that is no JSON", (socket: Socket) => void socket.end("hello\n"), "invalid_response", "one JSON object"],
    ["an answer without an end", (socket: Socket) => void socket.write("x".repeat(1100 * 1024)), "invalid_response", "more than 1 MiB"],
    ["no answer", (socket: Socket) => void socket.end(), "unavailable", "hung up"],
  ])("%s is an error with a code and a remedy", async (_, answer, code, message) => {
    await using it = await agent(answer);
    const error = await it.client.fork().catch((error: unknown) => error);
    expect(error).toBeInstanceOf(GuestError);
    expect(error).not.toBeInstanceOf(GuestUnavailableError);
    expect(error).toMatchObject({ code, message: expect.stringContaining(message), remediation: expect.stringMatching(/./) });
  });

  it("is not asked for what cannot be", async () => {
    await using it = await agent(says({ ok: true, fork: { children: [] } }));
    for (const n of [0, -1, 1.5, Number.NaN, 101]) await expect(it.client.fork(n)).rejects.toMatchObject({ code: "invalid_input" });
    expect(it.asked).toEqual([]);
  });
});
