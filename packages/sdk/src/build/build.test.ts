// biome-ignore-all lint/suspicious/noTemplateCurlyInString: that is how Dockerfiles write variables

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type FakeServer, json, startFakeServer } from "../../test/fake-server.ts";
import { SandboxServer } from "../server.ts";
import { Template } from "../template.ts";
import { type BuildTemplateOptions, buildTemplate } from "./index.ts";

let work: string;
let context: string;
beforeEach(() => {
  work = mkdtempSync(path.join(os.tmpdir(), "mitos-build-"));
  context = path.join(work, "context");
  mkdirSync(context);
});
afterEach(() => rmSync(work, { recursive: true, force: true }));

function put(name: string, content = "", mode = 0o644): void {
  const place = path.join(context, name);
  mkdirSync(path.dirname(place), { recursive: true });
  writeFileSync(place, content);
  chmodSync(place, mode);
}

interface Builder extends FakeServer {
  /** What was put, by digest. */
  readonly contexts: Map<string, Buffer>;
}

/** Keeps contexts as a server does, and has built everything at once. */
async function startBuilder(): Promise<Builder> {
  const contexts = new Map<string, Buffer>();
  const server = await startFakeServer((request, response) => {
    const digest = /^\/v1\/contexts\/(.*)$/.exec(request.path)?.[1];
    if (digest === undefined) {
      response.writeHead(200, { "Content-Type": "application/x-ndjson" });
      return response.end(`${JSON.stringify({ at_ms: 1, kind: "done", template: { id: "t", ready: true, creation_time_ms: 5 } })}\n`);
    }
    if (request.method === "HEAD") return response.writeHead(contexts.has(digest) ? 200 : 404).end();
    contexts.set(digest, request.body);
    return json(response, 200, {});
  });
  return Object.assign(server, { contexts });
}

const built = async (template: Template, options: BuildTemplateOptions = {}) => {
  await using server = await startBuilder();
  const info = await buildTemplate("t", template, { server: new SandboxServer(server.url), context, ...options });
  const request = server.requests.find(({ path: at }) => at === "/v1/templates")!.json();
  return { info, request, contexts: server.contexts, requests: server.requests.map(({ method }) => method) };
};

/** As GNU tar lists it: kind and mode, owner, size, name and target. */
function listed(tar: Buffer): string[] {
  const printed = execFileSync("tar", ["-tv", "--full-time", "--numeric-owner"], { input: tar, env: { TZ: "UTC", LC_ALL: "C.UTF-8" } });
  return printed.toString().trimEnd().split("\n").filter(Boolean).map((line) => line.replaceAll(/ +/g, " ")); // biome-ignore format: one line
}

const copy = (source: string, dest: string) => new Template().fromImage("base").copy(source, dest);
async function names(source: string, dest: string, options?: BuildTemplateOptions) {
  const { request, contexts } = await built(copy(source, dest), options);
  const [step] = request.build_steps as { dest: string; context: string }[];
  return [step!.dest, ...listed(contexts.get(step!.context)!).map((line) => line.split(" ").slice(5).join(" "))];
}

describe("the files of a copy step", () => {
  it("are a tar without times and owners, of which the server is told the digest", async () => {
    put("b.txt", "content");
    put("a/run.sh", "#!/bin/sh\n", 0o750);
    put("a/private", "", 0o600);
    symlinkSync("../b.txt", path.join(context, "a/link"));
    const { request, contexts } = await built(copy(".", "/app"));
    const [[digest, tar]] = [...contexts] as [[string, Buffer]];
    expect(digest).toBe(`sha256:${createHash("sha256").update(tar).digest("hex")}`);
    expect(request.build_steps).toEqual([{ type: "copy", source: ".", dest: "/app/", context: digest }]);
    expect(listed(tar)).toEqual([
      "drwxr-xr-x 0/0 0 1970-01-01 00:00:00 a/",
      "lrwxrwxrwx 0/0 0 1970-01-01 00:00:00 a/link -> ../b.txt",
      "-rw-r--r-- 0/0 0 1970-01-01 00:00:00 a/private",
      "-rwxr-xr-x 0/0 10 1970-01-01 00:00:00 a/run.sh",
      "-rw-r--r-- 0/0 7 1970-01-01 00:00:00 b.txt",
    ]);
  });

  it("have the same digest in another folder, at another time and under another mask", async () => {
    put("x/one", "1");
    put("two", "2");
    const [first] = (await built(copy(".", "/"))).contexts.keys();
    rmSync(context, { recursive: true });
    put("two", "2", 0o664);
    put("x/one", "1", 0o600);
    utimesSync(path.join(context, "two"), 1, 1);
    expect([...(await built(copy(".", "/"))).contexts.keys()]).toEqual([first]);
    put("two", "3");
    expect([...(await built(copy(".", "/"))).contexts.keys()]).not.toEqual([first]);
  });

  it("may have long names, and names and targets that are not ASCII", async () => {
    const long = `${"folder-of-some-length/".repeat(8)}ü-${"x".repeat(150)}`;
    put(long, "long");
    symlinkSync(`ziel-${"y".repeat(120)}-ä`, path.join(context, "link"));
    const { contexts } = await built(copy(".", "/"));
    const lines = listed([...contexts.values()][0]!);
    expect(lines.at(-1)).toContain(`link -> ziel-${"y".repeat(120)}-`);
    execFileSync("tar", ["-x", "-C", work], { input: [...contexts.values()][0] });
    expect(execFileSync("cat", [path.join(work, long)]).toString()).toBe("long");
  });

  it("are not sent again when the server has them", async () => {
    put("a", "a");
    await using server = await startBuilder();
    const told = new Set();
    const build = () =>
      buildTemplate("t", copy("a", "/x/"), {
        baseUrl: server.url,
        context,
        onEvent: (event) => event.kind === "context" && told.add(`${event.state} ${event.totalBytes}`),
      });
    await build();
    await build();
    expect(server.requests.map(({ method }) => method)).toEqual(["HEAD", "PUT", "POST", "HEAD", "POST"]);
    expect([...told]).toEqual(["sending 2048", "sent 2048", "known 2048"]);
  });

  it("are sent as they are read, however large", async () => {
    put("large");
    truncateSync(path.join(context, "large"), 300 * 1024 * 1024);
    await using server = await startFakeServer((request, response) => {
      if (request.method === "HEAD") return response.writeHead(404).end();
      if (request.method === "PUT") return json(response, 200, {});
      return json(response, 200, {});
    });
    await buildTemplate("t", copy("large", "/"), { baseUrl: server.url, context });
    expect(server.requests[1]?.body.length).toBe(300 * 1024 * 1024 + 512 + 1024);
  });

  it.each([
    ["app/main.py", "/srv/", ["/srv/", "main.py"]],
    ["app/main.py", "/srv/other.py", ["/srv/other.py", "main.py"]],
    ["app/main.py", "other.py", ["other.py", "main.py"]],
    ["app/main.py", ".", ["./", "main.py"]],
    ["/app/main.py", "/srv/.", ["/srv/./", "main.py"]],
    ["app", "/srv", ["/srv/", "lib/", "lib/a.py", "main.py"]],
    ["app/", ".", ["./", "lib/", "lib/a.py", "main.py"]],
    ["*.py", "/srv", ["/srv/", "one.py", "two.py"]],
    ["app/*", "/srv", ["/srv/", "a.py", "main.py"]],
    ["**/*.py", "/srv/", ["/srv/", "a.py", "main.py", "one.py", "two.py"]],
    ["app-link", "/srv", ["/srv/", "lib/", "lib/a.py", "main.py"]],
    ["file-link", "/srv/", ["/srv/", "file-link"]],
  ])("%s to %s are %j", async (source, dest, expected) => {
    for (const name of ["one.py", "two.py", "app/main.py", "app/lib/a.py"]) put(name);
    symlinkSync("app", path.join(context, "app-link"));
    symlinkSync("one.py", path.join(context, "file-link"));
    expect(await names(source, dest)).toEqual(expected);
  });

  it("are those that neither .dockerignore nor the template leaves out", async () => {
    for (const name of ["a", "b.log", "node_modules/x/y", "keep/node_modules/z", "secret/key", "secret/readme"]) put(name);
    put(".dockerignore", "**/node_modules\n*.log\nsecret\n!secret/readme\n.dockerignore");
    const kept = ["/", "a", "keep/", "secret/", "secret/readme"];
    expect(await names(".", "/")).toEqual(kept);
    const { contexts } = await built(copy(".", "/").ignore("keep").ignore(["a"]));
    expect(listed([...contexts.values()][0]!).map((line) => line.split(" ")[5])).toEqual(["secret/", "secret/readme"]);
    writeFileSync(path.join(work, "other"), "*\n!a");
    expect(await names(".", "/", { ignoreFile: path.join(work, "other") })).toEqual(["/", "a"]);
    await expect(built(copy("b.log", "/"))).rejects.toMatchObject({ code: "build_failed" });
    expect(await names("secret", "/")).toEqual(["/", "readme"]);
  });

  it("are never outside the context", async () => {
    writeFileSync(path.join(work, "outside"), "not yours");
    symlinkSync("../outside", path.join(context, "out"));
    symlinkSync("..", path.join(context, "up"));
    expect(await names(".", "/")).toEqual(["/", "out -> ../outside", "up -> .."]);
    for (const source of ["../outside", "a/../../outside", "out", "up/outside", "up"]) {
      await expect(built(copy(source, "/"))).rejects.toMatchObject({
        code: "build_failed",
        errorCause: expect.stringMatching(/^step 0 \(copy .*\): .* leads out of the context$/),
      });
    }
  });

  it.each(["missing", "missing/*", "*.none"])("%s are none: the step is named, and nothing is asked of the server", async (source) => {
    put("a");
    await using server = await startBuilder();
    const template = new Template().fromImage("base").run("x").copy("a", "/").copy(source, "/");
    await expect(buildTemplate("t", template, { baseUrl: server.url, context })).rejects.toMatchObject({
      code: "build_failed",
      context: { step: 2, step_kind: "copy" },
    });
    expect(server.requests).toEqual([]);
  });

  it("leave out what is neither file nor folder nor link, and say so", async () => {
    put("a");
    execFileSync("mkfifo", [path.join(context, "pipe")]);
    const told: unknown[] = [];
    await built(copy(".", "/"), { onEvent: (event) => event.kind === "warning" && told.push(event.text) });
    expect(told).toEqual(["pipe is left out: it is neither a file nor a folder nor a link"]);
  });

  it("that change while they are read are refused, and the file is named", async () => {
    put("a", "1");
    await using server = await startFakeServer((_request, response) => {
      put("a", "22");
      return response.writeHead(404).end();
    });
    await expect(buildTemplate("t", copy("a", "/"), { baseUrl: server.url, context })).rejects.toMatchObject({
      code: "invalid_input",
      errorCause: "a: it changed while it was read",
    });
  });
});

describe("a build", () => {
  it("asks for what the template says", async () => {
    const template = new Template()
      .fromImage("python:3.12-slim")
      .env("PATH", "/app/bin:${PATH}", { expand: true })
      .env("A", "1")
      .workdir("/app")
      .user("app")
      .run("make")
      .setStart("serve --port 80")
      .readyHttp(80, { path: "/up", timeoutSeconds: 9 })
      .warm("import json")
      .network({ allowDomains: ["pypi.org:443"], block: false })
      .cpu("1500m")
      .memory("1Gi");
    const { request, requests, info } = await built(template, { noCache: true, pull: true, context: "/nowhere" });
    expect(requests).toEqual(["POST"]);
    expect(info).toMatchObject({ id: "t", ready: true, creationTimeMs: 5 });
    expect(request).toEqual({
      id: "t",
      init_wait_seconds: 5,
      image: "python:3.12-slim",
      build_steps: [
        { type: "env", env_name: "PATH", env_value: "/app/bin:${PATH}", env_expand: true },
        { type: "env", env_name: "A", env_value: "1" },
        { type: "workdir", workdir: "/app" },
        { type: "user", user: "app" },
        { type: "run", run: "make" },
      ],
      warm: { language: "python", code: "import json" },
      no_cache: true,
      pull: true,
      network: { allow_domains: ["pypi.org:443"] },
      workload: { command: ["serve", "--port", "80"], ready: { port: 80, path: "/up", expect: 200, timeout_seconds: 9 } },
      resources: { vcpu_count: 2, mem_size_mib: 1024 },
    });
  });

  it("of the image's own program asks for that", async () => {
    const { request } = await built(new Template().fromImage("redis:7").entrypoint().readyPort(6379));
    expect(request.workload).toEqual({ entrypoint: true, ready: { kind: "port", port: 6379 } });
  });

  it.each(["", "1Xi", "-1", "one"])("with %j of memory is refused", async (memory) => {
    const spec = { image: "base", resources: { memory: memory || " " } };
    await expect(buildTemplate("t", spec, { baseUrl: "http://127.0.0.1:1" })).rejects.toMatchObject({ code: "invalid_input" });
  });

  it("whose context is no folder is refused", async () => {
    await expect(built(copy("a", "/"), { context: path.join(work, "none") })).rejects.toMatchObject({ code: "invalid_input" });
    put("file");
    await expect(built(copy("a", "/"), { context: path.join(context, "file") })).rejects.toMatchObject({ code: "invalid_input" });
  });

  it("that is given up sends nothing more", async () => {
    put("a");
    await using server = await startBuilder();
    const signal = AbortSignal.abort(new Error("no"));
    await expect(buildTemplate("t", copy("a", "/"), { baseUrl: server.url, context, signal })).rejects.toThrow();
    expect(server.requests).toEqual([]);
  });
});
