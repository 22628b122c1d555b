import { readdirSync, readFileSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { type Engine, type KeyRequest, type Log, openEngine } from "@mitos/engine";
import { AgentRunError, create, NotFoundError, Sandbox, SandboxServer, UnauthorizedError } from "@mitos/sdk";
import { type RunningServer, startServer } from "@mitos/server";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { engineOptions } from "../support/engine-under-test.ts";
import { type LiveEngine, quiet, startLiveEngine } from "../support/live-server.ts";

// Two owners on one real server that asks for keys. What each route and RPC answers is in packages/server/src/auth.

const secret = "hunter2-9f31c0";
const auditLog = path.join(os.tmpdir(), `mitos-auth-audit-${process.pid}.log`);
const logged: string[] = [];
const write = (fields: object, message: string) =>
  logged.push(`${message} ${JSON.stringify(fields, (_key, value) => (value instanceof Error ? String(value.stack) : value))}`);
const log: Log = { debug: write, info: write, warn: write, error: write };

let live: LiveEngine;
let engine: Engine;
let server: RunningServer;
const keys: string[] = [];

function makeKey(owner: string, rest: Partial<KeyRequest> = {}): string {
  const { key } = engine.keys.create({
    name: owner,
    owner,
    organisation: "acme",
    scopes: ["read", "execute", "lifecycle"],
    ttlSeconds: 0,
    limits: {},
    ...rest,
  });
  keys.push(key);
  return key;
}

const listen = () => startServer({ engine, host: "127.0.0.1", port: 0, auth: true, auditLog, log, version: "test" });

let alice: string;
let bob: string;
let hers: Sandbox;

beforeAll(async () => {
  live = await startLiveEngine();
  engine = live.engine;
  server = await listen();
  alice = makeKey("alice");
  bob = makeKey("bob");
  hers = await create({ baseUrl: server.url, apiKey: alice, secrets: { TOKEN: secret } });
});
afterAll(async () => {
  await server.close();
  await live.close(engine);
  rmSync(auditLog, { force: true });
});

const asBob = (id: string) => create({ baseUrl: server.url, apiKey: bob, template: `live:${id}` });

describe("two owners on one server", () => {
  it("the owner uses what is theirs: exec, files, run_code, fork", async () => {
    expect((await hers.exec("echo $TOKEN")).stdout).toBe(`${secret}\n`);
    await hers.files.write("/workspace/a", "1");
    expect((await hers.runCode("6 * 7")).text).toBe("42");
    const [child] = await hers.fork({ count: 1, inheritSecrets: true });
    expect(await child!.files.read("/workspace/a")).toBe("1");
    // The child is theirs as well, and nobody else's.
    const rows = (key: string) => new SandboxServer(server.url, key).listSandboxes();
    expect((await rows(alice)).map(({ id }) => id)).toEqual([hers.id, child!.id]);
    expect(await rows(bob)).toEqual([]);
    await child!.terminate();
  });

  it("another owner can neither run anything in it, read from it, fork it nor end it", async () => {
    await expect(Sandbox.connect(hers.id, { baseUrl: server.url, apiKey: bob })).rejects.toThrow(NotFoundError);
    await expect(asBob(hers.id)).rejects.toThrow(AgentRunError);
    const as = { Authorization: `Bearer ${bob}`, "X-Sandbox-Id": hers.id, "Content-Type": "application/json" };
    for (const [method, route] of [
      ["GET", `/v1/sandboxes/${hers.id}/files?path=/workspace/a`],
      ["POST", `/v1/sandboxes/${hers.id}/processes`],
      ["DELETE", `/v1/sandboxes/${hers.id}`],
    ] as const) {
      const body = method === "POST" ? JSON.stringify({ command: "touch /workspace/b" }) : null;
      expect((await fetch(`${server.url}${route}`, { method, headers: as, body })).status, route).toBe(404);
    }
    expect(await hers.files.exists("/workspace/b")).toBe(false);
    expect((await hers.exec("true")).exitCode).toBe(0);
  });

  it("a terminal over a WebSocket opens for its owner only", async () => {
    const dial = (key?: string) =>
      new Promise<string>((resolve) => {
        const headers = key ? { Authorization: `Bearer ${key}` } : {};
        const socket = new WebSocket(
          `${server.url.replace("http", "ws")}/sandbox.v1.Sandbox/Exec?sandbox=${hers.id}`,
          "connect.sandbox.v1",
          { headers },
        );
        socket.on("open", () => resolve("open"));
        socket.on("unexpected-response", (request, response) => {
          request.destroy();
          resolve(String(response.statusCode));
        });
        socket.on("error", () => {});
        socket.on("open", () => socket.terminate());
      });
    expect([await dial(alice), await dial(bob), await dial("mitos_sk_wrong"), await dial()]).toEqual(["open", "404", "401", "401"]);
  });

  it("a preview of an owner's sandbox does not open a later one of the same id", async () => {
    const make = (apiKey: string) => create({ id: "used-twice", template: "base", baseUrl: server.url, apiKey });
    const statusOf = async (url: string) => (await fetch(url)).status;
    const first = await make(alice);
    const url = await first.getHost(8080);
    // Nothing listens there yet.
    expect(await statusOf(url)).toBe(503);
    await first.terminate();
    expect(await statusOf(url)).toBe(410);
    const second = await make(bob);
    expect(await statusOf(url)).toBe(401);
    expect(await statusOf(await second.getHost(8080))).toBe(503);
    await second.terminate();
  });

  it("wrong keys, missing scopes and used-up quotas are typed errors with what to do", async () => {
    const make = (apiKey: string) => create({ baseUrl: server.url, apiKey });
    await expect(make("mitos_sk_wrong")).rejects.toThrow(UnauthorizedError);
    await expect(make(makeKey("eve", { scopes: ["read"] }))).rejects.toMatchObject({
      code: "forbidden",
      status: 403,
      context: { op: "POST /v1/fork" },
    });
    const small = makeKey("alice", { limits: { maxSandboxes: 1 } });
    await expect(make(small)).rejects.toMatchObject({
      code: "quota_exceeded",
      status: 429,
      context: { op: "create", dimension: "sandboxes", limit: 1 },
    });
    const slow = new SandboxServer(server.url, makeKey("eve", { limits: { requestsPerSecond: 1 } }));
    await expect(Promise.all(Array.from({ length: 20 }, () => slow.health()))).rejects.toMatchObject({
      code: "rate_limited",
      context: { retry_after_ms: expect.any(Number) },
    });
  });

  it("a restart keeps keys, owners and sandboxes", async () => {
    await server.close();
    await engine.close({ sandboxes: "keep" });
    engine = await openEngine({ dataDir: live.dataDir, ...engineOptions, log: quiet });
    server = await listen();
    const again = await Sandbox.connect(hers.id, { baseUrl: server.url, apiKey: alice });
    expect(await again.files.read("/workspace/a")).toBe("1");
    await expect(Sandbox.connect(hers.id, { baseUrl: server.url, apiKey: bob })).rejects.toThrow(NotFoundError);
    engine.keys.revoke(engine.keys.find(alice)!.id);
    await expect(again.exec("true")).rejects.toThrow(UnauthorizedError);
  });

  it("no key and no secret is in a log line, an audit line, an error or the database", async () => {
    const errors = await Promise.all([
      create({ baseUrl: server.url, apiKey: alice, secrets: { TOKEN: secret } }).catch(String),
      create({ baseUrl: server.url, apiKey: bob, template: "none-such", secrets: { TOKEN: `${secret}\0` } }).catch(String),
      fetch(`${server.url}/v1/fork`, {
        method: "POST",
        headers: { Authorization: `Bearer ${bob}` },
        body: JSON.stringify({ id: "x", template: "none", secrets: { A: secret } }),
      }).then((answer) => answer.text()),
    ]);
    const database = readdirSync(live.dataDir).filter((name) => name.startsWith("mitos.db"));
    expect(database).not.toEqual([]);
    const everything = [
      ...logged,
      ...errors,
      readFileSync(auditLog, "utf8"),
      ...database.map((name) => readFileSync(path.join(live.dataDir, name), "latin1")),
    ].join("\n");
    expect(everything).toContain(`"owner":"alice"`);
    for (const hidden of [secret, ...keys]) expect(everything.includes(hidden)).toBe(false);
  });
});
