import { readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { collect, events, get, post, send, useServer } from "../testing/harness.ts";

const auditLog = join(tmpdir(), `mitos-images-audit-${process.pid}.log`);
const at = useServer({ auditLog });
afterAll(() => rmSync(auditLog, { force: true }));

const digest = expect.stringMatching(/^sha256:[0-9a-f]{64}$/);

describe("images", () => {
  it("are pulled ahead of their first use, with events for who wants them, and listed", async () => {
    const image = {
      reference: "python:3.12",
      digest,
      layers: 2,
      root_bytes: 1000,
      pulled_at: expect.stringMatching(/Z$/),
      last_used_at: expect.stringMatching(/Z$/),
    };
    expect((await post(at, "/v1/images", { reference: "python:3.12" })).json).toEqual(image);
    const { lines } = await events(at, "/v1/images", { body: { reference: "python:3.12", pull: true } });
    expect(await collect(lines)).toEqual([
      { at_ms: expect.any(Number), kind: "phase", phase: "pull", detail: "python:3.12" },
      { at_ms: expect.any(Number), kind: "done", image },
    ]);
    expect(at.engine.builds.slice(-2).map(({ options }) => options.pull)).toEqual([false, true]);
    expect((await get(at, "/v1/images")).json).toEqual([image, image]);
  });

  it("are images also where their name is one of this server's", async () => {
    await post(at, "/v1/images", { reference: "python" });
    expect(at.engine.images.map(({ reference }) => reference)).toEqual(["python:latest"]);
  });

  it.each([{}, { reference: "" }, { reference: "A/B" }, { reference: "live:x" }, { reference: "a:1", pull: 1 }])(
    "are refused before anything is asked for when the request is %j",
    async (body) => {
      const answer = await post(at, "/v1/images", body);
      expect([answer.status, answer.json.error.code]).toEqual([400, "invalid_input"]);
      expect(at.engine.images).toEqual([]);
    },
  );
});

describe("names", () => {
  it.each([
    ["python", "template", ""],
    ["node", "host", ""],
    ["nonsense", "nothing", ""],
    ["redis:7", "image", "docker.io/library/redis:7"],
    ["bitnami/redis", "image", "docker.io/library/bitnami/redis:latest"],
  ])("%s means %s", async (name, means, reference) => {
    expect((await get(at, `/v1/names/${encodeURIComponent(name)}`)).json).toEqual({ name, means, reference });
  });

  it.each(["../x", "a b", "A/B", "live:sb-1", "x".repeat(300)])("%s is no name", async (name) => {
    const answer = await get(at, `/v1/names/${encodeURIComponent(name)}`);
    expect([answer.status, answer.json.error.code]).toEqual([400, "invalid_input"]);
  });
});

describe("the disk", () => {
  it("is told of by template and in total", async () => {
    expect((await get(at, "/v1/usage/disk")).json).toEqual({
      templates: [{ id: "python", snapshot_bytes: 4096, root_bytes: 1000, own_bytes: 10 }],
      totals: { layers: { count: 3, bytes: 3000, unused_bytes: 30 }, caches: { bytes: 7 }, snapshots: { bytes: 8 }, cache_bytes_max: 9 },
    });
  });

  it("is freed of what nothing uses, or has not used for so long", async () => {
    expect((await post(at, "/v1/prune", {})).json).toEqual({ removed_bytes: 37 });
    await post(at, "/v1/prune", { older_than_seconds: 3600 });
    expect(at.engine.prunes).toEqual([0, 3_600_000]);
    for (const older_than_seconds of [-1, 0.5, "1", 1e300]) expect((await post(at, "/v1/prune", { older_than_seconds })).status).toBe(400);
    expect(at.engine.prunes).toHaveLength(2);
  });
});

describe("the audit log", () => {
  it("has a line for each, without commands, values and code", async () => {
    const env = { type: "env", env_name: "TOKEN", env_value: "hidden-1" };
    const build_steps = [{ type: "run", run: "echo hidden-2" }, env];
    await post(at, "/v1/templates", { id: "app", image: "python:3.12", build_steps, warm: { language: "python", code: "hidden-3" } });
    await post(at, "/v1/templates", { id: "bad", image: "python:3.12", build_steps: [{ type: "run", run: "fail" }] });
    await post(at, "/v1/templates/app/push", { reference: "registry.example/app:1" });
    await post(at, "/v1/images", { reference: "redis:7" });
    await post(at, "/v1/prune", { older_than_seconds: 60 });
    const context = `sha256:${"0a".repeat(32)}`;
    await send(at, "PUT", `/v1/contexts/${context}`, "hidden-4");
    await at.server.close();
    const text = readFileSync(auditLog, "utf8");
    const lines = text
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines.slice(-6)).toMatchObject([
      { op: "create_template", detail: "template=app image=python:3.12 steps=2", ok: true },
      { op: "create_template", detail: "template=bad image=python:3.12 steps=1", ok: false },
      { op: "push_template", detail: "template=app reference=registry.example/app:1", ok: true },
      { op: "pull_image", detail: "reference=redis:7", ok: true },
      { op: "prune", detail: "older_than_seconds=60", bytes: 37, ok: true },
      { op: "put_context", detail: `digest=${context}`, bytes: 8, ok: true },
    ]);
    expect(text + at.logLines.join("\n")).not.toContain("hidden");
  });
});
