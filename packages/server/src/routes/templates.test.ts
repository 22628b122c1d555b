/** Templates that are made of images and steps. The published contract of the same routes: routes.test.ts. */

import { once } from "node:events";
import { connect as connectHttp2, constants } from "node:http2";
import { connect } from "node:net";
import { limits } from "@mitos/protocol";
import { describe, expect, it } from "vitest";
import { collect, events, get, post, send, useServer } from "../testing/harness.ts";

const http2Cancel = constants.NGHTTP2_CANCEL;
const digest = `sha256:${"0a".repeat(32)}`;
const run = (command: string) => ({ type: "run", run: command });

describe("the request for a template", () => {
  const at = useServer();
  const lastBuild = () => at.engine.builds.at(-1)!;

  it("says image, steps, code to run first, a program and how to make it, in the words of the engine", async () => {
    at.engine.contexts.set(digest, Buffer.from("tar"));
    const answer = await post(at, "/v1/templates", {
      id: "app",
      image: "python:3.12-slim",
      build_steps: [
        { type: "workdir", workdir: "/app", unknown: 1 },
        { type: "copy", source: "src/", dest: ".", context: digest },
        { type: "env", env_name: "PORT", env_value: "8080" },
        { type: "env", env_name: "EMPTY" },
        { type: "env", env_name: "PATH", env_value: "/opt/bin:/bin", env_expand: true },
        { type: "user", user: "1000:staff" },
        { type: "run", run: "pip install x", user: "", workdir: null },
      ],
      warm: { language: "python", code: "import x" },
      no_cache: true,
      pull: true,
      workload: { command: [], entrypoint: true, ready: { kind: "port", port: 80 } },
    });
    expect(answer.status).toBe(200);
    expect(lastBuild().request).toMatchObject({
      id: "app",
      image: "python:3.12-slim",
      steps: [
        { kind: "workdir", path: "/app" },
        { kind: "copy", source: "src/", dest: ".", context: digest },
        { kind: "env", name: "PORT", value: "8080" },
        { kind: "env", name: "EMPTY", value: "" },
        { kind: "env", name: "PATH", value: "/opt/bin:/bin", expand: true },
        { kind: "user", user: "1000:staff" },
        { kind: "run", command: "pip install x" },
      ],
      warm: { language: "python", code: "import x", timeoutSeconds: 60 },
      workload: { command: [], env: {}, ready: { kind: "port", port: 80, timeoutSeconds: 120 } },
    });
    expect(lastBuild().options).toMatchObject({ noCache: true, pull: true });
    expect(answer.json).toMatchObject({
      source: { kind: "build", reference: "python:3.12-slim", digest: expect.stringMatching(/^sha256:/), layers: 2, root_bytes: 1000 },
      snapshot_bytes: 4096,
      warnings: [],
    });
    expect((await get(at, "/v1/templates")).json).toContainEqual(answer.json);
  });

  it("without any of it asks for no more than it ever did", async () => {
    await post(at, "/v1/templates", { id: "plain", image: null, build_steps: [], warm: null, workload: { entrypoint: false } });
    expect(lastBuild().request).toMatchObject({ image: undefined, steps: undefined, warm: undefined, workload: undefined });
    expect(lastBuild().options).toMatchObject({ noCache: false, pull: false });
  });

  it.each([
    ["node", "node"],
    ["bitnami/redis", "bitnami/redis:latest"],
    ["registry.example:5000/team/tool", "registry.example:5000/team/tool"],
    [`python@${digest}`, `python@${digest}`],
  ])("takes %s for an image or a name", async (image, taken) => {
    expect((await post(at, "/v1/templates", { id: "t", image })).status).toBe(200);
    expect(lastBuild().request.image).toBe(taken);
  });

  it.each([
    [
      { command: ["serve"], ready: { port: 80 } },
      { kind: "http", port: 80, path: "/", expect: 200, timeoutSeconds: 120 },
    ],
    [
      { command: ["serve"], ready: { kind: "command", command: "test -e /up" } },
      { kind: "command", command: "test -e /up", timeoutSeconds: 120 },
    ],
    [
      { entrypoint: true, ready: { kind: "http", port: 80, path: "/up", expect: 204, timeout_seconds: 7 } },
      { kind: "http", port: 80, path: "/up", expect: 204, timeoutSeconds: 7 },
    ],
  ])("knows when a program is ready: %j", async (workload, ready) => {
    await post(at, "/v1/templates", { id: "t", image: "nginx:1", workload });
    expect(lastBuild().request.workload?.ready).toEqual(ready);
  });

  it.each<[string, object]>([
    ["image", { image: "Not/An Image" }],
    ["image", { image: "live:sb-1" }],
    ["image", { image: "" }],
    ["image", { image: 7 }],
    ["build_steps", { build_steps: {} }],
    ["build_steps", { build_steps: Array(limits.buildStepsMax + 1).fill(run("x")) }],
    ["build_steps.0", { build_steps: ["x"] }],
    ["build_steps.0.type", { build_steps: [{ type: "add", source: "a", dest: "b" }] }],
    ["build_steps.1.run", { build_steps: [run("x"), { type: "run" }] }],
    ["build_steps.0.run", { build_steps: [run("")] }],
    ["build_steps.0.run", { build_steps: [run("a\0b")] }],
    ["build_steps.0.run", { build_steps: [run("x".repeat(limits.commandBytesMax + 1))] }],
    ["build_steps.0.workdir", { build_steps: [{ ...run("x"), workdir: "/app" }] }],
    ["build_steps.0.workdir", { build_steps: [{ type: "workdir", workdir: "x".repeat(limits.pathBytesMax + 1) }] }],
    ["build_steps.0.env_name", { build_steps: [{ type: "env", env_value: "x" }] }],
    ["build_steps: environment", { build_steps: [{ type: "env", env_name: "A=B", env_value: "hidden" }] }],
    ["build_steps: environment", { build_steps: [{ type: "env", env_name: "", env_value: "hidden" }] }],
    ["build_steps: environment", { build_steps: [{ type: "env", env_name: "A", env_value: "hid\0den" }] }],
    ["build_steps: environment", { build_steps: [{ type: "env", env_name: "A", env_value: "x".repeat(limits.envBytesMax) }] }],
    ["build_steps.0.user", { build_steps: [{ type: "user", user: "-rf /" }] }],
    ["build_steps.0.dest", { build_steps: [{ type: "copy", source: "a", context: digest }] }],
    ["build_steps.0.context", { build_steps: [{ type: "copy", source: "a", dest: "b", context: "sha256:0A" }] }],
    ["warm.language", { warm: { language: "cobol", code: "x" } }],
    ["warm.code", { warm: { language: "python", code: "" } }],
    ["warm.timeout_seconds", { warm: { language: "python", code: "x", timeout_seconds: limits.buildStepTimeoutSeconds + 1 } }],
    ["no_cache", { no_cache: "yes" }],
    ["workload", { workload: { command: ["serve"], entrypoint: true } }],
    ["workload.ready.port", { workload: { command: ["serve"], ready: {} } }],
    ["workload.ready.port", { workload: { command: ["serve"], ready: { kind: "port", port: 65_536 } } }],
    ["workload.ready.command", { workload: { command: ["serve"], ready: { kind: "command" } } }],
    ["workload.ready.command", { workload: { command: ["serve"], ready: { port: 80, command: "x" } } }],
    ["workload.ready.kind", { workload: { command: ["serve"], ready: { kind: "smoke", port: 80 } } }],
  ])("is refused before anything happens when %s is wrong, also to who wants events: %#", async (member, wrong) => {
    const before = at.engine.builds.length;
    for (const headers of [{}, { Accept: "application/x-ndjson" }] as Record<string, string>[]) {
      const answer = await post(at, "/v1/templates", { id: "t", image: "python:3.12", ...wrong }, headers);
      expect([answer.status, answer.json.error.code]).toEqual([400, "invalid_input"]);
      expect(answer.json.error.cause).toMatch(new RegExp(`^${member}\\b`));
      expect(answer.text).not.toContain("hid");
    }
    expect(at.engine.builds).toHaveLength(before);
  });

  it("is refused while the files of a copy step are not there, with the step and what to do", async () => {
    at.engine.contexts.set(digest, Buffer.from("tar"));
    const other = `sha256:${"0b".repeat(32)}`;
    const copy = { type: "copy", source: "src/", dest: "/app" };
    const build_steps = [{ ...copy, context: digest }, run("x"), { ...copy, context: other }];
    const answer = await post(at, "/v1/templates", { id: "t", image: "python:3.12", build_steps });
    expect([answer.status, answer.json.error]).toEqual([
      404,
      expect.objectContaining({
        code: "not_found",
        cause: expect.stringMatching(/^build_steps\.2 copies src\/,/),
        remediation: expect.stringContaining(`PUT /v1/contexts/${other}`),
        context: { op: "create_template", step: 2, digest: other },
      }),
    ]);
    expect(at.engine.templates.has("t")).toBe(false);
  });

  it("is answered with the error's own status where a build fails and nobody wants events", async () => {
    const failed = await post(at, "/v1/templates", { id: "t", image: "python:3.12", build_steps: [run("fail")] });
    expect([failed.status, failed.json.error.code, failed.json.error.cause]).toEqual([422, "build_failed", "step 0 ended with 1"]);
    const unknown = await post(at, "/v1/templates", { id: "t", image: "nowhere" });
    expect([unknown.status, unknown.json.error.code]).toEqual([404, "not_found"]);
  });

  it("passes on what the user should know", async () => {
    expect((await post(at, "/v1/templates", { id: "t", image: "odd" })).json.warnings).toEqual(["the name odd was not known"]);
  });

  it("goes on when a client without a wish for events leaves: who asks again finds it", async () => {
    const socket = connect(Number(new URL(at.url).port), "127.0.0.1");
    const body = JSON.stringify({ id: "slow", image: "python:3.12", build_steps: [run("gated")] });
    socket.write(`POST /v1/templates HTTP/1.1\r\nHost: localhost\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
    await expect.poll(() => at.engine.builds.at(-1)?.request.id).toBe("slow");
    socket.destroy();
    at.engine.buildGate.resolve();
    await expect.poll(() => at.engine.templates.has("slow")).toBe(true);
    expect(at.engine.canceled).toEqual([]);
  });
});

describe("a stream of events", () => {
  const at = useServer({ eventSilenceMs: 50 });
  const build = (steps: string[], options: Parameters<typeof events>[2] = {}, id = "app") =>
    events(at, "/v1/templates", { body: { id, image: "python:3.12", build_steps: steps.map(run) }, ...options });

  it("tells what happens when it happens, and ends with the template", async () => {
    const { status, headers, lines } = await build(["gated", "x"]);
    expect([status, headers.get("content-type"), headers.get("x-accel-buffering")]).toEqual([200, "application/x-ndjson", "no"]);
    const first = [(await lines.next()).value, (await lines.next()).value];
    expect(first).toEqual([
      { at_ms: expect.any(Number), kind: "phase", phase: "resolve", detail: "python:3.12" },
      { at_ms: expect.any(Number), kind: "log", step: 0, stream: "stdout", text: "waiting\n" },
    ]);
    expect(at.engine.templates.has("app")).toBe(false);
    at.engine.buildGate.resolve();
    const rest = (await collect(lines)).filter(({ kind }) => kind !== "alive");
    expect(rest).toEqual([
      { at_ms: expect.any(Number), kind: "step", index: 1, count: 1, type: "run", label: "run", state: "cached", ms: 0 },
      { at_ms: expect.any(Number), kind: "done", template: (await get(at, "/v1/templates")).json.at(-1) },
    ]);
  });

  it("shows that it is alive while nothing happens", async () => {
    const { lines } = await build(["gated"]);
    const kinds = new Set<string>();
    while (!kinds.has("alive")) kinds.add((await lines.next()).value.kind);
    at.engine.buildGate.resolve();
    expect((await collect(lines)).at(-1)).toMatchObject({ kind: "done", template: { id: "app" } });
  });

  it("ends with the failure as other answers have it, and keeps the server's own to the log", async () => {
    const { status, lines } = await build(["fail"]);
    expect(status).toBe(200);
    expect((await collect(lines)).slice(1)).toEqual([
      {
        at_ms: expect.any(Number),
        kind: "failed",
        error: { code: "build_failed", message: expect.any(String), cause: "step 0 ended with 1", remediation: expect.any(String) },
      },
    ]);
    const broken = (await collect((await build(["break"])).lines)).at(-1);
    expect(broken).toMatchObject({ kind: "failed", error: { code: "internal", cause: expect.stringMatching(/^request [0-9a-f-]+$/) } });
    expect(JSON.stringify(broken)).not.toContain("secret");
    expect(at.logLines.join("\n")).toContain("a build or its answer failed");
  });

  it("has the status of an error that comes before the first event", async () => {
    const answer = await post(at, "/v1/templates", { id: "t", image: "nowhere" }, { Accept: "application/x-ndjson" });
    expect([answer.status, answer.json.error.code]).toEqual([404, "not_found"]);
  });

  it("is one line where the template is there already, also by an Idempotency-Key", async () => {
    const headers = { "Idempotency-Key": "same" };
    await collect((await build([], { headers })).lines);
    const again = await collect((await build([], { headers }, "other")).lines);
    expect(again).toMatchObject([{ kind: "done", template: { id: "app" } }]);
    expect(await collect((await events(at, "/v1/templates", { body: { id: "python" } })).lines)).toMatchObject([
      { kind: "done", template: { id: "python", source: { kind: "host", reference: "", digest: null } } },
    ]);
  });

  it("is for who asks for it, among other types too, and not for who asks for something else", async () => {
    const type = async (Accept: string) =>
      (await post(at, "/v1/templates", { id: "t", image: "python:3.12" }, { Accept })).headers["content-type"];
    expect(await type("application/json, application/x-ndjson;q=0.9")).toBe("application/x-ndjson");
    expect(await type("Application/X-NDJSON")).toBe("application/x-ndjson");
    for (const accept of ["*/*", "application/json", "application/x-ndjson;q=0", "application/x-ndjsonp"])
      expect(await type(accept), accept).toBe("application/json");
  });

  it("whose client leaves ends the build and gives its Idempotency-Key back", async () => {
    const client = new AbortController();
    const headers = { "Idempotency-Key": "left" };
    const { lines } = await build(["gated"], { signal: client.signal, headers });
    await lines.next();
    client.abort();
    await expect.poll(() => at.engine.canceled).toEqual(["app"]);
    at.engine.buildGate.resolve();
    expect((await collect((await build(["x"], { headers })).lines)).at(-1)).toMatchObject({ kind: "done" });
  });

  it("is the same over HTTP/2, and ends the build when its stream is closed", async () => {
    const session = connectHttp2(at.url);
    const head = { ":method": "POST", ":path": "/v1/templates", accept: "application/x-ndjson" };
    const call = session.request(head);
    call.end(JSON.stringify({ id: "app", image: "python:3.12", build_steps: [run("gated")] }));
    const [headers] = await once(call, "response");
    expect([headers[":status"], headers["content-type"]]).toEqual([200, "application/x-ndjson"]);
    const [chunk] = await once(call, "data");
    expect(JSON.parse(String(chunk).split("\n", 1)[0]!)).toMatchObject({ kind: "phase" });
    call.close(http2Cancel);
    await expect.poll(() => at.engine.canceled).toEqual(["app"]);
    session.close();
  });

  it("says so when the server goes down", { timeout: 15_000 }, async () => {
    const { lines } = await build(["gated"]);
    await lines.next();
    const closed = at.server.close();
    expect((await collect(lines)).at(-1)).toMatchObject({
      kind: "failed",
      error: { code: "unavailable", cause: "the server is going down" },
    });
    await closed;
  });

  it("leaves output out for a client that does not read, says how much, and still ends with the template", async () => {
    const body = JSON.stringify({ id: "app", image: "python:3.12", build_steps: [run("flood 100000"), run("gated"), run("x")] });
    const socket = connect(Number(new URL(at.url).port), "127.0.0.1");
    const head = "POST /v1/templates HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\nConnection: close\r\n";
    socket.pause();
    socket.write(`${head}Content-Length: ${body.length}\r\n\r\n${body}`);
    await expect.poll(() => at.engine.events.get("app")?.length).toBeGreaterThan(100_000);
    at.engine.buildGate.resolve();
    await expect.poll(() => at.engine.templates.has("app")).toBe(true);
    let text = "";
    for await (const chunk of socket) text += chunk;
    const lines = [...text.matchAll(/^\{.*\}$/gm)].map(([line]) => JSON.parse(line));
    const leftOut = Number(lines.map((line) => /^(\d+) lines of output were left out/.exec(line.text ?? "")?.[1]).find(Boolean));
    expect(leftOut).toBeGreaterThan(90_000);
    expect(lines.filter(({ kind }) => kind === "log").length + leftOut).toBe(100_001);
    expect(lines.at(-1)).toMatchObject({ kind: "done", template: { id: "app" } });
  });
});

describe("events of a build", () => {
  const at = useServer({ eventSilenceMs: 50 });

  it("are told afterwards, to the end that it came to", async () => {
    await post(at, "/v1/templates", { id: "app", image: "python:3.12" });
    expect(await collect((await events(at, "/v1/templates/app/events")).lines)).toEqual([
      { at_ms: expect.any(Number), kind: "phase", phase: "resolve", detail: "python:3.12" },
      { at_ms: expect.any(Number), kind: "done", creation_time_ms: 2 },
    ]);
    await post(at, "/v1/templates", { id: "bad", image: "python:3.12", build_steps: [run("fail")] });
    expect((await collect((await events(at, "/v1/templates/bad/events?follow=true")).lines)).at(-1)).toMatchObject({
      kind: "failed",
      error: { code: "build_failed", cause: "step 0 ended with 1" },
    });
  });

  it("are told at once of one that is under way, and followed until it is over", async () => {
    void post(at, "/v1/templates", { id: "app", image: "python:3.12", build_steps: [run("gated")] });
    await expect.poll(() => at.engine.events.get("app")?.length).toBe(2);
    expect(await collect((await events(at, "/v1/templates/app/events")).lines)).toHaveLength(2);
    const { lines } = await events(at, "/v1/templates/app/events?follow=true");
    expect((await lines.next()).value.kind).toBe("phase");
    at.engine.buildGate.resolve();
    expect((await collect(lines)).at(-1)).toMatchObject({ kind: "done" });
  });

  it("are all there for a client that reads slowly", async () => {
    await post(at, "/v1/templates", { id: "app", image: "python:3.12", build_steps: [run("flood 100000")] });
    const { lines } = await events(at, "/v1/templates/app/events");
    expect((await collect(lines)).filter(({ kind }) => kind === "log")).toHaveLength(100_000);
  });

  it("of a name that was never built are not found", async () => {
    for (const id of ["none", "none:1"]) {
      const answer = await get(at, `/v1/templates/${encodeURIComponent(id)}/events`);
      expect([answer.status, answer.json.error.code]).toEqual([404, "not_found"]);
    }
    expect((await get(at, "/v1/templates/app/events?follow=maybe")).status).toBe(400);
  });
});

describe("the name of a template in a path", () => {
  const at = useServer();
  /** The longest there is, with as many marks to encode as fit. */
  const longest = `${"a/".repeat(91)}a@sha256:${"0a".repeat(32)}`;

  it.each(["registry.example:5000/team/tool:1.2", `python:3@sha256:${"0a".repeat(32)}`, longest])(
    "is an image reference, percent-encoded as one part: %s",
    async (id) => {
      expect(id.length).toBeLessThanOrEqual(255);
      expect((await post(at, "/v1/templates", { id, image: id })).status).toBe(200);
      for (const encoded of [encodeURIComponent(id), encodeURIComponent(id).toLowerCase()]) {
        expect((await get(at, `/v1/templates/${encoded}/events`)).status).toBe(200);
        expect((await post(at, `/v1/templates/${encoded}/push`, { reference: "registry.example/out:1" })).status).toBe(200);
        expect((await get(at, `/v1/names/${encoded}`)).json).toMatchObject({ name: id, means: "template" });
      }
      expect((await send(at, "DELETE", `/v1/templates/${encodeURIComponent(id)}`)).json).toEqual({ status: "deleted", id });
    },
  );
});

describe("a push", () => {
  const at = useServer();

  it("answers with what the registry has now, or with events", async () => {
    const wanted = { reference: "registry.example/team/tool:1", digest: expect.stringMatching(/^sha256:/) };
    expect((await post(at, "/v1/templates/python/push", { reference: wanted.reference })).json).toEqual(wanted);
    const { lines } = await events(at, "/v1/templates/python/push", { body: { reference: wanted.reference } });
    expect(await collect(lines)).toEqual([
      expect.objectContaining({ kind: "layer", state: "done", done_bytes: 5, total_bytes: 5 }),
      { at_ms: expect.any(Number), kind: "done", ...wanted },
    ]);
    expect(at.engine.pushes).toEqual([wanted.reference, wanted.reference]);
  });

  it("gives a reference without a tag the tag latest, and refuses what is none", async () => {
    await post(at, "/v1/templates/python/push", { reference: "team/tool" });
    expect(at.engine.pushes).toEqual(["team/tool:latest"]);
    for (const reference of ["", "Team/Tool", "a b", null, "live:x"])
      expect((await post(at, "/v1/templates/python/push", { reference })).status).toBe(400);
    expect((await post(at, "/v1/templates/none/push", { reference: "a/b:1" })).status).toBe(404);
  });
});
