import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import os from "node:os";
import path from "node:path";
import { text } from "node:stream/consumers";
import { stripVTControlCharacters } from "node:util";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { bin, start } from "./testing.ts";

// The command as users start it, against answers that a server gives.
let dir: string;
let server: FakeServer;
beforeEach(async () => {
  dir = mkdtempSync(path.join(os.tmpdir(), "mitos-template-"));
  server = await startServer();
});
afterEach(async () => {
  await server[Symbol.asyncDispose]();
  rmSync(dir, { recursive: true });
});

interface FakeServer extends AsyncDisposable {
  readonly url: string;
  readonly requests: { method: string; path: string; body: Record<string, unknown> }[];
  /** The events of the next stream; the answer stays open when the last one is neither `done` nor `failed`. */
  events: object[];
  /** What other routes answer, by method and path. */
  answers: Record<string, unknown>;
  /** Resolves when a stream has begun. */
  readonly streaming: Promise<void>;
  /** Resolves when a client has left a stream that was open. */
  readonly left: Promise<void>;
}

async function startServer(): Promise<FakeServer> {
  const left = Promise.withResolvers<void>();
  const streaming = Promise.withResolvers<void>();
  const fake = {
    requests: [] as FakeServer["requests"],
    events: [] as object[],
    answers: {} as Record<string, unknown>,
    left: left.promise,
    streaming: streaming.promise,
  };
  const http = createServer(async (request: IncomingMessage, response: ServerResponse) => {
    const { method = "", url = "" } = request;
    const sent = await text(request);
    const isJson = request.headers["content-type"] === "application/json";
    fake.requests.push({ method, path: url, body: isJson ? JSON.parse(sent) : {} });
    if (url.startsWith("/v1/contexts/")) return response.writeHead(method === "HEAD" ? 404 : 200).end("{}");
    if (request.headers.accept !== "application/x-ndjson") {
      const answer = fake.answers[`${method} ${url}`];
      const refusal = { error: { code: "not_found", message: "no such thing", remediation: "Look." } };
      return response.writeHead(answer === undefined ? 404 : 200).end(JSON.stringify(answer ?? refusal));
    }
    response.on("close", () => response.writableFinished || left.resolve());
    response.writeHead(200, { "Content-Type": "application/x-ndjson" });
    streaming.resolve();
    for (const event of fake.events) response.write(`${JSON.stringify({ at_ms: 1, ...event })}\n`);
    if (["done", "failed"].includes((fake.events.at(-1) as { kind: string }).kind)) response.end();
  });
  await once(http.listen(0, "127.0.0.1"), "listening");
  return Object.assign(fake, {
    url: `http://127.0.0.1:${(http.address() as AddressInfo).port}`,
    async [Symbol.asyncDispose]() {
      http.closeAllConnections();
      await new Promise((resolve) => http.close(resolve));
    },
  });
}

const begin = (...args: string[]) => start(args, { HOME: dir, MITOS_BASE_URL: server.url });
const mitos = (...args: string[]) => begin(...args).ended;
const file = (name: string, content: string) => {
  writeFileSync(path.join(dir, name), content);
  return path.join(dir, name);
};

const template = {
  id: "app",
  ready: true,
  created_at: new Date().toISOString(),
  creation_time_ms: 1200,
  source: { kind: "build", reference: "docker.io/library/python:3.12", digest: "sha256:d", layers: 6, root_bytes: 2 * 1024 * 1024 },
  snapshot_bytes: 1024 * 1024,
  warnings: [],
};
const step = (index: number, state: string, label: string) => ({ kind: "step", index, count: 2, type: "run", label, state, ms: 1000 });
const built = [
  { kind: "phase", phase: "pull", detail: "docker.io/library/python:3.12" },
  step(0, "cached", "apt-get update"),
  step(1, "running", "make"),
  { kind: "log", step: 1, stream: "stdout", text: "compiling\n" },
  step(1, "done", "make"),
  { kind: "done", template },
];
const error = {
  code: "build_failed",
  message: "a template could not be built",
  cause: "step 1 (run) ended with 2",
  remediation: "Change it.",
};

describe("template build", () => {
  it("sends what the Dockerfile and the folder say, and prints what happens", async () => {
    server.events = built;
    file("hello.txt", "hello");
    file("secret.txt", "secret");
    const dockerfile = file("Dockerfile", "ARG TAG\nFROM python:$TAG\nEXPOSE 80\nCOPY *.txt /srv/\nRUN make\nCMD serve\n");
    file("Dockerfile.dockerignore", "secret.txt");
    const args = [
      "--name",
      "app",
      "--dockerfile",
      dockerfile,
      "--context",
      dir,
      "--build-arg",
      "TAG=3.12",
      "--no-cache",
      "--pull",
      "--allow",
      "pypi.org:443",
      "--allow",
      "a.example",
      "--cpu",
      "2",
      "--memory",
      "1Gi",
      "--ready-port",
      "80",
    ];
    const { code, out, err } = await mitos("template", "build", ...args);
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(out.split("\n")).toEqual([
      "[WARN  ] line 3: EXPOSE has no effect: every port of a sandbox can be reached from outside through previews and tunnels",
      "[SEND  ] *.txt 2.0 KiB",
      "[PULL  ] docker.io/library/python:3.12",
      "[CACHED] step 0 run apt-get update",
      "[BUILD ] step 1 run make",
      "     1 | compiling",
      "[DONE  ] step 1 in 1.0 s",
      expect.stringMatching(/^Template "app" ready in \d+\.\d s; 1 of 2 steps cached; 6 layers, 2\.0 MiB; snapshot 1\.0 MiB$/),
      "",
    ]);
    expect(server.requests.at(-1)).toMatchObject({
      method: "POST",
      path: "/v1/templates",
      body: {
        id: "app",
        image: "python:3.12",
        no_cache: true,
        pull: true,
        network: { allow_domains: ["pypi.org:443", "a.example"] },
        resources: { vcpu_count: 2, mem_size_mib: 1024 },
        workload: { command: ["serve"], ready: { kind: "port", port: 80 } },
        build_steps: [
          { type: "copy", source: "*.txt", dest: "/srv/", context: expect.stringMatching(/^sha256:[0-9a-f]{64}$/) },
          { type: "run", run: expect.stringContaining("make") },
        ],
      },
    });
  });

  it.each([
    ["JSON", JSON.stringify({ image: "base", buildSteps: [{ type: "run", run: "make" }], command: ["serve"] })],
    [
      "YAML",
      "kind: SandboxPool\nspec:\n  template:\n    image: base\n    buildSteps:\n      - {type: run, run: make}\n    command: [serve]\n",
    ],
  ])("takes a spec as %s", async (_form, content) => {
    server.events = built;
    expect(await mitos("template", "build", "--name", "app", "--spec", file("spec", content))).toMatchObject({ code: 0, err: "" });
    expect(server.requests.at(-1)?.body).toMatchObject({ image: "base", build_steps: [{ run: "make" }], workload: { command: ["serve"] } });
  });

  it("prints the events themselves with --json, and the template last", async () => {
    server.events = built;
    const { code, out } = await mitos("template", "build", "--name", "app", "--dockerfile", file("Dockerfile", "FROM base"), "--json");
    const events = out.trimEnd().split("\n").map((line) => JSON.parse(line)); // biome-ignore format: one line
    expect(code).toBe(0);
    expect(events.map(({ kind }) => kind)).toEqual(["phase", "step", "step", "log", "step", "done"]);
    expect(events.at(-1)).toMatchObject({ kind: "done", template: { id: "app", ready: true, source: { layers: 6 } } });
  });

  it("fails with the step, the server's words and exit code 1", async () => {
    server.events = [
      step(1, "running", "make"),
      { kind: "log", step: 1, stream: "stderr", text: "no rule" },
      step(1, "failed", "make"),
      { kind: "failed", error },
    ];
    const args = ["template", "build", "--name", "app", "--dockerfile", file("Dockerfile", "FROM base")];
    expect(await mitos(...args)).toEqual({
      code: 1,
      out: "[BUILD ] step 1 run make\n     1 | no rule\n[FAILED] step 1 run make after 1.0 s\n",
      err: "error: a template could not be built\ncause: step 1 (run) ended with 2\nnext step: Change it.\n",
    });
    const json = await mitos(...args, "--json");
    expect(json.code).toBe(1);
    expect(JSON.parse(json.out.trimEnd().split("\n").at(-1)!)).toEqual({ kind: "failed", atMs: 1, ...error });
  });

  it("names the line of a Dockerfile that cannot be built, and asks nothing of the server", async () => {
    const args = ["template", "build", "--name", "app", "--dockerfile", file("Dockerfile", "FROM base\nCOPY --from=x a b\n")];
    const { code, out, err } = await mitos(...args);
    expect({ code, out }).toEqual({ code: 1, out: "" });
    expect(err).toBe(
      "error: the Dockerfile cannot be built\ncause: line 2: COPY: --from=x is not supported\nnext step: Builds have one stage: COPY from the context.\n",
    );
    expect(JSON.parse((await mitos(...args, "--json")).out)).toMatchObject({ kind: "failed", code: "build_failed" });
    expect(server.requests).toEqual([]);
  });

  it.each([
    ["a file that is not there", ["--dockerfile", "/nowhere/Dockerfile"]],
    ["a spec that is no YAML", ["--spec", "spec"]],
    ["a spec of something else", ["--spec", "other"]],
    ["a context that is not there", ["--dockerfile", "Dockerfile", "--context", "/nowhere"]],
  ])("refuses %s", async (_what, args) => {
    file("spec", "{image: ");
    file("other", "image: base\nreplicas: 3");
    file("Dockerfile", "FROM base\nCOPY a b\n");
    const inDir = args.map((arg) => (["spec", "other", "Dockerfile"].includes(arg) ? path.join(dir, arg) : arg));
    const { code, out, err } = await mitos("template", "build", "--name", "app", ...inDir);
    expect({ code, out }).toEqual({ code: 1, out: "" });
    expect(err).toMatch(/^error: [^\n]+\ncause: [^\n]+\nnext step: [^\n]+\n$/);
    expect(server.requests).toEqual([]);
  });

  it("is canceled by Ctrl-C: the server sees it leave, and the exit code is 130", async () => {
    server.events = [step(0, "running", "sleep")];
    const building = begin("template", "build", "--name", "app", "--dockerfile", file("Dockerfile", "FROM base\nRUN sleep 100\n"));
    await once(building.child.stdout, "data");
    building.child.kill("SIGINT");
    const { code, err } = await building.ended;
    await server.left;
    expect(code).toBe(130);
    expect(err).toMatch(/^error: the build of app was canceled\ncause: interrupted by SIGINT\nnext step: Build it again.*\n$/);
  });
});

describe("on a terminal, template build", () => {
  const fixture = path.resolve(import.meta.dirname, "../../../test/fixtures/on-terminal.py");

  async function shown(columns: number, env: Record<string, string> = {}): Promise<string> {
    const args = [
      "24",
      String(columns),
      process.execPath,
      bin,
      "template",
      "build",
      "--name",
      "app",
      "--dockerfile",
      file("Dockerfile", "FROM base"),
    ];
    const child = spawn("python3", [fixture, ...args], {
      env: { PATH: process.env.PATH, HOME: dir, TERM: "xterm-256color", MITOS_BASE_URL: server.url, ...env },
      stdio: ["pipe", "pipe", "pipe", "pipe"],
    });
    const [out, report] = await Promise.all([text(child.stdout!), text(child.stderr!), once(child, "close")]);
    expect(JSON.parse(report)).toEqual({ code: 0, restored: true });
    return out;
  }

  it("shows what is finished once, and ends with the result", async () => {
    server.events = built;
    const lines = stripVTControlCharacters(await shown(80))
      .replaceAll("\r", "")
      .split("\n");
    expect(lines.filter((line) => line.startsWith("✓"))).toEqual([
      expect.stringMatching(/^✓ pulling docker\.io\/library\/python:3\.12, \d+\.\d s$/),
      "✓ step 0 run apt-get update, cached",
      "✓ step 1 run make, 1.0 s",
    ]);
    expect(lines.at(-2)).toMatch(/^Template "app" ready in /);
  });

  it("has no colours with NO_COLOR, and lines in place of the view with TERM=dumb", async () => {
    server.events = [...built.slice(0, -1), { kind: "warning", text: "w" }, { kind: "done", template }];
    // biome-ignore lint/suspicious/noControlCharactersInRegex: that is how colours are written
    const colours = /\x1b\[\d+m/;
    expect(await shown(80)).toMatch(colours);
    expect(await shown(80, { NO_COLOR: "1" })).not.toMatch(colours);
    expect(await shown(80, { TERM: "dumb" })).toContain("[CACHED] step 0 run apt-get update");
  });
});

it("run is given up by Ctrl-C while its template is made, and makes no sandbox", async () => {
  server.events = [{ kind: "phase", phase: "pull", detail: "docker.io/library/python:3.12" }];
  const running = begin("run", "--pool", "python:3.12", "true");
  await server.streaming;
  running.child.kill("SIGINT");
  expect(await running.ended).toMatchObject({ code: 130, out: "" });
  await server.left;
  expect(server.requests.map(({ path: at }) => at)).toEqual(["/v1/fork", "/v1/templates"]);
});

it("template push and pull print what came of it, and their events with --json", async () => {
  const pushed = { reference: "registry.example/app:1", digest: "sha256:d" };
  server.events = [
    { kind: "layer", digest: `sha256:${"a".repeat(64)}`, state: "shared", done_bytes: 0, total_bytes: 1 },
    { kind: "done", ...pushed },
  ];
  expect(await mitos("template", "push", "app", "registry.example/app:1")).toEqual({
    code: 0,
    out: "[CACHED] layer aaaaaaaaaaaa\npushed app to registry.example/app:1 (sha256:d)\n",
    err: "",
  });
  expect(server.requests.at(-1)).toMatchObject({ path: "/v1/templates/app/push", body: { reference: "registry.example/app:1" } });
  const image = { reference: "docker.io/library/a:1", digest: "sha256:d", layers: 2, root_bytes: 1024, pulled_at: "p", last_used_at: "l" };
  server.events = [{ kind: "done", image }];
  expect(await mitos("template", "pull", "a:1")).toEqual({
    code: 0,
    out: "pulled docker.io/library/a:1 (sha256:d): 2 layers, 1.0 KiB\n",
    err: "",
  });
  expect(server.requests.at(-1)).toMatchObject({ path: "/v1/images", body: { reference: "a:1", pull: true } });
  expect(JSON.parse((await mitos("template", "pull", "a:1", "--json")).out)).toMatchObject({ kind: "done", image: { rootBytes: 1024 } });
});

it("template ls lists what templates are made of, and what the short names mean", async () => {
  server.answers = {
    "GET /v1/templates": [
      template,
      { ...template, id: "python", source: { kind: "host", reference: "", digest: null, layers: 0, root_bytes: 0 } },
    ],
    "GET /v1/names/python": { name: "python", means: "template", reference: "" },
    "GET /v1/names/node": { name: "node", means: "image", reference: "registry.example/node:latest" },
    "GET /v1/names/base": { name: "base", means: "host", reference: "" },
  };
  expect(
    (await mitos("template", "ls")).out.replaceAll(/ \d+s$/gm, " 0s"),
  ).toBe(`NAME    READY  SOURCE  IMAGE                          SIZE     AGE
app     yes    build   docker.io/library/python:3.12  3.0 MiB  0s
python  yes    host    -                              1.0 MiB  0s

NAME    MEANS
python  this template
node    image registry.example/node:latest
base    the server's own root
`);
  const { templates, names } = JSON.parse((await mitos("template", "ls", "-o", "json")).out);
  expect(templates).toHaveLength(2);
  expect(names[1]).toEqual({ name: "node", means: "image", reference: "registry.example/node:latest" });
});

it("template ls of a server that does not tell what names mean is the list alone", async () => {
  server.answers = { "GET /v1/templates": [{ id: "old", ready: true, created_at: "", creation_time_ms: 1 }] };
  expect((await mitos("template", "ls")).out).toBe("NAME  READY  SOURCE  IMAGE  SIZE  AGE\nold   yes    -       -      -     -\n");
});

it("template logs shows the last build, its failure too, and fails where there was none", async () => {
  server.events = [step(0, "running", "make"), { kind: "log", step: 0, stream: "stderr", text: "no rule\n" }, { kind: "failed", error }];
  expect(await mitos("template", "logs", "app", "--follow")).toMatchObject({
    code: 0,
    out: "[BUILD ] step 0 run make\n     0 | no rule\n",
    err: expect.stringContaining("cause: step 1 (run) ended with 2\n"),
  });
  expect(server.requests.at(-1)?.path).toBe("/v1/templates/app/events?follow=true");
  expect((await mitos("template", "logs", "app", "--json")).out.split("\n")).toHaveLength(4);
});

it("template rm deletes one", async () => {
  server.answers = { "DELETE /v1/templates/python%3A3.12": {} };
  expect(await mitos("template", "rm", "python:3.12")).toEqual({ code: 0, out: "deleted python:3.12\n", err: "" });
  expect((await mitos("template", "rm", "other")).code).toBe(3);
});

it("du shows each template's own and shared files, and the totals to whoever may see them", async () => {
  const templates = [{ id: "app", snapshot_bytes: 1024, root_bytes: 3072, own_bytes: 1024 }];
  const totals = {
    layers: { count: 4, bytes: 4096, unused_bytes: 1024 },
    caches: { bytes: 2048 },
    snapshots: { bytes: 512 },
    cache_bytes_max: 1024 ** 3,
  };
  server.answers = { "GET /v1/usage/disk": { templates, totals } };
  expect((await mitos("du")).out).toBe(`TEMPLATE  OWN      SHARED   SNAPSHOT
app       1.0 KiB  2.0 KiB  1.0 KiB

TOTAL       SIZE     UNUSED
layers (4)  4.0 KiB  1.0 KiB
caches      2.0 KiB  2.0 KiB
snapshots   512 B    -

What is unused may have 1.0 GiB before the oldest of it is removed.
`);
  expect(JSON.parse((await mitos("du", "--json")).out)).toMatchObject({ totals: { cacheBytesMax: 1024 ** 3 } });
  server.answers = { "GET /v1/usage/disk": { templates: [] } };
  expect((await mitos("du")).out).toBe("No templates found.\n");
});

it("prune removes what was not used for so long, and removes nothing unasked", async () => {
  server.answers = { "POST /v1/prune": { removed_bytes: 1536 } };
  expect(await mitos("prune", "--older-than", "7d", "--yes")).toEqual({ code: 0, out: "removed 1.5 KiB\n", err: "" });
  expect(server.requests.at(-1)?.body).toEqual({ older_than_seconds: 7 * 86_400 });
  expect(await mitos("prune")).toMatchObject({ code: 2, out: "" });
  expect(server.requests).toHaveLength(1);
});
