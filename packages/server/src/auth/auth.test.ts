import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { connect as connectHttp2 } from "node:http2";
import { sandbox as pb } from "@mitos/protocol/proto";
import { describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import type { AnyRequest } from "../http/guard.ts";
import { bearer, get, makeKey, post, send, stream, streamAll, unary, useServer } from "../testing/harness.ts";
import { accessOfRoute, routeAccess, rpcAccess } from "./access.ts";
import { Auth } from "./auth.ts";

const execPath = "/sandbox.v1.Sandbox/Exec?sandbox=sb-1";

describe("a server without keys", () => {
  const at = useServer();

  it("ignores whatever key a client sends, and makes none", async () => {
    expect((await get(at, "/v1/sandboxes", bearer("anything"))).status).toBe(200);
    for (const answer of [
      await get(at, "/v1/whoami"),
      await get(at, "/v1/keys"),
      await post(at, "/v1/keys", { name: "a", scopes: ["read"] }),
    ]) {
      expect(answer).toMatchObject({
        status: 501,
        json: { error: { code: "not_supported", remediation: expect.stringContaining("--auth") } },
      });
    }
  });
});

describe("authentication", () => {
  const at = useServer({ auth: true });
  const upgrade = (headers: Record<string, string>) =>
    send(at, "GET", execPath, undefined, {
      Connection: "Upgrade",
      Upgrade: "websocket",
      "Sec-WebSocket-Key": "MDEyMzQ1Njc4OTAxMjM0NQ==",
      "Sec-WebSocket-Version": "13",
      ...headers,
    });

  it.each(["/healthz", "/readyz"])("lets %s pass without a key", async (path) => {
    expect((await get(at, path)).status).toBe(200);
    expect((await send(at, "HEAD", path)).status).toBe(200);
  });

  it.each([
    ["no header", {}],
    ["an unknown key", bearer("mitos_sk_unknown")],
    ["an empty key", { Authorization: "Bearer " }],
    ["another scheme", { Authorization: "Basic YTpi" }],
    ["two words", bearer("two words")],
    ["a key that is too long", bearer("x".repeat(4000))],
  ])("refuses every door with %s, before it looks at anything else", async (_title, headers) => {
    for (const [method, path] of [
      ["GET", "/v1/sandboxes"],
      ["POST", "/v1/fork"],
      ["GET", "/metrics"],
      ["GET", "/v1/health"],
      ["GET", "/nowhere"],
      ["PATCH", "/v1/fork"],
      ["POST", "/healthz"],
    ] as const) {
      const answer = await send(at, method, path, method === "POST" ? "not json" : undefined, headers);
      expect(answer, path).toMatchObject({
        status: 401,
        json: { error: { code: "unauthorized", remediation: expect.stringMatching(/Bearer/) } },
      });
    }
    expect(await unary(at, "Stat", { path: "/" }, headers)).toMatchObject({ status: 401, json: { code: "unauthenticated" } });
    expect(await streamAll(at, "ExecStream", [{ command: "echo" }], headers)).toMatchObject([
      { flags: 2, message: { error: { code: "unauthenticated" }, metadata: { "mitos-error-code": ["unauthorized"] } } },
    ]);
    expect(await upgrade(headers)).toMatchObject({
      status: 401,
      headers: { "www-authenticate": "Bearer" },
      json: { error: { code: "unauthorized" } },
    });
    expect(at.runtime.starts).toEqual([]);
  });

  it("refuses gRPC and HTTP/2 just so", async () => {
    const session = connectHttp2(at.url);
    for (const [path, type] of [
      ["/sandbox.v1.Sandbox/Exec", "application/grpc"],
      ["/v1/sandboxes", "application/json"],
    ] as const) {
      const call = session.request({ ":method": "POST", ":path": path, "content-type": type });
      const [headers] = await once(call, "response");
      expect(headers[":status"]).toBe(401);
      call.resume().end();
    }
    session.destroy();
  });

  it("takes a key on every door, whatever the case of its scheme", async () => {
    const key = makeKey(at);
    expect((await get(at, "/v1/sandboxes", { authorization: `bearer  ${key}` })).status).toBe(200);
    await post(at, "/v1/fork", { id: "mine", template: "python" }, bearer(key));
    const headers = { ...bearer(key), "X-Sandbox-Id": "mine" };
    expect((await streamAll(at, "ExecStream", [{ command: "echo x" }], headers)).at(-1)).toEqual({ flags: 2, message: {} });
    const socket = new WebSocket(`${at.url.replace("http", "ws")}/sandbox.v1.Sandbox/Exec?sandbox=mine`, { headers });
    await once(socket, "open");
    socket.terminate();
  });

  it("refuses a key that was revoked or has expired, and says which", async () => {
    const revoked = makeKey(at);
    const expired = makeKey(at, { ttlSeconds: 1 });
    expect((await get(at, "/v1/whoami", bearer(revoked))).status).toBe(200);
    at.engine.keys.revoke(at.engine.keys.find(revoked)!.id);
    expect((await get(at, "/v1/whoami", bearer(revoked))).json.error.cause).toMatch(/is revoked$/);
    await expect
      .poll(async () => (await get(at, "/v1/whoami", bearer(expired))).json.error?.cause, { timeout: 5000 })
      .toMatch(/is expired$/);
  });

  it("answers an address that goes on presenting wrong keys with 429, and never holds up a right one", async () => {
    const answers = [];
    for (let i = 0; i < 40; i++) answers.push(await get(at, "/v1/sandboxes", bearer(`mitos_sk_guess${i}`)));
    const refused = answers.find(({ status }) => status === 429)!;
    expect(refused.json.error).toMatchObject({ code: "rate_limited", context: { retry_after_ms: expect.any(Number) } });
    expect(Number(refused.headers["retry-after"])).toBeGreaterThan(0);
    expect((await get(at, "/v1/sandboxes", at.admin)).status).toBe(200);
  });

  it("counts the failures of a whole /64 of IPv6 as those of one address, and each IPv4 address alone", () => {
    const quietly = () => {};
    const log = { debug: quietly, info: quietly, warn: quietly, error: quietly };
    const auth = new Auth(at.engine.asEngine(), log, { note: quietly }, () => 0);
    const code = (remoteAddress: string) =>
      auth.authenticate({ method: "GET", url: "/v1/sandboxes", headers: {}, socket: { remoteAddress } } as unknown as AnyRequest)?.code;
    for (let n = 0; n < 20; n++) expect(code(`2001:db8:0:1::${n}`)).toBe("unauthorized");
    expect(code("2001:db8::1:0:0:0:99")).toBe("rate_limited");
    expect(code("2001:db8:0:1:ffff:1:2:3")).toBe("rate_limited");
    expect(code("2001:db8:0:2::1")).toBe("unauthorized");
    for (let n = 0; n < 20; n++) expect(code("::ffff:192.0.2.1")).toBe("unauthorized");
    expect(code("::ffff:192.0.2.1")).toBe("rate_limited");
    expect(code("::ffff:192.0.2.2")).toBe("unauthorized");
  });

  it("accepts any Host, since no web page can send a key, and no foreign Origin", async () => {
    expect((await get(at, "/v1/sandboxes", { ...at.admin, Host: "mitos.example" })).status).toBe(200);
    expect((await get(at, "/v1/sandboxes", { ...at.admin, Host: "mitos.example", Origin: "https://mitos.example" })).status).toBe(200);
    const behindProxy = { ...at.admin, Host: "mitos.example", "X-Forwarded-Proto": "https" };
    expect((await get(at, "/v1/sandboxes", behindProxy)).json).toMatchObject([{ endpoint: "https://mitos.example" }]);
    const foreign = await get(at, "/v1/sandboxes", { ...at.admin, Origin: "https://evil.example" });
    expect(foreign).toMatchObject({ status: 403, json: { error: { code: "forbidden" } } });
    expect(foreign.headers["access-control-allow-origin"]).toBeUndefined();
  });
});

describe("scopes", () => {
  const at = useServer({ auth: true });

  // Each with a request that is answered otherwise once the scope is there.
  it.each(Object.entries(routeAccess).filter(([, { scope }]) => scope !== "open" && scope !== "any"))(
    "%s is refused with 403 to every key without its scope, and not with it",
    async (name, { scope }) => {
      const [method, url] = name.split(" ") as [string, string];
      const path = url.replace(":id", "sb-none").replace(":pid", "42");
      for (const one of ["read", "execute", "lifecycle", "admin"] as const) {
        const answer = await send(
          at,
          method,
          path,
          method === "POST" || method === "PUT" ? "{}" : undefined,
          bearer(makeKey(at, { scopes: [one] })),
        );
        if (one === scope || one === "admin") {
          expect(answer.status, one).not.toBe(403);
          expect(answer.text, "a row without a route").not.toMatch(/^40[45] /);
        } else
          expect(answer, one).toMatchObject({
            status: 403,
            json: { error: { code: "forbidden", context: { op: name }, cause: expect.stringContaining(`scope ${scope}`) } },
          });
      }
    },
  );

  it.each(Object.entries(rpcAccess))("the RPC %s is refused likewise", async (localName, { scope }) => {
    const method = pb.Sandbox.method[localName as keyof typeof rpcAccess];
    for (const one of ["read", "execute", "lifecycle"] as const) {
      const headers = { ...bearer(makeKey(at, { scopes: [one] })), "X-Sandbox-Id": "sb-none" };
      let code: string;
      if (method.methodKind === "unary") code = (await unary(at, method.name, {}, headers)).json.code;
      else if (method.methodKind === "server_streaming") code = (await streamAll(at, method.name, [{}], headers))[0]!.message.error.code;
      else continue; // HTTP/2 only, or many messages; the table is one and the same
      if (one === scope) expect(code, one).not.toBe("permission_denied");
      else expect(code, one).toBe("permission_denied");
    }
  });

  it("Exec over a WebSocket is refused before the upgrade", async () => {
    const socket = new WebSocket(`${at.url.replace("http", "ws")}${execPath}`, { headers: bearer(makeKey(at, { scopes: ["read"] })) });
    const [, response] = await once(socket, "unexpected-response");
    expect(response.statusCode).toBe(403);
    socket.on("error", () => {}).terminate();
  });

  it("HEAD needs what GET needs, and other methods are answered as ever", async () => {
    const headers = bearer(makeKey(at, { scopes: ["lifecycle"] }));
    expect((await send(at, "HEAD", "/v1/sandboxes", undefined, headers)).status).toBe(403);
    expect((await send(at, "PATCH", "/v1/sandboxes", undefined, headers)).status).toBe(405);
    expect((await get(at, "/nowhere", headers)).status).toBe(404);
  });

  it("a route without a row in the table cannot be registered", () => {
    expect(() => accessOfRoute("GET", "/v1/new")).toThrow("GET /v1/new has no row in packages/server/src/auth/access.ts");
    expect(() => accessOfRoute("POST", "/v1/sandboxes")).toThrow("has no row");
    expect(() => accessOfRoute("GET", "constructor")).toThrow("has no row");
  });

  it("no route works with the whole engine instead of its caller's", () => {
    // Health and metrics tell what kind of engine it is; keys are the server's own.
    const exceptions = ["routes/health.ts", "routes/keys.ts"];
    const files = ["routes", "connect", "websocket"].flatMap((folder) =>
      readdirSync(new URL(`../${folder}`, import.meta.url)).map((name) => `${folder}/${name}`),
    );
    const offences = files
      .filter((file) => !file.endsWith(".test.ts") && !exceptions.includes(file))
      .filter((file) =>
        /context\.engine\b|\{[^}]*\bengine\b[^}]*\} = context|\{[^}]*\bengine\b[^}]*\}: ServerContext/.test(
          readFileSync(new URL(`../${file}`, import.meta.url), "utf8"),
        ),
      );
    expect(offences, "use context.engineFor(request.raw)").toEqual([]);
  });
});

describe("keys over HTTP", () => {
  const at = useServer({ auth: true });

  it("are made, shown once, listed, tell whose they are, and end when they are revoked", async () => {
    const made = await post(
      at,
      "/v1/keys",
      {
        name: "ci",
        owner: "bob@example.org",
        organisation: "acme",
        scopes: ["lifecycle", "read"],
        ttl_seconds: 3600,
        limits: { max_sandboxes: 2 },
      },
      at.admin,
    );
    expect(made).toMatchObject({
      status: 200,
      json: {
        key: expect.stringMatching(/^mitos_sk_[\w-]{43}$/),
        scopes: ["read", "lifecycle"],
        status: "active",
        limits: { max_sandboxes: 2 },
      },
    });
    const { key, ...shown } = made.json;
    expect(key).toContain(shown.prefix);

    const listed = await get(at, "/v1/keys?organisation=acme", at.admin);
    expect(listed.json.keys).toContainEqual(shown);
    expect(listed.text).not.toContain(key);
    expect((await get(at, "/v1/keys?organisation=other", at.admin)).json.keys).toEqual([]);
    expect((await get(at, "/v1/whoami", bearer(key))).json).toMatchObject({ id: shown.id, owner: "bob@example.org", organisation: "acme" });

    expect((await send(at, "DELETE", `/v1/keys/${shown.id}`, undefined, at.admin)).json).toEqual({ status: "revoked", id: shown.id });
    expect((await get(at, "/v1/whoami", bearer(key))).status).toBe(401);
    expect((await send(at, "DELETE", "/v1/keys/key-none", undefined, at.admin)).status).toBe(404);
  });

  it("that are revoked take their open streams with them, and no others", async () => {
    const [key, other] = [makeKey(at), makeKey(at)];
    await post(at, "/v1/fork", { id: "a", template: "python" }, bearer(key));
    const open = async (one: string) => {
      const { frames } = await stream(at, "ExecStream", [{ command: "forever" }], { headers: { ...bearer(one), "X-Sandbox-Id": "a" } });
      await frames.next();
      return frames;
    };
    const [cut] = [await open(key), await open(other)];
    const socket = new WebSocket(`${at.url.replace("http", "ws")}/sandbox.v1.Sandbox/Exec?sandbox=a`, { headers: bearer(key) });
    await once(socket, "open");
    const closed = once(socket, "close");
    await send(at, "DELETE", `/v1/keys/${at.engine.keys.find(key)!.id}`, undefined, at.admin);
    await expect(cut.next()).rejects.toThrow();
    await closed;
    // As when its client leaves: the program is killed, the other's runs on.
    const runtime = at.engine.runtimes.get("a")!;
    await expect.poll(() => runtime.killed).toBe(1);
  });

  it("belong to their maker's owner unless said otherwise", async () => {
    const { json } = await post(at, "/v1/keys", { name: "ci", scopes: ["read"] }, at.admin);
    expect(json).toMatchObject({ owner: "root", organisation: "acme", expires_at: null });
  });

  it.each([
    { name: "", scopes: ["read"] },
    { name: "a", scopes: [] },
    { name: "a", scopes: ["root"] },
    { name: "a", scopes: ["read"], owner: "a b" },
    { name: "a", scopes: ["read"], organisation: "\n" },
    { name: "a", scopes: ["read"], ttl_seconds: -1 },
    { name: "a", scopes: ["read"], limits: { max_sandboxes: 0 } },
    { name: "a", scopes: ["read"], limits: { requests_per_second: 1.5 } },
  ])("%j is refused", async (body) => {
    expect(await post(at, "/v1/keys", body, at.admin)).toMatchObject({ status: 400, json: { error: { code: "invalid_input" } } });
  });
});

describe("limits of a key", () => {
  const at = useServer({ auth: true });
  const create = (key: string, id: string, extra = {}) => post(at, "/v1/fork", { id, template: "python", ...extra }, bearer(key));
  const quota = (op: string, dimension: string, limit: number) => ({
    status: 429,
    headers: { "retry-after": expect.any(String) },
    json: { error: { code: "quota_exceeded", context: { op, dimension, limit } } },
  });

  it("on sandboxes: so many, not one more, and again after one has ended", async () => {
    const key = makeKey(at, { limits: { maxSandboxes: 2 } });
    expect((await create(key, "a")).status).toBe(200);
    expect((await create(key, "b")).status).toBe(200);
    expect(await create(key, "c")).toMatchObject(quota("create", "sandboxes", 2));
    await post(at, "/v1/pause", { sandbox: "a" }, bearer(key));
    expect((await create(key, "c")).status).toBe(429);
    await send(at, "DELETE", "/v1/sandboxes/a", undefined, bearer(key));
    expect((await create(key, "c")).status).toBe(200);
    expect(await post(at, "/v1/sandboxes/c/fork", { count: 1 }, bearer(key))).toMatchObject(quota("fork", "sandboxes", 2));
    // Another owner has their own.
    expect((await create(makeKey(at, { owner: "bob", limits: { maxSandboxes: 2 } }), "d")).status).toBe(200);
  });

  it("count what all keys of the owner made", async () => {
    await create(makeKey(at), "a");
    expect((await create(makeKey(at, { limits: { maxSandboxes: 1 } }), "b")).status).toBe(429);
  });

  it("hold for requests at the same time, and refuse none that fits", async () => {
    const key = makeKey(at, { limits: { maxSandboxes: 5 } });
    const answers = await Promise.all(Array.from({ length: 12 }, (_, i) => create(key, `c-${i}`)));
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(5);
    expect(answers.filter(({ status }) => status === 429)).toHaveLength(7);
    expect((await get(at, "/v1/sandboxes", bearer(key))).json).toHaveLength(5);
  });

  it("are given back when a create fails", async () => {
    const key = makeKey(at, { limits: { maxSandboxes: 1 } });
    expect((await create(key, "sb-1")).status).toBe(409);
    expect((await create(key, "a")).status).toBe(200);
  });

  it("on memory: by what each sandbox may use", async () => {
    const key = makeKey(at, { limits: { maxMemoryMiB: 1024 } });
    expect((await create(key, "a", { resources: { mem_size_mib: 768 } })).status).toBe(200);
    expect(await create(key, "b")).toMatchObject(quota("create", "memory_mib", 1024));
    expect((await create(key, "b", { resources: { mem_size_mib: 256 } })).status).toBe(200);
  });

  it("on streams: so many, other requests go on, and again when one has ended", async () => {
    const key = makeKey(at, { limits: { maxStreams: 1 } });
    await create(key, "a");
    const headers = { ...bearer(key), "X-Sandbox-Id": "a" };
    const client = new AbortController();
    const first = await stream(at, "ExecStream", [{ command: "forever" }], { headers, signal: client.signal });
    await first.frames.next();
    expect(await streamAll(at, "RunCodeStream", [{ code: "1" }], headers)).toMatchObject([
      {
        flags: 2,
        message: { error: { code: "resource_exhausted" }, metadata: { "retry-after": ["1"], "mitos-error-code": ["quota_exceeded"] } },
      },
    ]);
    expect(await get(at, "/v1/sandboxes/a/processes/42/output", bearer(key))).toMatchObject(
      quota("GET /v1/sandboxes/:id/processes/:pid/output", "streams", 1),
    );
    expect((await get(at, "/v1/sandboxes/a", bearer(key))).status).toBe(200);
    client.abort();
    await expect.poll(async () => (await get(at, "/v1/sandboxes/a/processes/42/output?follow=true", bearer(key))).status).toBe(200);
  });

  it("on the rate: a burst, then 429 with the time to wait", async () => {
    const key = makeKey(at, { limits: { requestsPerSecond: 1 } });
    const answers = await Promise.all(Array.from({ length: 30 }, () => get(at, "/v1/whoami", bearer(key))));
    expect(answers.filter(({ status }) => status === 200).length).toBeGreaterThanOrEqual(2);
    const refused = answers.find(({ status }) => status === 429)!;
    expect(refused.json.error).toMatchObject({ code: "rate_limited", context: { retry_after_ms: expect.any(Number) } });
    expect(Number(refused.headers["retry-after"])).toBeGreaterThanOrEqual(1);
    // Nobody else's.
    expect((await get(at, "/v1/whoami", bearer(makeKey(at)))).status).toBe(200);
  });
});
