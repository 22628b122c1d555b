import { once } from "node:events";
import { readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { limits } from "@mitos/protocol";
import { afterAll, beforeEach, describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { type Answer, bearer, get, makeKey, post, send, stream, streamAll, unary, useServer } from "../testing/harness.ts";

const auditLog = join(tmpdir(), `mitos-owned-audit-${process.pid}.log`);
const at = useServer({ auth: true, auditLog, maxStreamsPerSandbox: 1 });
afterAll(() => rmSync(auditLog, { force: true }));

let alice: Record<string, string>;
let bob: Record<string, string>;
beforeEach(async () => {
  alice = bearer(makeKey(at, { owner: "alice" }));
  bob = bearer(makeKey(at, { owner: "bob" }));
  await post(at, "/v1/fork", { id: "a-1", template: "python", metadata: { team: "x" } }, alice);
  await post(at, "/v1/sandboxes/a-1/fork", { ids: ["a-2"] }, alice);
});

/** The same answer, but for the id and what differs from one request to the next. */
function comparable({ status, headers, text }: Answer, id: string) {
  const { date: _, "x-request-id": __, "content-length": ___, ...rest } = headers;
  return { status, headers: rest, text: text.replaceAll(id, "<id>") };
}

describe("what belongs to another owner", () => {
  const requests: readonly [string, string, unknown?][] = [
    ["GET", "/v1/sandboxes/<id>"],
    ["GET", "/v1/sandboxes/<id>/tree"],
    ["DELETE", "/v1/sandboxes/<id>"],
    ["DELETE", "/v1/sandboxes/<id>?subtree=true"],
    ["POST", "/v1/sandboxes/<id>/fork", { count: 2 }],
    ["POST", "/v1/fork", { id: "b-9", template: "live:<id>" }],
    ["POST", "/v1/pause", { sandbox: "<id>" }],
    ["POST", "/v1/resume", { sandbox: "<id>" }],
    ["POST", "/v1/set_timeout", { sandbox: "<id>", timeout_seconds: 5 }],
    ["GET", "/v1/sandboxes/<id>/files?path=/etc/hosts"],
    ["HEAD", "/v1/sandboxes/<id>/files?path=/etc/hosts"],
    ["PUT", "/v1/sandboxes/<id>/files?path=/x", {}],
    ["GET", "/v1/sandboxes/<id>/processes"],
    ["POST", "/v1/sandboxes/<id>/processes", { command: "x" }],
    ["GET", "/v1/sandboxes/<id>/processes/42/output"],
    ["POST", "/v1/sandboxes/<id>/processes/42/stdin", { data: "eA==" }],
    ["POST", "/v1/sandboxes/<id>/processes/42/signal", { signal: 9 }],
    ["POST", "/v1/sandboxes/<id>/processes/42/resize", { cols: 80, rows: 24 }],
  ];

  it.each(requests)("is to %s %s as if it did not exist", async (method, path, body) => {
    const ask = (id: string) => {
      const text = body === undefined ? undefined : JSON.stringify(body).replaceAll("<id>", id);
      return send(at, method, path.replaceAll("<id>", id), text, bob);
    };
    const foreign = await ask("a-1");
    expect(foreign.status).toBe(404);
    expect(comparable(foreign, "a-1")).toEqual(comparable(await ask("none"), "none"));
    expect((await get(at, "/v1/sandboxes/a-1", alice)).json).toMatchObject({ state: "running", children: ["a-2"], deadline_unix: null });
    expect(at.engine.runtimes.get("a-1")).toMatchObject({ starts: [], signals: [] });
  });

  it.each(["Stat", "List", "Mkdir", "Remove", "Processes"])("is to the RPC %s as if it did not exist", async (rpc) => {
    const message = rpc === "Processes" ? {} : { path: "/x" };
    const ask = async (id: string) => comparable(await unary(at, rpc, message, { ...bob, "X-Sandbox-Id": id }), id);
    expect((await ask("a-1")).status).toBe(404);
    expect(await ask("a-1")).toEqual(await ask("none"));
  });

  it.each([
    ["ExecStream", { command: "echo" }],
    ["RunCodeStream", { code: "1" }],
    ["ReadFile", { path: "/x" }],
    ["Vitals", {}],
  ])("is to the stream %s as if it did not exist, also while its streams are all taken", async (rpc, message) => {
    const client = new AbortController();
    const busy = await stream(at, "ExecStream", [{ command: "forever" }], {
      headers: { ...alice, "X-Sandbox-Id": "a-1" },
      signal: client.signal,
    });
    await busy.frames.next();
    const ask = async (id: string) =>
      JSON.stringify(await streamAll(at, rpc, [message], { ...bob, "X-Sandbox-Id": id })).replaceAll(id, "<id>");
    expect(await ask("a-1")).toMatch(/"not_found"/);
    expect(await ask("a-1")).toBe(await ask("none"));
    client.abort();
  });

  it("is to a WebSocket as if it did not exist", async () => {
    const ask = async (id: string) => {
      const socket = new WebSocket(`${at.url.replace("http", "ws")}/sandbox.v1.Sandbox/Exec?sandbox=${id}`, { headers: bob });
      const [request, response] = await once(socket, "unexpected-response");
      let text = "";
      for await (const data of response) text += data;
      request.destroy();
      return `${response.statusCode} ${text.replaceAll(id, "<id>")}`;
    };
    expect(await ask("a-1")).toMatch(/^404 /);
    expect(await ask("a-1")).toBe(await ask("none"));
  });

  it("is in no list, count or figure", async () => {
    expect((await get(at, "/v1/sandboxes", bob)).json).toEqual([]);
    expect((await get(at, "/v1/sandboxes?metadata.team=x", bob)).json).toEqual([]);
    expect((await get(at, "/v1/sandboxes?parent=a-1", bob)).json).toEqual([]);
    expect((await get(at, "/v1/health", bob)).json).toMatchObject({ sandboxes: 0 });
    expect((await get(at, "/v1/sandboxes", alice)).json.map((row: { id: string }) => row.id)).toEqual(["a-1", "a-2"]);
  });

  it("is in no report of what is used, and /metrics, which names all of them, is the administrator's", async () => {
    await post(at, "/v1/templates", { id: "hers", workload: { command: ["serve"] } }, alice);
    await post(at, "/v1/fork", { id: "e-1", template: "python" }, bearer(makeKey(at, { owner: "eve", organisation: "other" })));
    await post(at, "/v1/fork", { id: "b-1", template: "python" }, bob);
    const report = async (headers: Record<string, string>) => {
      const { json } = await get(at, "/v1/metering", headers);
      const names = (rows: Record<string, string>[], member: string) => rows.map((row) => row[member]);
      return { sandboxes: names(json.Sandboxes, "ID"), templates: names(json.Templates, "Template"), total: json.TotalUnique };
    };
    // A template with a workload is of its organisation.
    expect(await report(alice)).toEqual({ sandboxes: ["a-1", "a-2"], templates: ["hers", "python"], total: 200 });
    expect(await report(bob)).toEqual({ sandboxes: ["b-1"], templates: ["hers", "python"], total: 100 });
    const eve = bearer(makeKey(at, { owner: "eve", organisation: "other" }));
    expect(await report(eve)).toEqual({ sandboxes: ["e-1"], templates: ["python"], total: 100 });
    expect((await report(at.admin)).sandboxes).toEqual(["a-1", "a-2", "b-1", "e-1", "sb-1"]);
    const refused = await get(at, "/metrics", alice);
    expect([refused.status, refused.json.error.code, refused.json.error.cause]).toEqual([
      403,
      "forbidden",
      expect.stringContaining("needs the scope admin"),
    ]);
    expect((await get(at, "/metrics", at.admin)).text).toContain('sandbox="a-1"');
  });

  it("keeps its id to itself: who wants the same one learns that it is in use, and no more", async () => {
    const taken = await post(at, "/v1/fork", { id: "a-1", template: "python" }, bob);
    expect(taken.status).toBe(409);
    expect(taken.text).not.toMatch(/alice|acme/);
  });
});

describe("ownership", () => {
  it("is the key's owner and organisation, so other keys of the same see the same, and an owner of that name elsewhere does not", async () => {
    expect((await get(at, "/v1/sandboxes/a-1", bearer(makeKey(at, { owner: "alice" })))).status).toBe(200);
    expect((await get(at, "/v1/sandboxes/a-1", bearer(makeKey(at, { owner: "alice", organisation: "other" })))).status).toBe(404);
  });

  it("does not hide anything from an admin, whose forks stay with the owner of the parent", async () => {
    expect((await get(at, "/v1/sandboxes", at.admin)).json).toHaveLength(3);
    expect((await post(at, "/v1/sandboxes/a-1/fork", { ids: ["a-3"] }, at.admin)).status).toBe(200);
    expect((await get(at, "/v1/sandboxes/a-3", alice)).status).toBe(200);
    expect((await get(at, "/v1/sandboxes/a-1/tree", alice)).json.children.map((child: { id: string }) => child.id)).toEqual(["a-2", "a-3"]);
    expect((await post(at, "/v1/fork", { id: "r-1", template: "python" }, at.admin)).status).toBe(200);
    expect((await get(at, "/v1/sandboxes/r-1", alice)).status).toBe(404);
  });

  it("of a fork budget is the key that gave it, also to the fork of an admin", async () => {
    const idOf = (headers: Record<string, string>) => at.engine.keys.find(headers.Authorization!.slice(7))!.id;
    await post(at, "/v1/fork", { id: "a-7", template: "python", fork_budget: 2 }, alice);
    await post(at, "/v1/sandboxes/a-7/fork", { id: "a-8", fork_budget: 1 }, at.admin);
    expect(at.engine.creates.at(-1)).toMatchObject({ forkBudget: 2, budgetKeyId: idOf(alice) });
    expect(at.engine.forks.at(-1)).toMatchObject({ forkBudget: 1, budgetKeyId: idOf(at.admin) });
  });

  it("separates Idempotency-Keys", async () => {
    const key = { "Idempotency-Key": "same" };
    expect((await post(at, "/v1/fork", { id: "a-9", template: "python" }, { ...alice, ...key })).json.id).toBe("a-9");
    expect((await post(at, "/v1/fork", { id: "b-9", template: "python" }, { ...bob, ...key })).json.id).toBe("b-9");
    expect((await post(at, "/v1/fork", { id: "a-8", template: "python" }, { ...alice, ...key })).json.id).toBe("a-9");
  });

  it("is on the lines of the audit log, with the key's id", async () => {
    await streamAll(at, "ExecStream", [{ command: "echo" }], { ...alice, "X-Sandbox-Id": "a-1" });
    await send(at, "DELETE", "/v1/sandboxes/a-1", undefined, bob);
    await send(at, "DELETE", "/v1/sandboxes/a-1", undefined, alice);
    await at.server.close();
    const lines = readFileSync(auditLog, "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line))
      .slice(-5);
    const keyOf = (headers: Record<string, string>) => at.engine.keys.find(headers.Authorization!.slice(7))!.id;
    const by = (headers: Record<string, string>, owner: string) => ({ key_id: keyOf(headers), owner, organisation: "acme" });
    expect(lines).toMatchObject([
      { op: "create", sandbox_id: "a-1", detail: "template=python", ok: true, ...by(alice, "alice") },
      { op: "fork", sandbox_id: "a-1", detail: "children=a-2", ok: true, ...by(alice, "alice") },
      { op: "exec", sandbox_id: "a-1", ok: true, ...by(alice, "alice") },
      { op: "terminate", sandbox_id: "a-1", ok: false, ...by(bob, "bob") },
      { op: "terminate", sandbox_id: "a-1", ok: true, ...by(alice, "alice") },
    ]);
  });
});

describe("templates", () => {
  const workload = { command: ["serve"], env: { TOKEN: "x" } };

  it("without a workload are everybody's to use, and their owner's to delete", async () => {
    await post(at, "/v1/templates", { id: "big", resources: { mem_size_mib: 1024 } }, alice);
    const elsewhere = bearer(makeKey(at, { owner: "eve", organisation: "other" }));
    expect((await post(at, "/v1/fork", { id: "e-1", template: "big" }, elsewhere)).status).toBe(200);
    expect(await send(at, "DELETE", "/v1/templates/big", undefined, elsewhere)).toMatchObject({
      status: 403,
      json: { error: { code: "forbidden", context: { op: "delete_template" } } },
    });
    expect((await send(at, "DELETE", "/v1/templates/big", undefined, alice)).status).toBe(200);
  });

  it("are so many to an owner, and not one more", async () => {
    const add = (id: string) => post(at, "/v1/templates", { id }, alice);
    for (let n = 0; n < limits.templatesPerOwnerMax; n++) expect((await add(`t-${n}`)).status).toBe(200);
    const context = { op: "create_template", dimension: "templates", limit: limits.templatesPerOwnerMax };
    expect(await add("t-more")).toMatchObject({ status: 429, json: { error: { code: "quota_exceeded", context } } });
    // What exists can be made again, as clients do before each sandbox.
    expect((await add("t-1")).status).toBe(200);
    expect((await post(at, "/v1/templates", { id: "b-0" }, bob)).status).toBe(200);
    await send(at, "DELETE", "/v1/templates/t-1", undefined, alice);
    expect((await add("t-more")).status).toBe(200);
  });

  it("with a workload are their organisation's: others find none, and cannot take the name", async () => {
    await post(at, "/v1/templates", { id: "app", workload }, alice);
    expect((await post(at, "/v1/fork", { id: "b-1", template: "app" }, bob)).status).toBe(200);
    const eve = bearer(makeKey(at, { owner: "eve", organisation: "other" }));
    const ask = async (template: string) => comparable(await post(at, "/v1/fork", { id: "e-1", template }, eve), template);
    expect((await ask("app")).status).toBe(404);
    expect(await ask("app")).toEqual(await ask("none"));
    expect((await get(at, "/v1/templates", eve)).json.map(({ id }: { id: string }) => id)).toEqual(["python"]);
    expect((await send(at, "DELETE", "/v1/templates/app", undefined, eve)).status).toBe(404);
    expect((await post(at, "/v1/templates", { id: "app" }, eve)).status).toBe(403);
    expect((await send(at, "DELETE", "/v1/templates/app", undefined, at.admin)).status).toBe(200);
  });
});
