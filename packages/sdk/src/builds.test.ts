import { describe, expect, it } from "vitest";
import { type FakeServer, json, type Respond, startFakeServer } from "../test/fake-server.ts";
import type { BuildEvent } from "./builds.ts";
import { closeNames } from "./create.ts";
import { NotFoundError, RequestCanceledError } from "./errors.ts";
import { create, SandboxServer } from "./index.ts";

const lines =
  (...rows: object[]): Respond =>
  (_request, response) =>
    response.writeHead(200, { "Content-Type": "application/x-ndjson" }).end(rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
const client = (server: FakeServer) => new SandboxServer(server.url, "mitos_sk_key");
const template = { id: "app", ready: true, created_at: "2026-01-01T00:00:00Z", creation_time_ms: 12 };

describe("a build whose events are asked for", () => {
  it("tells them as they come, and resolves with the template of the last one", async () => {
    const rows = [
      { at_ms: 1, kind: "phase", phase: "pull", detail: "docker.io/library/python:3.12" },
      { at_ms: 2, kind: "layer", digest: "sha256:a", state: "downloading", done_bytes: 5, total_bytes: 10 },
      { at_ms: 3, kind: "step", index: 0, count: 2, type: "run", label: "make", state: "running", ms: 0 },
      { at_ms: 4, kind: "log", step: 0, stream: "stderr", text: "warn\n" },
      { at_ms: 5, kind: "log", step: null, stream: "stdout", text: "started\n" },
      { at_ms: 6, kind: "warning", text: "w" },
      { at_ms: 7, kind: "alive" },
      { at_ms: 8, kind: "of the future", x: 1 },
      { at_ms: 9, kind: "done", template },
    ];
    await using server = await startFakeServer(lines(...rows));
    const told: BuildEvent[] = [];
    const info = await client(server).createTemplate("app", { image: "python:3.12", onEvent: (event) => told.push(event) });
    expect(info).toMatchObject({ id: "app", ready: true, creationTimeMs: 12 });
    expect(server.requests[0]?.headers).toMatchObject({ accept: "application/x-ndjson", "idempotency-key": expect.any(String) });
    expect(told).toEqual([
      { atMs: 1, kind: "phase", phase: "pull", detail: "docker.io/library/python:3.12" },
      { atMs: 2, kind: "layer", digest: "sha256:a", state: "downloading", doneBytes: 5, totalBytes: 10 },
      { atMs: 3, kind: "step", index: 0, count: 2, type: "run", label: "make", state: "running", ms: 0 },
      { atMs: 4, kind: "log", step: 0, stream: "stderr", text: "warn\n" },
      { atMs: 5, kind: "log", step: null, stream: "stdout", text: "started\n" },
      { atMs: 6, kind: "warning", text: "w" },
      { atMs: 9, kind: "done", creationTimeMs: 12 },
    ]);
  });

  it("is answered at its end by a server that knows no events", async () => {
    await using server = await startFakeServer((_request, response) => json(response, 200, template));
    const told: BuildEvent[] = [];
    const info = await client(server).createTemplate("app", { onEvent: (event) => told.push(event) });
    expect({ info, told }).toEqual({ info: expect.objectContaining({ id: "app", ready: true }), told: [] });
  });

  it("rejects with what the last one says of the failure", async () => {
    const error = {
      code: "build_failed",
      message: "a template could not be built",
      cause: "step 1",
      remediation: "r",
      context: { step: 1 },
    };
    await using server = await startFakeServer(lines({ at_ms: 1, kind: "failed", error }));
    await expect(client(server).createTemplate("app", { onEvent: () => {} })).rejects.toMatchObject({
      code: "build_failed",
      status: 422,
      errorCause: "step 1",
      remediation: "r",
      context: { step: 1 },
    });
    const missing = { code: "not_found", message: "m", remediation: "r" };
    await using other = await startFakeServer(lines({ at_ms: 1, kind: "failed", error: missing }));
    await expect(client(other).createTemplate("app", { onEvent: () => {} })).rejects.toBeInstanceOf(NotFoundError);
  });

  it("that break off reject, whether at the end of a line or in one", async () => {
    await using server = await startFakeServer(lines({ at_ms: 1, kind: "warning", text: "w" }));
    await expect(client(server).createTemplate("app", { onEvent: () => {} })).rejects.toMatchObject({ code: "transport_error" });
    await using cutting = await startFakeServer((_request, response) => {
      response.writeHead(200, { "Content-Type": "application/x-ndjson", "Content-Length": 100 });
      response.write('{"kind":"warning"', () => response.destroy());
    });
    await expect(client(cutting).createTemplate("app", { onEvent: () => {} })).rejects.toMatchObject({ code: "transport_error" });
  });

  it("is left by its signal, which closes the connection", async () => {
    const closed = Promise.withResolvers<void>();
    const controller = new AbortController();
    await using server = await startFakeServer((_request, response) => {
      response.on("close", () => closed.resolve());
      response.writeHead(200, { "Content-Type": "application/x-ndjson" });
      response.write('{"at_ms":1,"kind":"warning","text":"w"}\n');
    });
    const building = client(server).createTemplate("app", {
      signal: controller.signal,
      onEvent: () => controller.abort(new Error("enough")),
    });
    await expect(building).rejects.toBeInstanceOf(RequestCanceledError);
    await closed.promise;
  });
});

it("a build whose events nobody asks for is one request and one answer", async () => {
  const source = { kind: "build", reference: "docker.io/library/python:3.12", digest: "sha256:d", layers: 5, root_bytes: 100 };
  await using server = await startFakeServer((_request, response) =>
    json(response, 200, { ...template, source, snapshot_bytes: 7, warnings: ["w"] }),
  );
  const steps = [{ type: "copy", source: "a", dest: "/", context: "sha256:c" }] as const;
  expect(await client(server).createTemplate("app", { image: "python:3.12", steps })).toEqual({
    id: "app",
    ready: true,
    createdAt: template.created_at,
    creationTimeMs: 12,
    source: { kind: "build", reference: "docker.io/library/python:3.12", digest: "sha256:d", layers: 5, rootBytes: 100 },
    snapshotBytes: 7,
    warnings: ["w"],
  });
  expect(server.requests[0]?.headers.accept).not.toContain("ndjson");
  expect(server.requests[0]?.json()).toEqual({ id: "app", init_wait_seconds: 5, image: "python:3.12", build_steps: steps });
});

it("events of an earlier build are read by its name", async () => {
  await using server = await startFakeServer(
    lines({ at_ms: 1, kind: "log", step: 0, stream: "stdout", text: "t" }, { kind: "done", creation_time_ms: 3 }),
  );
  const told: BuildEvent[] = [];
  for await (const event of client(server).templateEvents("python:3.12", { follow: true })) told.push(event);
  expect(server.requests[0]?.path).toBe("/v1/templates/python%3A3.12/events?follow=true");
  expect(told.map(({ kind }) => kind)).toEqual(["log", "done"]);
});

describe("SandboxServer", () => {
  const image = { reference: "docker.io/library/a:1", digest: "sha256:d", layers: 2, root_bytes: 3, pulled_at: "p", last_used_at: "l" };
  const imageInfo = { reference: "docker.io/library/a:1", digest: "sha256:d", layers: 2, rootBytes: 3, pulledAt: "p", lastUsedAt: "l" };

  it("pulls an image with events and without", async () => {
    await using server = await startFakeServer((_request, response) => json(response, 200, image));
    expect(await client(server).pullImage("a:1", { pull: true })).toEqual(imageInfo);
    expect(server.requests[0]).toMatchObject({ method: "POST", path: "/v1/images" });
    expect(server.requests[0]?.json()).toEqual({ reference: "a:1", pull: true });
    await using streaming = await startFakeServer(lines({ at_ms: 1, kind: "done", image }));
    expect(await client(streaming).pullImage("a:1", { onEvent: () => {} })).toEqual(imageInfo);
  });

  it("pushes a template with events and without", async () => {
    const pushed = { reference: "registry.example/a:1", digest: "sha256:d" };
    await using server = await startFakeServer((_request, response) => json(response, 200, pushed));
    expect(await client(server).pushTemplate("app", "registry.example/a:1")).toEqual(pushed);
    expect(server.requests[0]?.path).toBe("/v1/templates/app/push");
    await using streaming = await startFakeServer(lines({ at_ms: 1, kind: "done", ...pushed }));
    expect(await client(streaming).pushTemplate("app", "registry.example/a:1", { onEvent: () => {} })).toEqual(pushed);
  });

  it("lists images, says what names mean and what the disk holds, and prunes", async () => {
    const answers: Record<string, unknown> = {
      "/v1/images": [image],
      "/v1/names/python": { name: "python", means: "host", reference: "" },
      "/v1/usage/disk": {
        templates: [{ id: "app", snapshot_bytes: 1, root_bytes: 2, own_bytes: 3 }],
        totals: {
          layers: { count: 4, bytes: 5, unused_bytes: 6 },
          caches: { bytes: 7 },
          snapshots: { bytes: 8 },
          cache_bytes_max: 9,
        },
      },
      "/v1/prune": { removed_bytes: 10 },
    };
    await using server = await startFakeServer((request, response) => json(response, 200, answers[request.path]));
    expect(await client(server).listImages()).toEqual([imageInfo]);
    expect(await client(server).meaningOf("python")).toEqual({ name: "python", means: "host", reference: "" });
    expect(await client(server).diskUsage()).toEqual({
      templates: [{ id: "app", snapshotBytes: 1, rootBytes: 2, ownBytes: 3 }],
      totals: { layers: { count: 4, bytes: 5, unusedBytes: 6 }, caches: { bytes: 7 }, snapshots: { bytes: 8 }, cacheBytesMax: 9 },
    });
    expect(await client(server).prune({ olderThanSeconds: 60 })).toBe(10);
    expect(server.requests.at(-1)?.json()).toEqual({ older_than_seconds: 60 });
  });
});

describe("create, of a name that is no template yet", () => {
  const refusal = { error: { code: "not_found", message: "m", cause: "pyton means nothing here", remediation: "r" } };

  it("asks for what the name means, not for a new template of any content", async () => {
    await using server = await startFakeServer((_request, response) => json(response, 404, refusal));
    await create("python:3.12-slim", { baseUrl: server.url }).catch(() => undefined);
    expect(server.requests.map(({ path }) => path)).toEqual(["/v1/fork", "/v1/templates"]);
    expect(server.requests[1]?.json()).toEqual({ id: "python:3.12-slim", image: "python:3.12-slim", init_wait_seconds: 5 });
  });

  it("tells what happens while its template is made, where somebody listens", async () => {
    let isMade = false;
    await using server = await startFakeServer((request, response) => {
      if (request.path === "/v1/fork") return isMade ? json(response, 200, { id: request.json().id }) : json(response, 404, refusal);
      isMade = true;
      return lines({ at_ms: 1, kind: "phase", phase: "pull", detail: "d" }, { at_ms: 2, kind: "done", template })(request, response);
    });
    const told: string[] = [];
    await create({ template: "python:3.12", baseUrl: server.url, onEvent: ({ kind }) => told.push(kind) });
    expect(told).toEqual(["phase", "done"]);
  });

  it("that means nothing rejects with the names that are close to it", async () => {
    await using server = await startFakeServer((request, response) =>
      request.method === "GET" ? json(response, 200, [{ id: "pyton2" }, { id: "other" }]) : json(response, 404, refusal),
    );
    const error = await create("pyton", { baseUrl: server.url }).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(NotFoundError);
    expect(error).toMatchObject({ errorCause: "pyton means nothing here", remediation: "Did you mean python or pyton2? r" });
  });

  it.each([
    ["pyhton", ["python"]],
    ["python3", ["python"]],
    ["nodejs", ["node"]],
    ["bas", ["base"]],
    ["ubuntu", []],
    ["a", []],
  ])("%s is close to %j", (name, close) => {
    expect(closeNames(name, ["python", "node", "base"])).toEqual(close);
  });
});
