import { describe, expect, it, vi } from "vitest";
import { base64, endOfStream, type FakeServer, frame, json, type Respond, startFakeServer, stream } from "../test/fake-server.ts";
import { AgentRunError, ExecutionDeadlineError, IdleTimeoutError, NotFoundError, RequestCanceledError } from "./errors.ts";
import { create, Sandbox, SandboxServer } from "./index.ts";

const key = "mitos_sk_secret-value";

async function withSandbox<T>(
  respond: Respond,
  use: (sandbox: Sandbox, server: Awaited<ReturnType<typeof startFakeServer>>) => Promise<T>,
) {
  await using server = await startFakeServer(respond);
  return await use(new Sandbox({ id: "sb-conn", endpoint: server.url, token: key, template: "python" }), server);
}

const row = (id: string) => ({
  id,
  template_id: "python",
  endpoint: "http://localhost:8080",
  created_at: "2026-07-18T07:26:01Z",
  fork_time_ms: 0.842,
});

describe("exec", () => {
  it("joins the output, hands it on meanwhile, and gives the exit code", async () => {
    const seen: string[] = [];
    await withSandbox(
      (_request, response) =>
        stream(
          response,
          frame({ stdout: base64("first ") }),
          frame({ stdout: base64("second\n") }),
          frame({ stderr: base64("warn\n") }),
          frame({ exit: { exitCode: 3, execTimeMs: 4 } }),
          endOfStream,
        ),
      async (sandbox, server) => {
        const result = await sandbox.exec("ls", {
          timeoutSeconds: 30,
          cwd: "/tmp",
          env: { K: "V" },
          onStdout: (data) => seen.push(`out ${new TextDecoder().decode(data)}`),
          onStderr: (data) => seen.push(`err ${new TextDecoder().decode(data)}`),
        });
        expect(result).toEqual({ exitCode: 3, stdout: "first second\n", stderr: "warn\n", execTimeMs: 4 });
        expect(server.requests[0]?.messages()).toEqual([
          { command: "ls", timeoutSeconds: 30, cwd: "/tmp", env: [{ key: "K", value: "V" }] },
        ]);
        expect(server.requests[0]?.headers).toMatchObject({ "x-sandbox-id": "sb-conn", authorization: `Bearer ${key}` });
      },
    );
    expect(seen).toEqual(["out first ", "out second\n", "err warn\n"]);
  });

  const ok: Respond = (_request, response) => stream(response, frame({ exit: {} }), endOfStream);

  it("joins a character that was cut in two", async () => {
    const euro = Buffer.from("€");
    const cut: Respond = (_request, response) =>
      stream(
        response,
        frame({ stdout: base64(euro.subarray(0, 1)) }),
        frame({ stdout: base64(euro.subarray(1)) }),
        frame({ exit: {} }),
        endOfStream,
      );
    expect(await withSandbox(cut, (sandbox) => sandbox.exec("x"))).toMatchObject({ stdout: "€", exitCode: 0 });
  });

  it.each([
    ["a line for the shell", "ls -l | wc", { command: "ls -l | wc" }],
    ["a program and arguments, with no shell", ["python3", "-c", "print('a b')"], { command: "python3", args: ["-c", "print('a b')"] }],
    ["a program alone, which must not be read as a shell line", ["it's"], { command: "exec 'it'\\''s'" }],
  ])("sends %s", async (_title, command, message) => {
    await withSandbox(ok, async (sandbox, server) => {
      await sandbox.exec(command);
      expect(server.requests[0]?.messages()).toEqual([message]);
    });
  });

  it("turns exit code 124 into ExecutionDeadlineError with the time it had", async () => {
    const killed: Respond = (_request, response) => stream(response, frame({ exit: { exitCode: 124 } }), endOfStream);
    const error = await withSandbox(killed, (sandbox) => sandbox.exec("sleep 99").catch((reason: unknown) => reason));
    expect(error).toBeInstanceOf(ExecutionDeadlineError);
    expect(error).toMatchObject({ code: "exec_timeout", context: { timeout_s: 30 } });
  });

  it("throws exec_stream_error when the last frame says that the program could not be run", async () => {
    const bogus: Respond = (_request, response) =>
      stream(response, frame({ exit: { exitCode: 1, error: "no such command: bogus" } }), endOfStream);
    await expect(withSandbox(bogus, (sandbox) => sandbox.exec("bogus"))).rejects.toMatchObject({
      code: "exec_stream_error",
      errorCause: "no such command: bogus",
    });
  });

  it("throws exec_stream_truncated when the body ends before the exit", async () => {
    const cut: Respond = (_request, response) => stream(response, frame({ stdout: base64("x") }));
    await expect(withSandbox(cut, (sandbox) => sandbox.exec("x"))).rejects.toMatchObject({ code: "exec_stream_truncated" });
  });

  it("refuses a time-out above the ceiling before it sends anything", async () => {
    await withSandbox(ok, async (sandbox, server) => {
      await expect(sandbox.exec("x", { timeoutSeconds: 86_401 })).rejects.toMatchObject({
        code: "timeout_too_large",
        context: { requested_s: 86_401, max_timeout_s: 86_400 },
      });
      expect(server.requests).toEqual([]);
      await sandbox.exec("x", { timeoutSeconds: 86_400 });
    });
  });

  it("closes its request when the signal fires, and throws RequestCanceledError", async () => {
    const { promise: closed, resolve } = Promise.withResolvers<void>();
    const forever: Respond = (_request, response) => {
      response.writeHead(200).write(frame({ stdout: base64("started") }));
      response.on("close", resolve);
    };
    await withSandbox(forever, async (sandbox) => {
      const controller = new AbortController();
      const work = sandbox.exec("forever", { signal: controller.signal, onStdout: () => controller.abort(new Error("enough")) });
      await expect(work).rejects.toBeInstanceOf(RequestCanceledError);
      await closed;
    });
  });

  it("closes its request when an iteration is left", async () => {
    const { promise: closed, resolve } = Promise.withResolvers<void>();
    const forever: Respond = (_request, response) => {
      response.writeHead(200).write(frame({ stdout: base64("started") }));
      response.on("close", resolve);
    };
    await withSandbox(forever, async (sandbox) => {
      for await (const _event of sandbox.execStream("forever")) break;
      await closed;
    });
  });
});

describe("runCode", () => {
  it("folds output, results and their MIME types", async () => {
    const respond: Respond = (_request, response) =>
      stream(
        response,
        frame({ stdout: base64("out\n") }),
        frame({ result: { text: "42", data: { "text/plain": base64("42"), "image/png": base64("aGVsbG8=") } } }),
        frame({ exitCode: 0 }),
        endOfStream,
      );
    await withSandbox(respond, async (sandbox, server) => {
      const results: unknown[] = [];
      const execution = await sandbox.runCode("6 * 7", {
        onResult: (result) => results.push(result.png),
        onStdout: (text) => results.push(text),
      });
      expect(execution).toMatchObject({ text: "42", logs: { stdout: ["out\n"], stderr: [] }, error: null });
      expect(execution.results[0]).toMatchObject({ isMainResult: true, png: "aGVsbG8=", text: "42" });
      expect(results).toEqual(["out\n", "aGVsbG8="]);
      expect(server.requests[0]?.messages()).toEqual([{ code: "6 * 7", language: "python" }]);
    });
  });

  it("gives an exception of the code as a result", async () => {
    const respond: Respond = (_request, response) =>
      stream(
        response,
        frame({ error: { name: "ValueError", value: "bad", traceback: ["ValueError: bad"] } }),
        frame({ exitCode: 1 }),
        endOfStream,
      );
    const execution = await withSandbox(respond, (sandbox) => sandbox.runCode("x"));
    expect(execution.error).toEqual({ name: "ValueError", value: "bad", traceback: ["ValueError: bad"] });
    expect(execution.text).toBeNull();
  });

  it("throws run_code_stream_truncated without the terminal exit", async () => {
    const respond: Respond = (_request, response) => stream(response, frame({ stdout: base64("x") }), endOfStream);
    const error = await withSandbox(respond, (sandbox) => sandbox.runCode("x").catch((reason: unknown) => reason));
    expect(error).toMatchObject({ code: "run_code_stream_truncated", message: expect.stringContaining("terminal exit frame") });
  });
});

describe("fork", () => {
  it("asks for all children in one request, with a key of its own", async () => {
    const respond: Respond = (request, response) => {
      const ids = request.json().ids as string[];
      json(response, 200, { children: ids.map(row), paused_ms: 41.5, snapshot_bytes: 1024 });
    };
    await withSandbox(respond, async (sandbox, server) => {
      const children = await sandbox.fork(3);
      expect(children.map(({ id }) => id)).toEqual(server.requests[0]?.json().ids);
      expect(children).toMatchObject({ pausedMs: 41.5, snapshotBytes: 1024 });
      expect(new Set(children.map(({ id }) => id)).size).toBe(3);
      expect(server.requests).toHaveLength(1);
      expect(server.requests[0]).toMatchObject({ method: "POST", path: "/v1/sandboxes/sb-conn/fork" });
      expect(server.requests[0]?.json()).toMatchObject({ count: 3, template: "python", pause_source: true });
      expect(server.requests[0]?.headers["idempotency-key"]).toMatch(/^[0-9a-f]{32}$/);
    });
  });

  it("names children after the given id", async () => {
    const respond: Respond = (request, response) => {
      const { id, ids } = request.json();
      json(response, 200, { children: ((ids ?? [id]) as string[]).map(row) });
    };
    await withSandbox(respond, async (sandbox) => {
      expect((await sandbox.fork({ count: 2, id: "c" })).map(({ id }) => id)).toEqual(["c-0", "c-1"]);
      expect((await sandbox.fork(1, { id: "c" })).map(({ id }) => id)).toEqual(["c"]);
    });
  });

  /** A server that knows one child per request: it answers the child itself, and misses `id` when it is not there. */
  const olderServer: Respond = (request, response) => {
    const { id } = request.json();
    if (typeof id !== "string") return json(response, 400, { error: { code: "invalid_json", message: "m", remediation: "r" } });
    return json(response, 200, row(id));
  };

  it("falls back to one request per child where the server knows no count", async () => {
    await withSandbox(olderServer, async (sandbox, server) => {
      const children = await sandbox.fork(3);
      expect(new Set(children.map(({ id }) => id)).size).toBe(3);
      expect(new Set(server.requests.map(({ headers }) => headers["idempotency-key"])).size).toBe(4);
    });
  });

  it("keeps no child when a later one cannot be made in that fallback", async () => {
    let forks = 0;
    const respond: Respond = (request, response) => {
      if (request.method === "DELETE") return json(response, 200, {});
      if (++forks === 4) return json(response, 429, { error: { code: "quota_exceeded", message: "full", remediation: "wait" } });
      return olderServer(request, response);
    };
    await withSandbox(respond, async (sandbox, server) => {
      await expect(sandbox.fork(3)).rejects.toMatchObject({ code: "quota_exceeded", status: 429 });
      expect(server.requests.filter(({ method }) => method === "DELETE")).toHaveLength(2);
    });
  });

  it.each([0, -1, 1.5, 101])("of %s children is refused before it is sent", async (count) => {
    await withSandbox(olderServer, async (sandbox, server) => {
      await expect(sandbox.fork(count)).rejects.toMatchObject({ code: "invalid_input" });
      expect(server.requests).toEqual([]);
    });
  });

  it("waits longer than two minutes for its answer", async () => {
    const timeouts = vi.spyOn(AbortSignal, "timeout");
    await withSandbox(
      (request, response) => json(response, 200, row(request.json().id as string)),
      (sandbox) => sandbox.fork(),
    );
    expect(timeouts.mock.calls[0]?.[0]).toBeGreaterThan(120_000);
    timeouts.mockRestore();
  });

  it("is waited for though its time-out is longer than a timer can be", async () => {
    const slow: Respond = async (request, response) => {
      await new Promise((resolve) => setTimeout(resolve, 20));
      json(response, 200, row(request.json().id as string));
    };
    expect(await withSandbox(slow, (sandbox) => sandbox.fork(1, { timeoutMs: 2 ** 31 }))).toHaveLength(1);
  });

  it("that is not answered in time is fork_unavailable", async () => {
    const never: Respond = () => undefined;
    await expect(withSandbox(never, (sandbox) => sandbox.fork(1, { timeoutMs: 30 }))).rejects.toMatchObject({ code: "fork_unavailable" });
  });
});

describe("the life cycle", () => {
  it("uses the published routes", async () => {
    const respond: Respond = (request, response) => {
      if (request.path === "/v1/set_timeout") return json(response, 200, { deadline_unix: 1_700_000_600 });
      if (request.path === "/v1/preview")
        return json(response, 200, { url: "http://p/?token=t", expires_unix: 1, browser_url: "http://b/" });
      if (request.path.endsWith("/forward")) return json(response, 200, { host: "127.0.0.1:4", guest_port: 5432 });
      return json(response, 200, {});
    };
    await withSandbox(respond, async (sandbox, server) => {
      expect(await sandbox.setTimeout(600)).toBe(1_700_000_600);
      await sandbox.pause();
      await sandbox.resume();
      expect(await sandbox.getHost(8080)).toBe("http://p/?token=t");
      expect(await sandbox.preview(8080)).toEqual({ url: "http://p/?token=t", browserUrl: "http://b/", expiresUnix: 1 });
      expect(await sandbox.forward(5432)).toBe("127.0.0.1:4");
      await sandbox.terminate({ subtree: true });
      expect(server.requests.map(({ method, path }) => `${method} ${path}`)).toEqual([
        "POST /v1/set_timeout",
        "POST /v1/pause",
        "POST /v1/resume",
        "POST /v1/preview",
        "POST /v1/preview",
        "POST /v1/sandboxes/sb-conn/forward",
        "DELETE /v1/sandboxes/sb-conn?subtree=true",
      ]);
      expect(server.requests[0]?.json()).toEqual({ sandbox: "sb-conn", timeout_seconds: 600 });
    });
  });

  it.each([0, 70_000, 1.5])("refuses port %s without a request", async (port) => {
    await withSandbox(
      () => undefined,
      async (sandbox, server) => {
        await expect(sandbox.getHost(port)).rejects.toMatchObject({ code: "invalid_input" });
        await expect(sandbox.forward(port)).rejects.toMatchObject({ code: "invalid_input" });
        expect(server.requests).toEqual([]);
      },
    );
  });

  it("ends with the block of `await using`, also when it has ended already", async () => {
    for (const [status, code] of [
      [200, ""],
      [404, "not_found"],
      [410, "idle_timeout"],
    ] as const) {
      const respond: Respond = (_request, response) => json(response, status, { error: { code, message: "m", remediation: "r" } });
      await withSandbox(respond, async (sandbox, server) => {
        {
          await using _sandbox = sandbox;
        }
        expect(server.requests).toMatchObject([{ method: "DELETE" }]);
      });
    }
  });

  it("shows the key nowhere", async () => {
    const sandbox = new Sandbox({ id: "sb", endpoint: "127.0.0.1:9", token: key });
    const { inspect } = await import("node:util");
    expect(`${JSON.stringify(sandbox)} ${inspect(sandbox, { depth: 9, showHidden: true })}`).not.toContain(key);
  });

  it.each(["", "..", "a/b", "-leading", "x".repeat(65)])("refuses the id %j before any request", (id) => {
    expect(() => new Sandbox({ id, endpoint: "127.0.0.1:9" })).toThrow(expect.objectContaining({ code: "invalid_sandbox_id" }));
  });
});

describe("create", () => {
  it("makes a sandbox from a template that exists in one request", async () => {
    await using server = await startFakeServer((request, response) =>
      json(response, 200, { ...row(request.json().id as string), template_id: "live:x" }),
    );
    const sandbox = await create({ baseUrl: `${server.url}/`, apiKey: key, env: { K: "V" }, timeoutSeconds: 60, metadata: { team: "a" } });
    expect(sandbox).toMatchObject({
      id: expect.stringMatching(/^sandbox-[0-9a-f]{8}$/),
      endpoint: server.url,
      template: "python",
      forkTimeMs: 0.842,
    });
    expect(server.requests).toMatchObject([{ method: "POST", path: "/v1/fork" }]);
    expect(server.requests[0]?.json()).toEqual({
      template: "python",
      id: sandbox.id,
      env: { K: "V" },
      timeout_seconds: 60,
      metadata: { team: "a" },
    });
    expect(server.requests[0]?.headers).toMatchObject({
      "idempotency-key": expect.stringMatching(/^[0-9a-f]{32}$/),
      authorization: `Bearer ${key}`,
    });
  });

  it.each<[string, Parameters<typeof create>]>([
    ["nothing", []],
    ["a name", ["node"]],
    ["a name and options", ["node", { id: "mine" }]],
    ["template", [{ template: "node" }]],
    ["image, as it is called in the other SDKs", [{ image: "node" }]],
  ])("takes %s", async (_what, args) => {
    await using server = await startFakeServer((_request, response) => json(response, 200, row("x")));
    vi.stubEnv("MITOS_BASE_URL", server.url);
    for (const make of [create, Sandbox.create]) {
      const sandbox = await make(...args);
      expect(sandbox.template).toBe(args.length === 0 ? "python" : "node");
    }
    vi.unstubAllEnvs();
    const asked = server.requests.map((request) => request.json());
    expect(asked).toMatchObject(Array(2).fill({ template: args.length === 0 ? "python" : "node", ...args[1] }));
  });

  it("refuses two names for what the sandbox is made from", async () => {
    await expect(create({ template: "a", image: "b", baseUrl: "http://127.0.0.1:1" })).rejects.toMatchObject({ code: "invalid_input" });
  });

  it("gives what the quickstarts use", async () => {
    await using server = await startFakeServer((_request, response) => json(response, 200, row("x")));
    const sandbox = await create("python", { baseUrl: server.url });
    const methods = ["exec", "runCode", "pty", "createPty", "setTimeout", "pause", "resume", "getHost", "fork", "terminate"] as const;
    const ofFiles = ["read", "readBytes", "write", "list", "exists", "remove", "mkdir"] as const;
    for (const method of methods) expect(sandbox[method]).toBeTypeOf("function");
    for (const method of ofFiles) expect(sandbox.files[method]).toBeTypeOf("function");
  });

  it("builds a template that is not there yet, and then asks again with the same key", async () => {
    let built = false;
    await using server = await startFakeServer((request, response) => {
      if (request.path === "/v1/templates") {
        built = true;
        return json(response, 200, { id: "node", ready: true, created_at: "", creation_time_ms: 1 });
      }
      if (!built) return json(response, 404, { error: { code: "not_found", message: "m", remediation: "r" } });
      return json(response, 200, row(request.json().id as string));
    });
    await create({ template: "node", baseUrl: server.url });
    expect(server.requests.map(({ path }) => path)).toEqual(["/v1/fork", "/v1/templates", "/v1/fork"]);
    expect(server.requests[0]?.headers["idempotency-key"]).toBe(server.requests[2]?.headers["idempotency-key"]);
  });

  it("asks for the network of the sandbox, not of its template, sending what differs from the default", async () => {
    await using server = await startFakeServer((request, response) => json(response, 200, row(request.json().id as string)));
    await create({ baseUrl: server.url, network: { block: true, egress: "deny", allowDomains: ["api.example.com:443"] } });
    expect(server.requests.map(({ path }) => path)).toEqual(["/v1/fork"]);
    expect(server.requests[0]?.json()).toMatchObject({ network: { block: true, allow_domains: ["api.example.com:443"] } });
  });
});

describe("create, with a template that", () => {
  const calls = (server: FakeServer) => server.requests.map(({ path }) => path);
  const refusal = (code: string) => ({ error: { code, message: "m", remediation: "r" } });

  it("is there: asks for a sandbox alone, every time", async () => {
    await using server = await startFakeServer((request, response) => json(response, 200, row(request.json().id as string)));
    for (const apiKey of ["a", "b"]) for (const template of ["python", "node"]) await create({ template, apiKey, baseUrl: server.url });
    expect(calls(server)).toEqual(["/v1/fork", "/v1/fork", "/v1/fork", "/v1/fork"]);
  });

  it("is still missing after it was built: gives up with the second 404", async () => {
    await using server = await startFakeServer((request, response) =>
      request.path === "/v1/templates" ? json(response, 200, {}) : json(response, 404, refusal("not_found")),
    );
    await expect(create({ baseUrl: server.url })).rejects.toBeInstanceOf(NotFoundError);
    expect(calls(server)).toEqual(["/v1/fork", "/v1/templates", "/v1/fork"]);
  });

  it("somebody else is just building (409): asks again without building it", async () => {
    await using server = await startFakeServer((request, response) => {
      if (request.path === "/v1/templates") return json(response, 409, refusal("conflict"));
      if (server.requests.length === 1) return json(response, 404, refusal("not_found"));
      return json(response, 200, row(request.json().id as string));
    });
    await create({ baseUrl: server.url });
    expect(calls(server)).toEqual(["/v1/fork", "/v1/templates", "/v1/fork"]);
  });

  it.each([401, 403, 429, 500])("cannot be used now (%i): does not try again", async (status) => {
    await using server = await startFakeServer((_request, response) => json(response, status, refusal("some_code")));
    await expect(create({ baseUrl: server.url })).rejects.toMatchObject({ status });
    expect(calls(server)).toEqual(["/v1/fork"]);
  });

  it("has a workload: defines it first, every time, and never from memory", async () => {
    await using server = await startFakeServer((_request, response) => json(response, 200, row("x")));
    const workload = { command: ["serve"], ready: { port: 9222, path: "/json/version", expect: 200, timeoutSeconds: 90 } };
    await create({ baseUrl: server.url, workload });
    await create({ baseUrl: server.url, workload });
    expect(calls(server)).toEqual(["/v1/templates", "/v1/fork", "/v1/templates", "/v1/fork"]);
    expect(server.requests[0]?.json()).toMatchObject({
      init_wait_seconds: 5,
      workload: { command: ["serve"], ready: { port: 9222, path: "/json/version", expect: 200, timeout_seconds: 90 } },
    });
  });

  it("is to run in a region: says so, and only then", async () => {
    await using server = await startFakeServer((_request, response) => json(response, 200, row("x")));
    await create({ baseUrl: server.url, region: "eu" });
    await create({ baseUrl: server.url });
    expect(server.requests.map((request) => request.json().region)).toEqual(["eu", undefined]);
    expect(Object.keys(server.requests[1]!.json())).toEqual(["template", "id"]);
  });
});

describe("SandboxServer", () => {
  it("lists all pages, in the list's shape and in the hosted object's", async () => {
    await using server = await startFakeServer((request, response) => {
      const second = request.path.includes("cursor=c1");
      if (!second) response.setHeader("X-Next-Cursor", "c1");
      json(response, 200, second ? { sandboxes: [row("b")] } : [row("a")]);
    });
    const rows = await new SandboxServer(server.url).listSandboxes({ state: "running", metadata: { team: "a" } });
    expect(rows.map(({ id }) => id)).toEqual(["a", "b"]);
    expect(server.requests[0]?.path).toBe("/v1/sandboxes?state=running&metadata.team=a");
  });

  it("sends an Idempotency-Key with templates and forks, or the given one", async () => {
    await using server = await startFakeServer((_request, response) => json(response, 200, row("x")));
    const client = SandboxServer.fromAuth({ baseUrl: server.url });
    await client.createTemplate("t");
    await client.fork("t", "x", { idempotencyKey: "mine" });
    expect(server.requests[0]?.headers["idempotency-key"]).toMatch(/^[0-9a-f]{32}$/);
    expect(server.requests[1]?.headers["idempotency-key"]).toBe("mine");
  });

  it("takes a 2xx answer that is a web page for what it is", async () => {
    await using server = await startFakeServer((_request, response) => response.end("<html>"));
    await expect(new SandboxServer(server.url).health()).rejects.toMatchObject({
      code: "invalid_response",
      remediation: expect.stringContaining(server.url),
    });
  });

  it("names the hosted service's API where its pages have answered", async () => {
    vi.stubGlobal("fetch", async () => new Response("<html>"));
    const error = await new SandboxServer("https://mitos.run").health().catch((reason: unknown) => reason);
    vi.unstubAllGlobals();
    expect(error).toMatchObject({ code: "invalid_response", remediation: expect.stringContaining("https://api.mitos.run") });
  });

  it("says where nothing answered, and how to start a server", async () => {
    const server = await startFakeServer(() => undefined);
    await server[Symbol.asyncDispose]();
    const error = await new SandboxServer(server.url, key).health().catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(AgentRunError);
    expect(error).toMatchObject({
      code: "transport_error",
      errorCause: expect.stringContaining("ECONNREFUSED"),
      remediation: expect.stringContaining("mitos serve"),
    });
  });

  it("does not follow a redirect, which could carry the key elsewhere", async () => {
    await using other = await startFakeServer((_request, response) => json(response, 200, {}));
    await using server = await startFakeServer((_request, response) =>
      response.writeHead(302, { Location: `${other.url}/v1/health` }).end(),
    );
    await expect(new SandboxServer(server.url, key).health()).rejects.toMatchObject({ code: "transport_error" });
    expect(other.requests).toEqual([]);
  });
});

describe("connect", () => {
  it("tells a sandbox that never was from one that has ended", async () => {
    await using server = await startFakeServer((request, response) => {
      const code = request.path.endsWith("gone") ? "idle_timeout" : "not_found";
      json(response, code === "not_found" ? 404 : 410, { error: { code, message: "m", remediation: "r" } });
    });
    await expect(Sandbox.connect("never", { baseUrl: server.url })).rejects.toBeInstanceOf(NotFoundError);
    await expect(Sandbox.connect("gone", { baseUrl: server.url })).rejects.toBeInstanceOf(IdleTimeoutError);
  });
});
