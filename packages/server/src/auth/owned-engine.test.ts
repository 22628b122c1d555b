import { createHash } from "node:crypto";
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
    ["GET", "/v1/sandboxes/<id>/console"],
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

describe("what is made of images and steps", () => {
  const run = (command: string) => ({ type: "run", run: command });
  const image = "python:3.12";
  let carol: Record<string, string>;
  let eve: Record<string, string>;
  beforeEach(() => {
    // Of the same organisation as alice, and of another one.
    carol = bearer(makeKey(at, { owner: "carol" }));
    eve = bearer(makeKey(at, { owner: "eve", organisation: "other" }));
  });
  const names = async (headers: Record<string, string>) =>
    (await get(at, "/v1/templates", headers)).json.map(({ id }: { id: string }) => id);

  it.each<[string, object]>([
    ["steps", { image, build_steps: [run("x")] }],
    ["code that ran before it was saved", { image, warm: { language: "python", code: "import secret" } }],
    ["the image's own program", { image, workload: { entrypoint: true } }],
    ["another template", { image: "base-of-hers" }],
  ])("a template with %s is its organisation's", async (_title, definition) => {
    await post(at, "/v1/templates", { id: "base-of-hers", image, build_steps: [run("x")] }, alice);
    expect((await post(at, "/v1/templates", { id: "app", ...definition }, alice)).status).toBe(200);
    expect(await names(carol)).toContain("app");
    expect(await names(eve)).toEqual(["python"]);
    const ask = async (template: string) => comparable(await post(at, "/v1/fork", { id: "e-1", template }, eve), template);
    expect((await ask("app")).status).toBe(404);
    expect(await ask("app")).toEqual(await ask("none"));
    expect((await post(at, "/v1/fork", { id: "c-1", template: "app" }, carol)).status).toBe(200);
    const usage = async (headers: Record<string, string>) => (await get(at, "/v1/usage/disk", headers)).json;
    expect((await usage(carol)).templates.map(({ id }: { id: string }) => id)).toContain("app");
    expect(await usage(eve)).toEqual({ templates: [expect.objectContaining({ id: "python" })] });
    expect((await usage(at.admin)).totals).toMatchObject({ caches: { bytes: 7 } });
  });

  it("a template that is an image and nothing else is everybody's", async () => {
    for (const [id, from] of [
      [image, undefined],
      ["node", "node"],
      ["web", "nginx:1"],
    ])
      await post(at, "/v1/templates", { id, image: from }, alice);
    expect(await names(eve)).toEqual(["python", image, "node", "web"]);
    expect((await post(at, "/v1/fork", { id: "e-1", template: "web" }, eve)).status).toBe(200);
  });

  it("no template is made of one that its maker does not see, nor is it said what that name means", async () => {
    await post(at, "/v1/templates", { id: "hers", image, build_steps: [run("x")] }, alice);
    const made = at.engine.builds.length;
    expect(await post(at, "/v1/templates", { id: "mine", image: "hers" }, eve)).toMatchObject({
      status: 404,
      json: { error: { code: "not_found", cause: "the name hers means nothing here" } },
    });
    expect(at.engine.builds).toHaveLength(made);
    expect((await get(at, "/v1/names/hers", eve)).json).toEqual({ name: "hers", means: "nothing", reference: "" });
    expect((await get(at, "/v1/names/hers", carol)).json).toMatchObject({ means: "template" });
    expect((await post(at, "/v1/templates", { id: "mine", image: "hers" }, carol)).status).toBe(200);
  });

  it("an image is an image to everybody, also where somebody has made a template under its reference", async () => {
    await post(at, "/v1/templates", { id: image, image, build_steps: [run("x")] }, alice);
    expect((await post(at, "/v1/templates", { id: "mine", image }, eve)).status).toBe(200);
    expect(at.engine.builds.at(-1)?.request).toMatchObject({ id: "mine", image });
  });

  it("a template of another owner is not replaced by something private, not even for a moment", async () => {
    await post(at, "/v1/templates", { id: "web", image }, alice);
    const made = at.engine.builds.length;
    for (const other of [bob, eve]) {
      expect((await post(at, "/v1/templates", { id: "web", image, build_steps: [run("gated")] }, other)).status).toBe(403);
      expect((await post(at, "/v1/templates", { id: "web", image }, other)).status).toBe(200);
    }
    expect(at.engine.builds).toHaveLength(made + 2);
    expect(await names(eve)).toContain("web");
  });

  it("a public template is not given away to others while a private one is about to take its place", async () => {
    await post(at, "/v1/templates", { id: "web", image }, alice);
    const change = post(at, "/v1/templates", { id: "web", image, build_steps: [run("gated")] }, alice);
    await expect.poll(() => at.engine.events.get("web")?.length).toBe(2);
    expect((await post(at, "/v1/fork", { id: "e-1", template: "web" }, eve)).status).toBe(404);
    expect((await post(at, "/v1/fork", { id: "c-1", template: "web" }, carol)).status).toBe(200);
    at.engine.buildGate.resolve();
    expect((await change).status).toBe(200);
    expect((await post(at, "/v1/fork", { id: "e-1", template: "web" }, eve)).status).toBe(404);
  });

  it("events of a build are for those who see what comes of it, also when it fails", async () => {
    const steps = { image, build_steps: [run("fail")] };
    const status = async (id: string, headers: Record<string, string>) => (await get(at, `/v1/templates/${id}/events`, headers)).status;
    await post(at, "/v1/templates", { id: "bad", ...steps }, alice);
    expect([await status("bad", carol), await status("bad", at.admin)]).toEqual([200, 200]);
    const foreign = await get(at, "/v1/templates/bad/events", eve);
    expect(comparable(foreign, "bad")).toEqual(comparable(await get(at, "/v1/templates/none/events", eve), "none"));
    expect(foreign.status).toBe(404);
    // What everybody may use can still be changed in private.
    await post(at, "/v1/templates", { id: "web", image }, alice);
    expect(await status("web", eve)).toBe(200);
    await post(at, "/v1/templates", { id: "web", ...steps }, alice);
    expect([await status("web", eve), await status("web", carol)]).toEqual([404, 200]);
    // A request that comes to nothing changes nothing about it.
    await post(at, "/v1/templates", { id: "bad", image: "nowhere" }, eve);
    expect([await status("bad", eve), await status("bad", carol)]).toEqual([404, 200]);
  });

  it("the owner of a template stays, whoever changes it", async () => {
    await post(at, "/v1/templates", { id: "app", image, build_steps: [run("x")] }, alice);
    await post(at, "/v1/templates", { id: "app", image, build_steps: [run("y")] }, at.admin);
    expect(at.engine.templates.get("app")?.owner).toEqual({ owner: "alice", organisation: "acme" });
    expect(await names(carol)).toContain("app");
  });

  it("builds of one owner are so many at a time, those of the same name one, and what is there takes no place", async () => {
    const there = { id: "there", image, workload: { command: ["serve"] }, build_steps: [run("x")] };
    await post(at, "/v1/templates", there, alice);
    const build = (id: string, headers = alice) => post(at, "/v1/templates", { id, image, build_steps: [run("gated")] }, headers);
    const builds = Array.from({ length: limits.buildsPerOwnerMax }, (_, n) => build(`t-${n}`));
    await expect.poll(() => at.engine.builds.filter(({ request }) => request.id.startsWith("t-")).length).toBe(limits.buildsPerOwnerMax);
    const again = build("t-0");
    const context = { op: "create_template", dimension: "builds", limit: limits.buildsPerOwnerMax };
    const refused = await build("t-more");
    expect(refused).toMatchObject({ status: 429, headers: { "retry-after": "5" }, json: { error: { code: "quota_exceeded", context } } });
    const early = await post(at, "/v1/templates", { id: "t-more", image }, { ...alice, Accept: "application/x-ndjson" });
    expect(early.status).toBe(429);
    expect((await post(at, "/v1/images", { reference: image }, alice)).status).toBe(429);
    for (const definition of [there, { id: "python" }]) expect((await post(at, "/v1/templates", definition, alice)).status).toBe(200);
    for (const change of [{ no_cache: true }, { pull: true }, { image: "python:3.13" }])
      expect((await post(at, "/v1/templates", { ...there, ...change }, alice)).status).toBe(429);
    expect((await post(at, "/v1/templates", { id: "b-1", image }, bob)).status).toBe(200);
    at.engine.buildGate.resolve();
    expect((await Promise.all([...builds, again])).map(({ status }) => status)).toEqual(Array(limits.buildsPerOwnerMax + 1).fill(200));
    expect((await build("t-more")).status).toBe(200);
  });

  describe("the files of a build", () => {
    const tar = Buffer.alloc(1024, 7);
    const digest = `sha256:${createHash("sha256").update(tar).digest("hex")}`;
    const path = `/v1/contexts/${digest}`;
    const build = (headers: Record<string, string>) => {
      const copy = { type: "copy", source: "a", dest: "/a", context: digest };
      return post(at, "/v1/templates", { id: "app", image, build_steps: [copy] }, headers);
    };
    const isKnown = async (headers: Record<string, string>) => (await send(at, "HEAD", path, undefined, headers)).status === 200;

    it("are known to who has sent them, and to others only once they have sent the same", async () => {
      expect((await send(at, "PUT", path, tar, alice)).status).toBe(200);
      expect([await isKnown(alice), await isKnown(bob), await isKnown(eve), await isKnown(at.admin)]).toEqual([true, false, false, true]);
      expect((await build(eve)).json.error).toMatchObject({ code: "not_found", context: { step: 0, digest } });
      expect((await send(at, "PUT", path, tar, eve)).status).toBe(200);
      expect([await isKnown(eve), await isKnown(bob)]).toEqual([true, false]);
      expect((await build(eve)).status).toBe(200);
    });

    it("are not had by their digest alone, also where the engine has them and reads no more", async () => {
      await send(at, "PUT", path, tar, alice);
      for (const wrong of ["", "x", tar.subarray(1)]) {
        const answer = await send(at, "PUT", path, wrong, eve);
        expect([answer.status, answer.json.error.code]).toEqual([400, "invalid_input"]);
        expect(await isKnown(eve)).toBe(false);
      }
    });

    it("that the engine has removed have to be sent again", async () => {
      await send(at, "PUT", path, tar, alice);
      at.engine.contexts.clear();
      expect(await isKnown(alice)).toBe(false);
      expect((await build(alice)).status).toBe(404);
    });
  });
});
