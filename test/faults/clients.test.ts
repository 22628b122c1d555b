/** Clients that misbehave towards a server with real sandboxes: bounded memory, bounded time, others unaffected. */

import { once } from "node:events";
import { connect, type Socket } from "node:net";
import type { Sandbox } from "@mitos/sdk";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { envelope, get } from "../../packages/server/src/testing/harness.ts";
import { heldBytes } from "../support/held-memory.ts";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { until } from "../support/until.ts";

const MiB = 1024 * 1024;

let live: LiveServer;
let sandbox: Sandbox;
const open = new Set<Socket>();
beforeAll(async () => {
  live = await startLiveServer();
  sandbox = await live.create();
});
afterEach(async () => {
  for (const socket of open) socket.destroy();
  open.clear();
  expect((await sandbox.exec("echo alive")).stdout).toBe("alive\n");
});
afterAll(() => live.close());

function dial(): Socket {
  const { hostname, port } = new URL(live.url);
  const socket = connect(Number(port), hostname);
  open.add(socket);
  socket.on("error", () => {});
  socket.on("close", () => open.delete(socket));
  return socket;
}

function ask(socket: Socket, method: string, path: string, body: string | Buffer, headers: string[] = []): void {
  const head = [`${method} ${path} HTTP/1.1`, "Host: 127.0.0.1", `Content-Length: ${Buffer.byteLength(body)}`, ...headers];
  socket.write(`${head.join("\r\n")}\r\n\r\n`);
  socket.write(body);
}

/** One streaming request for the endless output of a program that is found by `mark`. */
async function askForOutput(socket: Socket, door: "ExecStream" | "process output", mark: string): Promise<void> {
  const command = `exec -a ${mark} yes ${mark}`;
  if (door === "ExecStream") {
    const headers = ["Content-Type: application/connect+json", `X-Sandbox-Id: ${sandbox.id}`];
    ask(socket, "POST", "/sandbox.v1.Sandbox/ExecStream", envelope({ command: `exec bash -c '${command}'` }), headers);
  } else {
    const pid = await sandbox.execBackground(["bash", "-c", command]).started;
    ask(socket, "GET", `/v1/sandboxes/${sandbox.id}/processes/${pid}/output?follow=true`, "");
  }
}

const runs = async (mark: string) => (await sandbox.exec(["pgrep", "-f", mark])).exitCode === 0;

describe("a client that never reads", () => {
  it("stops the program that writes for ever, and costs the server no memory", async () => {
    const socket = dial();
    await askForOutput(socket, "ExecStream", "endless-1");
    await once(socket, "readable"); // and takes nothing of it
    const before = heldBytes();
    const cpu = async () => (await live.engine.meter(sandbox.id as never)).cpuMs;
    let last = await cpu();
    await until("the program stands still", async () => {
      await new Promise((resolve) => setTimeout(resolve, 500));
      const now = await cpu();
      const still = now - last < 250;
      last = now;
      return still;
    });
    expect(heldBytes() - before).toBeLessThan(64 * MiB);
    expect((await sandbox.exec("echo meanwhile")).stdout).toBe("meanwhile\n");
    socket.destroy();
    await until("the program has ended", async () => !(await runs("endless-1")));
  });
});

describe("a client that leaves", () => {
  it("in the middle of a stream takes its program with it", async () => {
    const socket = dial();
    await askForOutput(socket, "ExecStream", "endless-2");
    await once(socket, "data");
    socket.resetAndDestroy();
    await until("the program has ended", async () => !(await runs("endless-2")));
  });

  it("in the middle of a process's output leaves the process as it is", async () => {
    const socket = dial();
    await askForOutput(socket, "process output", "endless-3");
    await once(socket, "data");
    socket.resetAndDestroy();
    expect(await runs("endless-3")).toBe(true);
    await sandbox.exec(["pkill", "-9", "-f", "endless-3"]);
  });
});

describe("a thousand connections", () => {
  it("that are open at once, idle, half sent or half closed, do not keep others from being served", async () => {
    const before = heldBytes();
    const sockets = Array.from({ length: 1_000 }, () => dial().resume());
    await Promise.all(sockets.map((socket) => once(socket, "connect")));
    sockets.forEach((socket, index) => {
      if (index % 3 === 0) return; // says nothing
      socket.write("POST /v1/fork HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n");
      if (index % 3 === 1) socket.end(); // half open
    });
    expect((await get(live, "/v1/health")).status).toBe(200);
    expect((await sandbox.exec("echo served")).stdout).toBe("served\n");
    expect(heldBytes() - before).toBeLessThan(128 * MiB);
    await until("the silent ones are cut", () => open.size <= 400, 40_000);
    await until("the slow ones are cut", () => open.size === 0, 60_000);
  });
});
