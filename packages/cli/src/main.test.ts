import { mkdtempSync, rmSync } from "node:fs";
import { createServer as createHttpServer } from "node:http";
import { type AddressInfo, createServer } from "node:net";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { firstLine, start as spawnMitos } from "./testing.ts";

// The command as users start it, against a server with the mock engine: it claims the life cycle and refuses the rest.
const dir = mkdtempSync(path.join(os.tmpdir(), "mitos-cli-"));

const start = (args: readonly string[], env: Record<string, string> = {}) => spawnMitos(args, { HOME: dir, ...env });

let url: string;
let server: ReturnType<typeof start>;
const mitos = (...args: string[]) => start(args, { MITOS_BASE_URL: url }).ended;

beforeAll(async () => {
  server = start([
    "serve",
    "--engine",
    "mock",
    "--addr",
    "127.0.0.1:0",
    "--data-dir",
    path.join(dir, "data"),
    "--ephemeral",
    "--preview-ttl-seconds",
    "7200",
  ]);
  url = (await firstLine(server)).replace("Mitos listens on ", "");
  expect(url, server.seen.err).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/);
});
afterAll(async () => {
  server.child.kill("SIGTERM");
  expect(await server.ended).toMatchObject({ code: 0, err: expect.stringContaining("stopping, and ending all sandboxes") });
  rmSync(dir, { recursive: true });
});

describe("the command line", () => {
  it("prints its usage and exits with 2 without arguments, with 0 for help", async () => {
    expect(await mitos()).toMatchObject({ code: 2, out: "", err: expect.stringContaining("Usage: mitos") });
    for (const help of ["help", "-h", "--help"]) {
      expect(await mitos(help)).toMatchObject({ code: 0, err: "", out: expect.stringContaining("Usage: mitos") });
    }
  });

  it.each([["version"], ["--version"], ["-v"]])("%s prints the version", async (word) => {
    expect(await mitos(word)).toMatchObject({ code: 0, out: expect.stringMatching(/^mitos \d+\.\d+\.\d+ \(.*\)\n$/) });
  });

  it.each([
    ["an unknown command", ["bogus"]],
    ["a missing argument", ["sandbox", "exec"]],
    ["a missing command", ["run"]],
    ["an unknown flag", ["sandbox", "ls", "--bogus"]],
    ["an unknown format", ["sandbox", "ls", "-o", "yaml"]],
    ["a number that is none", ["fork", "x", "--count", "two"]],
    ["an unknown engine", ["serve", "--engine", "bogus"]],
    ["an address without a port", ["serve", "--addr", "127.0.0.1"]],
    ["an address that other machines reach", ["serve", "--addr", "0.0.0.0:8080"]],
    ["all addresses", ["serve", "--addr", ":8080"]],
    ["a shell without a terminal", ["shell", "new"]],
  ])("exits with 2 for %s", async (_title, args) => {
    expect(await mitos(...args)).toMatchObject({ code: 2, out: "", err: expect.stringMatching(/^error: /) });
  });

  it("says what is wrong, why, and what to do, when nobody answers", async () => {
    const probe = createServer();
    const port = await new Promise<number>((resolve) =>
      probe.listen(0, "127.0.0.1", () => resolve((probe.address() as { port: number }).port)),
    );
    await new Promise((resolve) => probe.close(resolve));
    const { code, err } = await mitos("--server", `127.0.0.1:${port}`, "sandbox", "ls");
    expect(code).toBe(1);
    expect(err).toMatch(/^error: no answer from .*\ncause: .*ECONNREFUSED.*\nnext step: .*mitos serve.*\n$/);
  });
});

describe("sandboxes", () => {
  it("are created, listed, forked and terminated", async () => {
    const created = await mitos("sandbox", "create");
    expect(created).toMatchObject({ code: 0, err: "", out: expect.stringMatching(/^sandbox-[0-9a-f]{8}\n$/) });
    const id = created.out.trim();

    const forked = await mitos("sandbox", "fork", id, "--replicas", "2");
    expect(forked.out.trim().split("\n")).toHaveLength(2);
    expect((await mitos("fork", "--count", "3", "--replicas", "1", id)).out.trim().split("\n")).toHaveLength(3);

    const listed = await mitos("sandbox", "ls");
    const [header, first] = listed.out.split("\n");
    expect(header).toMatch(/^NAME +POOL +PHASE +NODE +ENDPOINT +AGE +ISOLATION$/);
    expect(first).toMatch(new RegExp(`^${id} +python +Ready +- +${url} +\\d+s +mock$`));
    for (const json of [["-o", "json"], ["--json"]]) {
      const { sandboxes } = JSON.parse((await mitos("sandbox", "ls", ...json)).out);
      expect(sandboxes).toHaveLength(6);
      expect(sandboxes[0]).toMatchObject({ name: id, pool: "python", phase: "Ready", endpoint: url, ageSeconds: expect.any(Number) });
    }

    expect(await mitos("sandbox", "terminate", id, "--subtree")).toMatchObject({ code: 0, out: `terminated ${id}\n` });
    expect(await mitos("sandbox", "ls")).toMatchObject({ code: 0, out: "No sandboxes found.\n" });
  });

  it("show their ports under URLs that are valid for as long as serve was told", async () => {
    const id = (await mitos("sandbox", "create")).out.trim();
    const { code, out } = await mitos("sandbox", "preview", id, "8080");
    expect([code, out]).toEqual([
      0,
      expect.stringMatching(new RegExp(`^http://p8080-${id}\\.localhost:${new URL(url).port}/\\?token=\\S+\n$`)),
    ]);
    const payload = new URL(out).searchParams.get("token")!.split(".")[0]!;
    const { e } = JSON.parse(Buffer.from(payload, "base64url").toString()) as { e: number };
    expect(Math.abs(e - Date.now() / 1000 - 7200)).toBeLessThan(120);
    for (const port of ["0", "65536"]) {
      expect(await mitos("sandbox", "preview", id, port)).toMatchObject({ code: 2, err: expect.stringContaining("from 1 to 65535") });
    }
    expect(await mitos("sandbox", "forward", id, "8080")).toMatchObject({ code: 1, err: expect.stringContaining("mock engine") });
    await mitos("sandbox", "terminate", id);
  });

  it("take flags before and after the other words", async () => {
    for (const args of [
      ["--pool", "node", "sandbox", "create"],
      ["sandbox", "create", "--pool", "node"],
      ["sandbox", "--pool", "node", "create"],
    ]) {
      const { out } = await mitos(...args);
      const { sandboxes } = JSON.parse((await mitos("sandbox", "ls", "--json")).out);
      expect(sandboxes).toMatchObject([{ name: out.trim(), pool: "node" }]);
      await mitos("sandbox", "terminate", out.trim());
    }
  });

  it.each([
    ["exec", ["sandbox", "exec", "nope", "true"]],
    ["fork", ["fork", "nope"]],
    ["terminate", ["sandbox", "terminate", "nope"]],
  ])("that do not exist: %s exits with 3", async (_title, args) => {
    expect(await mitos(...args)).toMatchObject({ code: 3, out: "", err: expect.stringContaining("nope") });
  });

  it("run nothing on the mock engine, which says so, and leave none behind", async () => {
    const { code, err } = await mitos("run", "echo", "hi", "--pool", "python");
    expect({ code, err }).toMatchObject({ code: 1, err: expect.stringContaining("the mock engine runs nothing") });
    expect((await mitos("sandbox", "ls")).out).toBe("No sandboxes found.\n");
  });
});

describe("serve", () => {
  it("says that an address is in use", async () => {
    const second = start(["serve", "--engine", "mock", "--addr", new URL(url).host, "--data-dir", path.join(dir, "second")]);
    expect(await second.ended).toMatchObject({ code: 1, err: expect.stringMatching(/is in use[\s\S]*next step: /) });
  });

  it("says that a data directory is in use", async () => {
    const second = start(["serve", "--engine", "mock", "--addr", "127.0.0.1:0", "--data-dir", path.join(dir, "data")]);
    expect(await second.ended).toMatchObject({ code: 1, err: expect.stringContaining("another server uses this data directory") });
  });

  it("does not start with a preview secret that can be guessed, and answers 501 without previews", async () => {
    const args = ["serve", "--engine", "mock", "--addr", "127.0.0.1:0", "--data-dir", path.join(dir, "guessed")];
    const refused = await start(args, { MITOS_PREVIEW_SECRET: "fifteen bytes .".slice(0, 15) }).ended;
    expect(refused).toMatchObject({ code: 1, err: expect.stringContaining("the preview secret is too short") });
    expect(refused.err).not.toContain("fifteen");

    const off = start([...args, "--no-previews"]);
    const address = (await firstLine(off)).replace("Mitos listens on ", "");
    const body = JSON.stringify({ sandbox: "a", port: 1 });
    const { status } = await fetch(`${address}/v1/preview`, { method: "POST", body, headers: { Connection: "close" } });
    off.child.kill("SIGTERM");
    expect([status, (await off.ended).code]).toEqual([501, 0]);
  });

  it("puts its state where XDG says, and goes down at SIGINT, even when it arrives twice at once", async () => {
    const other = start(["serve", "--engine", "mock", "--addr", "127.0.0.1:0"], { XDG_DATA_HOME: path.join(dir, "xdg") });
    await firstLine(other);
    expect(other.seen.out).toContain(path.join(dir, "xdg/mitos"));
    other.child.kill("SIGINT");
    other.child.kill("SIGINT");
    expect(await other.ended).toMatchObject({ code: 0, err: expect.stringContaining("sandboxes run on") });
  });
});

describe("quickstart", () => {
  it("fails, and does not pretend, on an engine that runs nothing", async () => {
    const { code, out, err } = await start(["quickstart", "--engine", "mock"]).ended;
    expect({ code, out, err }).toMatchObject({
      code: 1,
      out: expect.stringMatching(/✗ run a command/),
      err: expect.stringMatching(/^error: /m),
    });
  });
});

describe("a server that is watched", () => {
  const serve = (name: string, args: readonly string[], env: Record<string, string> = {}) =>
    start(["serve", "--engine", "mock", "--addr", "127.0.0.1:0", "--data-dir", path.join(dir, name), "--ephemeral", ...args], env);

  async function ask(child: ReturnType<typeof start>): Promise<{ requestId: string; err: string }> {
    const base = (await firstLine(child)).replace("Mitos listens on ", "");
    const response = await fetch(`${base}/v1/health`, { headers: { Connection: "close" } });
    await response.text();
    child.child.kill("SIGTERM");
    const { code, err } = await child.ended;
    expect(code, err).toBe(0);
    return { requestId: response.headers.get("x-request-id")!, err };
  }

  it("logs each request with its id, as JSON, with --log-level debug", async () => {
    const { requestId, err } = await ask(serve("logs", ["--log-level", "debug"]));
    const lines = err.split("\n").flatMap((line) => (line.startsWith("{") ? [JSON.parse(line)] : []));
    expect(lines).toContainEqual(
      expect.objectContaining({
        level: "debug",
        message: "answered",
        requestId,
        route: "/v1/health",
        status: 200,
        time: expect.any(String),
      }),
    );
  });

  it("logs no request by default", async () => {
    expect((await ask(serve("quiet", []))).err).not.toContain("answered");
  });

  it("sends what it has traced to the collector that the environment names, also when it ends", async () => {
    const paths: string[] = [];
    const collector = createHttpServer((request, response) => {
      paths.push(`${request.method} ${request.url}`);
      request.resume().on("end", () => response.end("{}"));
    });
    await new Promise<void>((resolve) => collector.listen(0, "127.0.0.1", resolve));
    const { port } = collector.address() as AddressInfo;
    await ask(serve("traced", [], { OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${port}` }));
    expect(paths).toContain("POST /v1/traces");
    collector.closeAllConnections();
    collector.close();
  });
});
