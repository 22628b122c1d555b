import { once } from "node:events";
import { connect as connectHttp2 } from "node:http2";
import { describe, expect, it } from "vitest";
import { startServer } from "../index.ts";
import { FakeEngine } from "../testing/fake-engine.ts";
import { get, post, send, useServer } from "../testing/harness.ts";

const log = { debug() {}, info() {}, warn() {}, error() {} };

describe("templates", () => {
  const at = useServer();

  it("are created with status 200, the request's network keys echoed, and a body that ends with a newline", async () => {
    const network = {
      block: true,
      egress: "deny",
      allow_cidrs: ["10.0.0.0/8"],
      inbound: "allow",
      inbound_cidrs: ["203.0.113.0/24"],
      allow_domains: ["api.example.com:443"],
    };
    const answer = await post(at, "/v1/templates", { id: "conf-template", init_wait_seconds: 1, network, unknown: 1 });
    expect(answer.status).toBe(200);
    expect(answer.headers["content-type"]).toBe("application/json");
    expect(answer.text.endsWith("\n")).toBe(true);
    expect(answer.json).toMatchObject({ id: "conf-template", ready: true, network });
    expect((await get(at, "/v1/templates")).json.map((row: { id: string }) => row.id)).toContain("conf-template");
  });

  it.each(["", "json", "text/plain", "a/b; c"])("may have a body of any type, such as %j", async (type) => {
    expect((await post(at, "/v1/templates", { id: "t" }, { "Content-Type": type })).status).toBe(200);
  });

  it("default to no network either way", async () => {
    expect((await post(at, "/v1/templates", { id: "t" })).json.network).toEqual({ egress: "deny", inbound: "deny" });
  });

  it("take a workload and resources, and treat an empty command and zeroes as absent", async () => {
    const workload = { command: ["/usr/local/bin/start"], ready: { port: 9222, path: "/json/version", expect: 200, timeout_seconds: 90 } };
    await post(at, "/v1/templates", { id: "chrome", workload, resources: { vcpu_count: 2, mem_size_mib: 1024 } });
    expect(at.engine.templates.get("chrome")).toMatchObject({
      workload: { command: ["/usr/local/bin/start"], ready: { port: 9222, expect: 200, timeoutSeconds: 90 } },
      resources: { vcpuCount: 2, memSizeMiB: 1024, processesMax: 1024 },
    });
    await post(at, "/v1/templates", { id: "plain", workload: { command: [] }, resources: { vcpu_count: 0, mem_size_mib: 0 } });
    expect(at.engine.templates.get("plain")).toMatchObject({ workload: undefined, resources: { vcpuCount: 1, memSizeMiB: 512 } });
  });

  it.each([{}, { command: [] }, { command: null }])("ignore whatever else stands in the workload %j", async (workload) => {
    for (const rest of [{ ready: {} }, { ready: { port: 70_000 } }, { ready: "soon" }, { env: { "": "x" } }, { env: 5 }]) {
      const answer = await post(at, "/v1/templates", { id: "plain", workload: { ...workload, ...rest } });
      expect([answer.status, at.engine.templates.get("plain")!.workload]).toEqual([200, undefined]);
    }
  });

  it("check what stands beside a command, with its keys in any case", async () => {
    const of = (workload: object) => post(at, "/v1/templates", { id: "app", workload: { command: ["/app"], ...workload } });
    for (const [workload, cause] of [
      [{ ready: { port: 0 } }, "workload.ready.port: must be 1 to 65535"],
      [{ ready: { port: 80, path: 5 } }, "workload.ready.path: "],
      [{ env: { A: "\0" } }, "workload.env: values must not hold NUL"],
    ] as const) {
      const answer = await of(workload);
      expect([answer.status, answer.json.error.cause]).toEqual([400, expect.stringContaining(cause)]);
    }
    expect((await of({ ENV: { Path: "/bin" }, Ready: { PORT: 80, Path: null } })).status).toBe(200);
    expect(at.engine.templates.get("app")!.workload).toEqual({
      command: ["/app"],
      env: { Path: "/bin" },
      ready: { kind: "http", port: 80, path: "/", expect: 200, timeoutSeconds: 120 },
    });
  });

  it.each(["../../etc", "a/b", "..", ".", "a\\b", "with space", "", "x".repeat(65), "-leading", 7, null])(
    "refuse the id %j",
    async (id) => {
      const answer = await post(at, "/v1/templates", { id });
      expect([answer.status, answer.json.error.code]).toEqual([400, "invalid_input"]);
    },
  );

  it.each([
    { allow_cidrs: ["not-a-cidr"] },
    { inbound: "allow", inbound_cidrs: ["bad"] },
    { egress: "maybe" },
    { allow_cidrs: ["10.0.0.0/33"] },
    { allow_domains: ["*"] },
    { allow_domains: ["a.*.example.com:443"] },
    { allow_domains: ["example.com:0"] },
    { allow_domains: ["https://example.com"] },
    { allow_domains: ["10.0.0.0/8"] },
  ])("refuse the network %j and say so", async (network) => {
    const answer = await post(at, "/v1/templates", { id: "t", network });
    expect(answer.status).toBe(400);
    expect(answer.json.error.cause).toMatch(/^invalid network config:/);
  });

  it("may be image references, percent-encoded where the path names them; a live handle is none", async () => {
    for (const id of ["python:3.12", "registry.example:5000/x/y:1", `registry.example/x/y@sha256:${"0a".repeat(32)}`]) {
      expect((await post(at, "/v1/templates", { id })).json).toMatchObject({ id, ready: true });
      expect((await get(at, "/v1/templates")).json).toContainEqual(expect.objectContaining({ id }));
      expect((await post(at, "/v1/fork", { id: "of-an-image", template: id })).status).toBe(200);
      expect((await get(at, "/v1/sandboxes/of-an-image")).json.template_id).toBe(id);
      await send(at, "DELETE", "/v1/sandboxes/of-an-image");
      expect((await send(at, "DELETE", `/v1/templates/${encodeURIComponent(id)}`)).json).toEqual({ status: "deleted", id });
    }
    for (const id of ["live:sb-1", "registry.example/../x", "/etc:1", "a//b:1"]) {
      expect((await post(at, "/v1/templates", { id })).status).toBe(400);
      expect((await send(at, "DELETE", `/v1/templates/${encodeURIComponent(id)}`)).status).toBe(400);
    }
  });

  it("are deleted", async () => {
    expect((await send(at, "DELETE", "/v1/templates/python")).json).toEqual({ status: "deleted", id: "python" });
    expect((await send(at, "DELETE", "/v1/templates/python")).json.error.code).toBe("not_found");
  });
});

describe("sandboxes", () => {
  const at = useServer();

  it("are answered with what published clients read by subscript", async () => {
    const { json } = await post(at, "/v1/fork", { id: "conf-sandbox", template: "python" });
    expect(json).toMatchObject({ id: "conf-sandbox", endpoint: at.url, fork_time_ms: 0.842, parent_id: null, isolation: "mock" });
    expect(json.network).toEqual({ egress: "deny", inbound: "deny" });
  });

  it("take rules for their own network in place of the template's, and refuse broken ones", async () => {
    const network = { egress: "deny", allow_domains: ["api.example.com:443"] };
    const { json } = await post(at, "/v1/fork", { id: "sb-net", template: "python", network });
    expect(json.network).toEqual({ egress: "deny", allow: ["api.example.com:443"], inbound: "deny" });
    const broken = await post(at, "/v1/fork", { id: "sb-no", template: "python", network: { allow_domains: ["*"] } });
    expect([broken.status, broken.json.error.cause]).toEqual([400, expect.stringMatching(/^invalid network config: .*\*/)]);
  });

  it("cannot be given rules of their own when they are children of a fork", async () => {
    const network = { egress: "allow" };
    for (const [path, body] of [
      ["/v1/fork", { id: "child", template: "live:sb-1", network }],
      ["/v1/sandboxes/sb-1/fork", { id: "child", network }],
    ] as const) {
      const answer = await post(at, path, body);
      expect([answer.status, answer.json.error.cause]).toEqual([400, expect.stringContaining("the network rules of its parent")]);
    }
    expect((await post(at, "/v1/sandboxes/sb-1/fork", { id: "child", network: null })).status).toBe(200);
    expect(at.engine.forks).toHaveLength(1);
  });

  it("hand out a live handle as template_id, and list the true template", async () => {
    const { json } = await post(at, "/v1/fork", { id: "sb-2", template: "python" });
    expect(json.template_id).toBe("live:sb-2");
    const rows = (await get(at, "/v1/sandboxes")).json;
    expect(rows.find((row: { id: string }) => row.id === "sb-2").template_id).toBe("python");
  });

  it("fork live when created from such a handle", async () => {
    const { json } = await post(at, "/v1/fork", { id: "child", template: "live:sb-1" });
    expect(json).toMatchObject({ id: "child", template_id: "live:child", parent_id: "sb-1" });
    expect(at.engine.forks).toMatchObject([{ source: "sb-1", ids: ["child"], inheritSecrets: false }]);
    expect((await post(at, "/v1/fork", { id: "c2", template: "live:nope" })).status).toBe(404);
    for (const template of ["live:", "live:../x", "live/sb-1", "live:live:sb-1"]) {
      expect((await post(at, "/v1/fork", { id: "c3", template })).status).toBe(400);
    }
  });

  it("refuse unknown templates, unsafe ids and ids in use", async () => {
    expect((await post(at, "/v1/fork", { id: "x", template: "nope" })).json.error).toMatchObject({ code: "not_found" });
    for (const id of ["../../etc", "a/b", "..", "a\\b"]) expect((await post(at, "/v1/fork", { id, template: "python" })).status).toBe(400);
    expect((await post(at, "/v1/fork", { id: "sb-1", template: "python" })).status).toBe(409);
  });

  it("refuse a query that does not decode, rather than take it as it stands", async () => {
    for (const query of ["path=%zz", "path=%ff"]) {
      const answer = await send(at, "PUT", `/v1/sandboxes/sb-1/files?${query}`, "x");
      expect([answer.status, answer.json.error.code]).toEqual([400, "invalid_input"]);
    }
  });

  it("are given their environment, secrets and limits, none of which is logged", async () => {
    const body = {
      id: "x",
      template: "python",
      env: { A: "e-value" },
      secrets: { B: "s-value" },
      timeout_seconds: 60,
      metadata: { team: "a" },
    };
    await post(at, "/v1/fork", { ...body, resources: { mem_size_mib: 256 } });
    expect(at.engine.creates.at(-1)).toMatchObject({
      env: { A: "e-value" },
      secrets: { B: "s-value" },
      timeoutSeconds: 60,
      resources: { memSizeMiB: 256 },
    });
    expect(at.logLines.join("\n")).not.toMatch(/e-value|s-value/);
  });

  it.each([
    { env: { "A=B": "x" } },
    { env: { A: "x\0y" } },
    { env: { A: 1 } },
    { env: [] },
    { timeout_seconds: 0 },
    { timeout_seconds: 1.5 },
    { resources: { mem_size_mib: 1 } },
    { fork_budget: -1 },
    { fork_budget: 1001 },
    { fork_budget: "3" },
  ])("refuse %j before anything happens", async (extra) => {
    const answer = await post(at, "/v1/fork", { id: "x", template: "python", ...extra });
    expect([answer.status, answer.json.error.code]).toEqual([400, "invalid_input"]);
    expect(at.engine.sandboxes.has("x")).toBe(false);
  });

  it("may fork themselves as often as whoever makes them says, by default not at all", async () => {
    await post(at, "/v1/fork", { id: "none", template: "python" });
    await post(at, "/v1/fork", { id: "three", template: "python", fork_budget: 3 });
    await post(at, "/v1/fork", { id: "child", template: "live:three", fork_budget: 2 });
    await post(at, "/v1/sandboxes/three/fork", { id: "other", fork_budget: 1 });
    await post(at, "/v1/sandboxes/three/fork", { id: "plain" });
    expect(at.engine.creates.slice(-2).map(({ forkBudget }) => forkBudget)).toEqual([0, 3]);
    expect(at.engine.forks.map(({ forkBudget }) => forkBudget)).toEqual([2, 1, 0]);
    expect((await get(at, "/v1/sandboxes/three")).json).toMatchObject({ fork_budget: 3, forks_used: 0 });
  });

  it("are listed in pages, filtered by state, parent and metadata", async () => {
    await post(at, "/v1/fork", { id: "sb-2", template: "python", metadata: { team: "a" } });
    await post(at, "/v1/sandboxes/sb-1/fork", { id: "sb-3" });
    const ids = async (query: string) => (await get(at, `/v1/sandboxes${query}`)).json.map((row: { id: string }) => row.id);
    expect(await ids("?metadata.team=a")).toEqual(["sb-2"]);
    expect(await ids("?parent=sb-1")).toEqual(["sb-3"]);
    await post(at, "/v1/pause", { sandbox: "sb-1" });
    expect(await ids("?state=paused")).toEqual(["sb-1"]);
    const first = await get(at, "/v1/sandboxes?limit=2");
    expect(first.json).toHaveLength(2);
    const second = await get(at, `/v1/sandboxes?limit=2&cursor=${first.headers["x-next-cursor"]}`);
    expect(second.json.map((row: { id: string }) => row.id)).toEqual(["sb-3"]);
    expect(second.headers["x-next-cursor"]).toBeUndefined();
    for (const query of ["?limit=0", "?state=odd", "?cursor=!", "?parent=a/b"])
      expect((await get(at, `/v1/sandboxes${query}`)).status).toBe(400);
  });

  it("answer the end of a console, which no browser takes for a page", async () => {
    const answer = await fetch(`${at.url}/v1/sandboxes/sb-1/console`);
    expect(answer.status).toBe(200);
    expect(answer.headers.get("content-type")).toBe("application/octet-stream");
    expect(answer.headers.get("x-content-type-options")).toBe("nosniff");
    expect(Buffer.from(await answer.arrayBuffer())).toEqual(Buffer.from([0x3c, 0x70, 0x3e, 0xff, 0x0a]));
    expect((await get(at, "/v1/sandboxes/none/console")).status).toBe(404);
  });

  it("answer one, its tree, and deletion of one or of all below", async () => {
    await post(at, "/v1/sandboxes/sb-1/fork", { id: "a" });
    await post(at, "/v1/sandboxes/a/fork", { id: "b" });
    expect((await get(at, "/v1/sandboxes/sb-1")).json).toMatchObject({
      id: "sb-1",
      state: "running",
      deadline_unix: null,
      children: ["a"],
    });
    expect((await get(at, "/v1/sandboxes/sb-1/tree")).json).toMatchObject({
      id: "sb-1",
      children: [{ id: "a", children: [{ id: "b", children: [] }] }],
    });
    expect((await send(at, "DELETE", "/v1/sandboxes/a?subtree=true")).json).toEqual({ status: "terminated", id: "a" });
    expect((await get(at, "/v1/sandboxes/b")).status).toBe(404);
    for (const id of ["b", "..%2Fx", "with%20space", "x".repeat(65)]) {
      for (const method of ["DELETE", "GET"]) {
        const { status, json } = await send(at, method, `/v1/sandboxes/${id}`);
        expect([status, json.error]).toEqual([
          404,
          expect.objectContaining({ code: "not_found", remediation: expect.stringMatching(/./) }),
        ]);
      }
    }
  });
});

describe("live fork", () => {
  const at = useServer();
  const fork = (body: object) => post(at, "/v1/sandboxes/sb-1/fork", body);

  it("answers one child in the shape of a creation, with the source's template", async () => {
    expect((await fork({ id: "child", pause_source: true, template: "x" })).json).toMatchObject({
      id: "child",
      template_id: "python",
      parent_id: "sb-1",
    });
  });

  it("answers children with what the fork took when a count or ids are given", async () => {
    const answer = await fork({ count: 3 });
    expect(answer.json).toMatchObject({ paused_ms: 1.5, snapshot_bytes: 4096 });
    expect(new Set(answer.json.children.map((child: { id: string }) => child.id)).size).toBe(3);
    expect((await fork({ ids: ["a", "b"] })).json.children).toMatchObject([{ id: "a" }, { id: "b" }]);
  });

  it.each([
    {},
    { id: "../escape" },
    { count: 0 },
    { count: 101 },
    { ids: ["a", "a"] },
    { id: "a", ids: ["b"] },
    { count: 3, ids: ["a"] },
    { ids: [] },
    { id: "a", fork_budget: -1 },
    { id: "a", fork_budget: 1001 },
  ])("refuses %j", async (body) => {
    expect((await fork(body)).status).toBe(400);
    expect(at.engine.forks).toEqual([]);
  });

  it("leaves the child the rest of its parent's time unless asked otherwise", async () => {
    await fork({ id: "a" });
    await fork({ id: "b", timeout_seconds: null });
    await fork({ id: "c", timeout_seconds: 5, inherit_secrets: true });
    expect(at.engine.forks).toMatchObject([
      { timeoutSeconds: undefined },
      { timeoutSeconds: null },
      { timeoutSeconds: 5, inheritSecrets: true },
    ]);
  });

  it("answers 404 for an unknown source and 400 for an unsafe one", async () => {
    expect((await post(at, "/v1/sandboxes/nope/fork", { id: "a" })).status).toBe(404);
    expect((await post(at, "/v1/sandboxes/..%2fescape/fork", { id: "a" })).status).toBe(400);
  });
});

describe("idempotency", () => {
  const at = useServer();
  const key = { "Idempotency-Key": "0123456789abcdef0123456789abcdef" };

  it("answers a repetition with the first resource, whatever it asks for", async () => {
    expect((await post(at, "/v1/fork", { id: "a", template: "python" }, key)).json.id).toBe("a");
    expect((await post(at, "/v1/fork", { id: "b", template: "python" }, key)).json).toMatchObject({ id: "a", template_id: "live:a" });
    expect(at.engine.sandboxes.has("b")).toBe(false);
  });

  it("takes whatever a header can hold for a key, up to 1024 characters", async () => {
    for (const text of ["my key", "k".repeat(1024)]) {
      const of = { "Idempotency-Key": text };
      const id = `of-${text.length}`;
      expect((await post(at, "/v1/fork", { id, template: "python" }, of)).json.id).toBe(id);
      expect((await post(at, "/v1/fork", { id: "again", template: "python" }, of)).json.id).toBe(id);
    }
    const answer = await post(at, "/v1/fork", { id: "a", template: "python" }, { "Idempotency-Key": "k".repeat(1025) });
    expect([answer.status, answer.json.error.code]).toEqual([400, "invalid_input"]);
  });

  it("creates anew when the first resource is gone", async () => {
    await post(at, "/v1/fork", { id: "a", template: "python" }, key);
    await send(at, "DELETE", "/v1/sandboxes/a");
    expect((await post(at, "/v1/fork", { id: "b", template: "python" }, key)).json.id).toBe("b");
    expect((await post(at, "/v1/fork", { id: "c", template: "python" }, key)).json.id).toBe("b");
  });

  it("gives the key back when the creation fails", async () => {
    expect((await post(at, "/v1/fork", { id: "a", template: "nope" }, key)).status).toBe(404);
    expect((await post(at, "/v1/fork", { id: "a", template: "python" }, key)).status).toBe(200);
  });

  it("holds for live forks of several children and for templates", async () => {
    const first = await post(at, "/v1/sandboxes/sb-1/fork", { count: 2 }, key);
    const again = await post(at, "/v1/sandboxes/sb-1/fork", { count: 2 }, key);
    const ids = ({ json }: typeof first) => json.children.map((child: { id: string }) => child.id);
    expect(ids(again)).toEqual(ids(first));
    await post(at, "/v1/templates", { id: "t1" }, key);
    expect((await post(at, "/v1/templates", { id: "t2" }, key)).json.id).toBe("t1");
  });

  it("refuses a second request while the first is under way", async () => {
    at.engine.idempotency.begin("fork", key["Idempotency-Key"]);
    const answer = await post(at, "/v1/fork", { id: "a", template: "python" }, key);
    expect([answer.status, answer.json.error.code]).toEqual([409, "conflict"]);
  });
});

describe("life cycle", () => {
  const at = useServer({ maxExecTimeoutSeconds: 700 });

  it("sets a time-out, pauses and resumes", async () => {
    expect((await post(at, "/v1/set_timeout", { sandbox: "sb-1", timeout_seconds: 600 })).json).toEqual({
      status: "ok",
      deadline_unix: 1_700_000_600,
      timeout_seconds: 600,
    });
    expect((await post(at, "/v1/pause", { sandbox: "sb-1" })).json).toEqual({ status: "paused" });
    expect((await post(at, "/v1/resume", { sandbox: "sb-1" })).json).toEqual({ status: "running" });
  });

  it("refuses a time-out above the ceiling with both values", async () => {
    const { status, json } = await post(at, "/v1/set_timeout", { sandbox: "sb-1", timeout_seconds: 701 });
    expect(status).toBe(400);
    expect(json.error).toMatchObject({ code: "timeout_too_large", context: { sandbox: "sb-1", requested_s: 701, max_timeout_s: 700 } });
  });

  it("refuses one that is too large to count by the same words", async () => {
    for (const timeout_seconds of [2 ** 53, 1e300]) {
      const { status, json } = await post(at, "/v1/set_timeout", { sandbox: "sb-1", timeout_seconds });
      expect([status, json.error.code, json.error.context.requested_s]).toEqual([400, "timeout_too_large", timeout_seconds]);
    }
  });

  it.each(["set_timeout", "pause", "resume"])("answers an unknown sandbox on %s with 404, also one that cannot be", async (route) => {
    for (const sandbox of ["nope", "../x", "x".repeat(65)]) {
      const { status, json } = await post(at, `/v1/${route}`, { sandbox, timeout_seconds: 5 });
      expect([status, json.error.code]).toEqual([404, "not_found"]);
    }
    expect((await post(at, `/v1/${route}`, { sandbox: "", timeout_seconds: 5 })).json.error.code).toBe("invalid_input");
  });

  it.each(["", "{", "[]", '"x"', "null", "\xff"])("answers the body %j with invalid_json and a remedy", async (body) => {
    const { status, json } = await send(at, "POST", "/v1/pause", body);
    expect(status).toBe(400);
    expect(json.error).toMatchObject({ code: "invalid_json", remediation: expect.stringMatching(/./) });
  });

  it("answers a body above 32 MiB with body_too_large", async () => {
    const { status, json } = await send(at, "POST", "/v1/pause", Buffer.alloc(32 * 1024 * 1024 + 1, 32));
    expect([status, json.error.code]).toEqual([413, "body_too_large"]);
  });
});

describe("paths and methods", () => {
  const at = useServer();

  it("answers an unknown path with 404 in plain text, whatever the method", async () => {
    expect((await send(at, "PROPFIND", "/v1/nothing")).status).toBe(404);
    const { status, headers } = await get(at, "/v1/unknown");
    expect(status).toBe(404);
    expect(headers["content-type"]).toMatch(/^text\/plain/);
  });

  it.each([
    ["DELETE", "/v1/fork", "POST"],
    ["PUT", "/v1/templates", "POST, GET, HEAD"],
    ["POST", "/v1/health", "GET, HEAD"],
    ["POST", "/v1/sandboxes/sb-1", "GET, HEAD, DELETE"],
    ["TRACE", "/v1/templates", "POST, GET, HEAD"],
    ["PROPFIND", "/v1/sandboxes/sb-1", "GET, HEAD, DELETE"],
    ["QUERY", "/v1/fork", "POST"],
  ])("answers %s %s with 405 and Allow: %s", async (method, path, allow) => {
    const { status, headers } = await send(at, method, path);
    expect(status).toBe(405);
    expect(headers.allow).toBe(allow);
  });

  it("answers a method that nobody knows over HTTP/2 as well, and counts it under one name", async () => {
    const session = connectHttp2(at.url);
    for (const method of ["TRACE", "NO-SUCH-METHOD"]) {
      const stream = session.request({ ":method": method, ":path": "/v1/templates" }).resume().end();
      const [headers] = await once(stream, "response");
      expect([headers[":status"], headers.allow]).toEqual([405, "POST, GET, HEAD"]);
    }
    await new Promise<void>((resolve) => session.close(resolve));
    expect((await get(at, "/metrics")).text).toContain(`{method="OPTIONS",route="/v1/templates",status="405"} 2`);
  });

  it("answers malformed percent-encoding with 400, in the form of all errors", async () => {
    const { text, json, headers } = await get(at, "/v1/sandboxes/%zz");
    expect([json.error.code, headers["content-type"], text.at(-1)]).toEqual(["invalid_input", "application/json", "\n"]);
  });

  it("says in health, readiness and metrics what it is", async () => {
    expect((await get(at, "/v1/health")).json).toEqual({
      status: "ok",
      mock: true,
      templates: 1,
      sandboxes: 1,
      isolation: "mock",
      version: "test",
    });
    expect((await get(at, "/healthz")).text).toBe("ok (mock)\n");
    expect((await get(at, "/readyz")).status).toBe(200);
    const { text } = await get(at, "/metrics");
    expect(text).toMatch(/mitos_active_sandboxes\{state="running"\} 1/);
    expect(text).toMatch(/mitos_fork_duration_seconds_count\{kind="create"\} 1/);
  });
});

describe("a server without keys", () => {
  const at = useServer();

  it.each(["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "10.0.0.1", "[::2]", "bad host"])(
    "refuses the Host %s",
    async (host) => {
      const { status, json } = await get(at, "/v1/health", { Host: host });
      expect([status, json.error.code]).toEqual([403, "forbidden"]);
    },
  );

  it.each(["localhost", "localhost:9", "127.0.0.1:1", "127.9.9.9", "[::1]:80"])("accepts the Host %s", async (host) => {
    expect((await get(at, "/v1/health", { Host: host })).status).toBe(200);
  });

  it("accepts an Origin only if it equals the Host", async () => {
    const host = new URL(at.url).host;
    expect((await get(at, "/v1/health", { Origin: at.url })).status).toBe(200);
    expect((await get(at, "/v1/health", { Host: "localhost", Origin: "http://localhost:80" })).status).toBe(200);
    for (const origin of ["null", "http://evil.example", "http://127.0.0.1:1", `ftp://${host}`, `http://${host}.evil.example`]) {
      expect((await get(at, "/v1/health", { Origin: origin })).status).toBe(403);
    }
  });

  it("refuses to start on an address that is not loopback", async () => {
    for (const host of ["0.0.0.0", "::", "192.168.1.1", "example.com"]) {
      await expect(startServer({ engine: new FakeEngine().asEngine(), host, port: 0, log, version: "test" })).rejects.toMatchObject({
        code: "invalid_input",
      });
    }
  });
});
