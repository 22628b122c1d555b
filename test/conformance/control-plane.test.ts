import { readdirSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";

// Vectors of the specification (conformance, 2) that need no guest: the mock engine claims exactly these.
let live: LiveServer;
beforeAll(async () => {
  live = await startLiveServer("mock");
  await post("/v1/templates", { id: "sb-src-tmpl" });
});
afterAll(() => live.close());

async function post(path: string, body: unknown, headers: Record<string, string> = {}) {
  const answer = await fetch(live.url + path, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
  });
  const text = await answer.text();
  return { status: answer.status, body: text.startsWith("{") || text.startsWith("[") ? JSON.parse(text) : text };
}

const ids = async () => ((await (await fetch(`${live.url}/v1/sandboxes`)).json()) as { id: string }[]).map(({ id }) => id);

describe("unsafe ids are refused", () => {
  it.each(["../../etc", "a/b", "..", ".", "a\\b", "with space", "", "x".repeat(65), "a\0b"])("template id %j: 400", async (id) => {
    expect((await post("/v1/templates", { id })).status).toBe(400);
  });

  it.each(["../../etc", "a/b", "..", "a\\b"])("sandbox id %j on fork: 400", async (id) => {
    expect((await post("/v1/fork", { template: "sb-src-tmpl", id })).status).toBe(400);
  });

  it.each(["../../etc", "a/b", ".."])("template %j on fork: 400", async (template) => {
    expect((await post("/v1/fork", { template, id: "sb-1" })).status).toBe(400);
  });

  it("an unsafe source or child of a live fork: 400", async () => {
    expect((await post(`/v1/sandboxes/${encodeURIComponent("../escape")}/fork`, { id: "child" })).status).toBe(400);
    expect((await post("/v1/sandboxes/nope/fork", { id: "../escape" })).status).toBe(400);
  });
});

describe("an image reference as template id", () => {
  it.each(["python:3.12", `registry.example/x/y@sha256:${"0a".repeat(32)}`])(
    "%s: created, forked, listed, deleted; nowhere a path",
    async (id) => {
      expect((await post("/v1/templates", { id })).body).toMatchObject({ id, ready: true });
      expect((await post("/v1/fork", { template: id, id: "of-an-image" })).status).toBe(200);
      const files = readdirSync(live.dataDir, { recursive: true }) as string[];
      expect(files.filter((file) => /registry|python:|3\.12/.test(file))).toEqual([]);
      await fetch(`${live.url}/v1/sandboxes/of-an-image`, { method: "DELETE" });
      const deleted = await fetch(`${live.url}/v1/templates/${encodeURIComponent(id)}`, { method: "DELETE" });
      expect(await deleted.json()).toEqual({ status: "deleted", id });
    },
  );
});

describe("fork", () => {
  it("of an unknown template or source: 404", async () => {
    expect(await post("/v1/fork", { template: "nope", id: "sb-1" })).toMatchObject({ status: 404, body: { error: { code: "not_found" } } });
    expect(await post("/v1/sandboxes/nope/fork", { id: "child" })).toMatchObject({ status: 404, body: { error: { code: "not_found" } } });
  });

  it("live: the child has its own id and the source's template, and is listed", async () => {
    await post("/v1/fork", { template: "sb-src-tmpl", id: "sb-src" });
    const { status, body } = await post("/v1/sandboxes/sb-src/fork", { id: "sb-child", pause_source: true });
    expect(status).toBe(200);
    expect(body).toMatchObject({ id: "sb-child" });
    const rows = (await (await fetch(`${live.url}/v1/sandboxes`)).json()) as { id: string; template_id: string }[];
    expect(rows).toContainEqual(expect.objectContaining({ id: "sb-child", template_id: "sb-src-tmpl" }));
  });

  it("with one idempotency key twice: the first sandbox both times, one entry in the list", async () => {
    const headers = { "Idempotency-Key": "fork-k1" };
    const first = await post("/v1/fork", { template: "sb-src-tmpl", id: "idem-1" }, headers);
    const second = await post("/v1/fork", { template: "sb-src-tmpl", id: "idem-2" }, headers);
    expect([first.body.id, second.body.id]).toEqual(["idem-1", "idem-1"]);
    expect(await ids()).not.toContain("idem-2");

    const live1 = await post("/v1/sandboxes/sb-src/fork", { id: "live-1" }, { "Idempotency-Key": "live-k1" });
    const live2 = await post("/v1/sandboxes/sb-src/fork", { id: "live-2" }, { "Idempotency-Key": "live-k1" });
    expect([live1.body.id, live2.body.id]).toEqual(["live-1", "live-1"]);
  });

  it("released the key after a failure, so that a retry runs", async () => {
    const headers = { "Idempotency-Key": "fork-k2" };
    expect((await post("/v1/fork", { template: "not-yet", id: "idem-3" }, headers)).status).toBe(404);
    await post("/v1/templates", { id: "not-yet" });
    expect((await post("/v1/fork", { template: "not-yet", id: "idem-3" }, headers)).status).toBe(200);
  });
});

describe("network", () => {
  it("is deny both ways when absent", async () => {
    expect((await post("/v1/templates", { id: "net-0" })).body.network).toEqual({ egress: "deny", inbound: "deny" });
  });

  it.each([{ allow_cidrs: ["not-a-cidr"] }, { inbound: "allow", inbound_cidrs: ["bad"] }, { egress: "sometimes" }])(
    "%j: 400",
    async (network) => {
      expect((await post("/v1/templates", { id: "net-1", network })).status).toBe(400);
    },
  );

  it("is echoed in snake case by templates and in the cluster's keys by sandboxes", async () => {
    const network = {
      block: true,
      egress: "deny",
      allow_cidrs: ["10.0.0.0/8"],
      inbound: "allow",
      inbound_cidrs: ["203.0.113.0/24"],
      allow_domains: ["api.example.com:443"],
    };
    expect((await post("/v1/templates", { id: "net-2", network })).body.network).toEqual(network);
    expect((await post("/v1/fork", { template: "net-2", id: "net-sandbox" })).body.network).toEqual({
      egress: "deny",
      allow: ["api.example.com:443"],
      blockNetwork: true,
      allowCidrs: ["10.0.0.0/8"],
      inbound: "allow",
      inboundCidrs: ["203.0.113.0/24"],
    });
  });
});

describe("time-outs", () => {
  it("set_timeout answers with the deadline", async () => {
    const before = Math.floor(Date.now() / 1000);
    const { status, body } = await post("/v1/set_timeout", { sandbox: "sb-src", timeout_seconds: 600 });
    expect(status).toBe(200);
    expect(body).toMatchObject({ status: "ok", timeout_seconds: 600 });
    expect(body.deadline_unix - before).toBeGreaterThanOrEqual(600);
    expect(body.deadline_unix - before).toBeLessThanOrEqual(602);
  });

  it("above the ceiling: rejected, never clamped", async () => {
    expect(await post("/v1/set_timeout", { sandbox: "sb-src", timeout_seconds: 86_401 })).toMatchObject({
      status: 400,
      body: { error: { code: "timeout_too_large", context: { sandbox: "sb-src", requested_s: 86_401, max_timeout_s: 86_400 } } },
    });
  });

  it.each([0, -1, 1.5, "ten", null])("%j: 400", async (timeout_seconds) => {
    expect((await post("/v1/set_timeout", { sandbox: "sb-src", timeout_seconds })).status).toBe(400);
  });

  it("of an unknown sandbox: 404, like pause and resume", async () => {
    expect((await post("/v1/set_timeout", { sandbox: "nope", timeout_seconds: 5 })).status).toBe(404);
    expect((await post("/v1/pause", { sandbox: "nope" })).status).toBe(404);
    expect((await post("/v1/resume", { sandbox: "nope" })).status).toBe(404);
  });
});

describe("pause and resume", () => {
  it("round trip", async () => {
    expect(await post("/v1/pause", { sandbox: "sb-src" })).toEqual({ status: 200, body: { status: "paused" } });
    expect(await post("/v1/resume", { sandbox: "sb-src" })).toEqual({ status: 200, body: { status: "running" } });
    expect(await post("/v1/resume", { sandbox: "sb-src" })).toEqual({ status: 200, body: { status: "running" } });
  });

  it.each(["/v1/set_timeout", "/v1/pause", "/v1/resume"])("%s with a body that is not JSON: invalid_json with a remedy", async (path) => {
    const { status, body } = await post(path, "{not json");
    expect(status).toBe(400);
    expect(body.error.code).toBe("invalid_json");
    expect(body.error.remediation).not.toBe("");
  });
});

describe("routes", () => {
  it("an unknown path is 404 in plain text; a known one with another method is 405 with Allow", async () => {
    const unknown = await fetch(`${live.url}/v1/nothing`);
    expect([unknown.status, unknown.headers.get("content-type")?.startsWith("text/plain")]).toEqual([404, true]);
    const method = await fetch(`${live.url}/v1/fork`);
    expect(method.status).toBe(405);
    expect(method.headers.get("allow")).toContain("POST");
  });

  it("health says what the engine is", async () => {
    expect(await (await fetch(`${live.url}/v1/health`)).json()).toMatchObject({ status: "ok", mock: true });
  });

  it.each([
    [{ sandbox: "", port: 8080 }, 400],
    [{ sandbox: "sb-1", port: 0 }, 400],
    [{ sandbox: "unknown", port: 8080 }, 404],
  ])("preview %j: %i", async (body, status) => {
    expect((await post("/v1/preview", body)).status).toBe(status);
  });

  it("forward in mock mode: 501, before anything is looked at", async () => {
    expect((await post("/v1/sandboxes/unknown/forward", "not JSON")).status).toBe(501);
  });

  it("what needs a guest is refused by the mock engine with a typed error, never pretended", async () => {
    const answer = await fetch(`${live.url}/sandbox.v1.Sandbox/List`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Sandbox-Id": "sb-src" },
      body: JSON.stringify({ parent: "/" }),
    });
    expect(answer.status).toBe(501);
    expect(await answer.json()).toMatchObject({ code: "unimplemented" });
  });
});
