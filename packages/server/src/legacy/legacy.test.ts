import { once } from "node:events";
import { request as httpRequest } from "node:http";
import { describe, expect, it } from "vitest";
import { type Answer, b64, collect, get, post, send, useServer } from "../testing/harness.ts";

const at = useServer({ maxStreamsPerSandbox: 1, maxExecTimeoutSeconds: 100 });
const sandbox = "sb-1";

const lines = ({ text }: Answer) =>
  text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));

/** The answer's lines while they come, on a connection that the test can cut. */
async function openLines(path: string, body: object) {
  const request = httpRequest(at.url + path, { method: "POST", agent: false });
  request.end(JSON.stringify({ sandbox, ...body }));
  const [response] = await once(request, "response");
  response.on("error", () => {}); // the test cuts it
  let text = "";
  response.on("data", (data: Buffer) => {
    text += data;
  });
  return {
    headers: response.headers,
    lines: () =>
      text
        .split("\n")
        .filter(Boolean)
        .map((line) => JSON.parse(line)),
    cut: () => request.destroy(),
  };
}

describe("POST /v1/exec", () => {
  it("answers with the whole output and the exit code", async () => {
    at.runtime.gate.resolve();
    const { status, headers, json } = await post(at, "/v1/exec", { sandbox, command: "gated" });
    expect([status, headers["content-type"]]).toEqual([200, "application/json"]);
    expect(json).toEqual({ exit_code: 3, stdout: "first second\n", stderr: "warn\n", exec_time_ms: 4 });
    expect(at.runtime.starts).toMatchObject([{ shellCommand: "gated", cwd: undefined, env: {}, timeoutMs: 30_000 }]);
  });

  it("joins the characters that output was cut in", async () => {
    expect((await post(at, "/v1/exec", { sandbox, command: "umlauts" })).json.stdout).toBe("äö€😀".repeat(6000));
  });

  it("takes a working directory, variables and a time-out, and nulls for what is not said", async () => {
    await post(at, "/v1/exec", { sandbox, command: "x", working_dir: "/tmp", env: { A: "1" }, timeout: 9 });
    await post(at, "/v1/exec", { sandbox, command: "x", working_dir: null, env: null, timeout: null });
    await post(at, "/v1/exec", { sandbox, command: "x", working_dir: "", timeout: 0 });
    const usual = { cwd: undefined, env: {}, timeoutMs: 30_000 };
    expect(at.runtime.starts).toMatchObject([{ cwd: "/tmp", env: { A: "1" }, timeoutMs: 9000 }, usual, usual]);
  });

  it("runs an empty command, which does nothing", async () => {
    expect((await post(at, "/v1/exec", { sandbox, command: "" })).json).toMatchObject({ exit_code: 0, stdout: "", stderr: "" });
  });

  it("tells a time-out with 504 and its seconds", async () => {
    const { status, json } = await post(at, "/v1/exec", { sandbox, command: "timeout", timeout: 7 });
    expect([status, json.error.code, json.error.context]).toEqual([504, "exec_timeout", { sandbox, timeout_s: 7 }]);
  });

  it.each([
    ["bogus", /no such command: bogus/],
    ["lost", /link is gone/],
  ])("tells of a program that could not be run to its end (%s) with 500", async (command, cause) => {
    const { status, json } = await post(at, "/v1/exec", { sandbox, command });
    expect([status, json.error.code, json.error.context]).toEqual([500, "exec_failed", { sandbox }]);
    expect(json.error.cause).toMatch(cause);
  });

  it("kills a program whose client leaves, and one that writes more than an answer holds", async () => {
    const request = httpRequest(`${at.url}/v1/exec`, { method: "POST", agent: false });
    request.on("error", () => {});
    request.end(JSON.stringify({ sandbox, command: "forever" }));
    await expect.poll(() => at.runtime.starts.length).toBe(1);
    request.destroy();
    await expect.poll(() => at.runtime.killed).toBe(1);

    const { status, json } = await post(at, "/v1/exec", { sandbox, command: "flood" });
    expect([status, json.error.code]).toEqual([500, "exec_failed"]);
    await expect.poll(() => at.runtime.killed).toBe(2);
  });

  it("does not count against the cap of streams", async () => {
    const stream = await openLines("/v1/exec/stream", { command: "forever" });
    expect((await post(at, "/v1/exec", { sandbox, command: "x" })).status).toBe(200);
    stream.cut();
  });
});

describe("POST /v1/exec/stream", () => {
  it("sends the headers when the program has started, a line for each chunk as it comes, and the exit last", async () => {
    const stream = await openLines("/v1/exec/stream", { command: "gated" });
    expect(stream.headers["content-type"]).toBe("application/x-ndjson");
    await expect.poll(stream.lines).toEqual([{ stream: "stdout", data: b64("first ") }]);
    at.runtime.gate.resolve();
    await expect
      .poll(() => stream.lines().slice(1))
      .toEqual([
        { stream: "stdout", data: b64("second\n") },
        { stream: "stderr", data: b64("warn\n") },
        { exit_code: 3, exec_time_ms: 4, error: "" },
      ]);
  });

  it.each([
    ["bogus", [{ exit_code: 1, exec_time_ms: 4, error: "no such command: bogus" }]],
    ["timeout", [{ exit_code: 124, exec_time_ms: 4, error: "" }]],
  ])("tells of %s in its last line", async (command, expected) => {
    expect(lines(await post(at, "/v1/exec/stream", { sandbox, command }))).toEqual(expected);
  });

  it("kills the program of a client that leaves, and refuses streams above the cap before any header", async () => {
    const stream = await openLines("/v1/exec/stream", { command: "forever" });
    await expect.poll(() => stream.lines().length).toBe(1);
    for (const path of ["/v1/exec/stream", "/v1/run_code/stream"]) {
      const refused = await post(at, path, { sandbox, command: "x", code: "x" });
      expect([refused.status, refused.json.error.code, refused.json.error.context]).toEqual([429, "too_many_streams", { sandbox }]);
    }
    stream.cut();
    await expect.poll(() => at.runtime.killed).toBe(1);
    await expect.poll(async () => (await post(at, "/v1/exec/stream", { sandbox, command: "x" })).status).toBe(200);
  });
});

describe("POST /v1/run_code/stream", () => {
  it("sends output in base64, results as plain strings, and the exit last", async () => {
    const answer = await post(at, "/v1/run_code/stream", { sandbox, code: "40+2" });
    expect(answer.headers["content-type"]).toBe("application/x-ndjson");
    expect(lines(answer)).toEqual([
      { kind: "stdout", stdout: b64("out\n") },
      { kind: "result", result: { text: "42", data: { "text/plain": "42", "image/png": "aGVsbG8=" } } },
      { kind: "exit", exit_code: 0 },
    ]);
    expect(at.runtime.runs).toMatchObject([{ code: "40+2", timeoutMs: 60_000 }]);
  });

  it("ends with an error and an exit when the sandbox is lost in the middle", async () => {
    expect(lines(await post(at, "/v1/run_code/stream", { sandbox, code: "lose" }))).toEqual([
      { kind: "stdout", stdout: b64("out\n") },
      { kind: "error", error: { name: "KernelStreamError", value: expect.stringMatching(/link is gone/), traceback: [] } },
      { kind: "exit", exit_code: 1 },
    ]);
  });
});

describe("POST /v1/files/*", () => {
  const call = (what: string, body: object) => post(at, `/v1/files/${what}`, { sandbox, path: "/w/a", ...body });

  it("write and read text, with mode 644 unless said otherwise", async () => {
    expect((await call("write", { content: "hällo" })).json).toEqual({ status: "ok" });
    expect((await call("write", { content: "hällo", mode: 0 })).status).toBe(200);
    expect((await call("write", { content: "hällo", mode: 0o100755 })).status).toBe(200);
    expect(at.runtime.signals).toEqual([
      ["mode", 0o644],
      ["mode", 0o644],
      ["mode", 0o755],
    ]);
    expect((await call("read", {})).json).toEqual({ content: "hällo", size: 6 });
  });

  it("write and read bytes as hexadecimal digits when asked for binary", async () => {
    await call("write", { content: "00FFfe0a", binary: true });
    expect(at.runtime.files.get("/w/a")).toEqual(Buffer.from([0, 255, 254, 10]));
    expect((await call("read", { binary: true })).json).toEqual({ content: "00fffe0a", size: 4 });
    expect((await call("write", { content: "ab".repeat(10_000_000), binary: true })).status).toBe(200);
    expect(at.runtime.files.get("/w/a")).toHaveLength(10_000_000);
    for (const content of ["abc", "xy", "0x"]) expect((await call("write", { content, binary: true })).status).toBe(400);
    const { status, json } = await call("write", { content: "abc", binary: true });
    expect([status, json.error.cause]).toEqual([400, "content: must be pairs of hexadecimal digits"]);
  });

  it("list names, kinds, sizes and times as numbers", async () => {
    await call("write", { content: "hi" });
    const { json } = await call("list", { path: "/w" });
    expect(json).toEqual({ entries: [{ name: "a", is_dir: false, size: 2, mode: 33188, modified_at: 0 }] });
  });

  it("make and remove", async () => {
    await call("write", { content: "hi" });
    expect((await call("mkdir", { path: "/w/d" })).json).toEqual({ status: "ok" });
    expect((await call("remove", {})).json).toEqual({ status: "ok" });
    expect(at.runtime.files.size).toBe(0);
  });

  it("answer a missing path with 404, other failures by their cause, and say which path", async () => {
    for (const what of ["read", "list"]) {
      const { status, json } = await call(what, { path: "/nope" });
      expect([status, json.error.code, json.error.context]).toEqual([404, "not_found", { sandbox, path: "/nope" }]);
    }
    const denied = await call("write", { path: "/denied/x", content: "" });
    expect([denied.status, denied.json.error.code, denied.json.error.context]).toEqual([
      500,
      "file_failed",
      { sandbox, path: "/denied/x" },
    ]);
  });

  it("refuse to put a file of any size into one JSON answer", async () => {
    const { status, json } = await call("read", { path: "/endless" });
    expect([status, json.error.code]).toEqual([413, "body_too_large"]);
    expect(at.runtime.floodBytes).toBeLessThan(80 * 1024 * 1024);
  });
});

it("POST /v1/vitals answers one sample", async () => {
  const { json } = await post(at, "/v1/vitals", { sandbox });
  expect(json).toMatchObject({ sandbox_id: sandbox, vitals: { process_count: 1, steal_fraction: 0, mem_used_kb: 0 } });
});

const bodies: Record<string, object> = {
  "/v1/exec": { command: "x" },
  "/v1/exec/stream": { command: "x" },
  "/v1/run_code/stream": { code: "x" },
  "/v1/files/read": { path: "/a" },
  "/v1/files/write": { path: "/a", content: "" },
  "/v1/files/list": { path: "/a" },
  "/v1/files/mkdir": { path: "/a" },
  "/v1/files/remove": { path: "/a" },
  "/v1/vitals": {},
};

describe.each(Object.entries(bodies))("%s", (path, body) => {
  it("answers 404 for an unknown sandbox, 409 for a paused one, 400 for what is not a request, 405 for another method", async () => {
    const codeOf = ({ status, json }: Answer) => [status, json.error.code];
    expect(codeOf(await post(at, path, { sandbox: "nope", ...body }))).toEqual([404, "not_found"]);
    await at.engine.pause(sandbox);
    expect(codeOf(await post(at, path, { sandbox, ...body }))).toEqual([409, "sandbox_not_running"]);
    expect(codeOf(await send(at, "POST", path, "{"))).toEqual([400, "invalid_json"]);
    expect(codeOf(await post(at, path, { ...body }))).toEqual([400, "invalid_input"]);
    expect(codeOf(await post(at, path, { sandbox: "../x", ...body }))).toEqual([400, "invalid_input"]);
    const refused = await get(at, path);
    expect([refused.status, refused.headers.allow]).toEqual([405, "POST"]);
  });
});

it.each(["/v1/exec", "/v1/exec/stream", "/v1/run_code/stream"])("%s refuses a time-out above the ceiling, however large", async (path) => {
  for (const timeout of [101, 2 ** 53]) {
    const { status, json } = await post(at, path, { sandbox, ...bodies[path], timeout });
    expect([status, json.error.code, json.error.context]).toEqual([
      400,
      "timeout_too_large",
      { sandbox, requested_s: timeout, max_timeout_s: 100 },
    ]);
  }
  expect([at.runtime.starts, at.runtime.runs]).toEqual([[], []]);
});

it("all of it over HTTP/2 as well", async () => {
  const { connect } = await import("node:http2");
  const session = connect(at.url);
  const stream = session.request({ ":method": "POST", ":path": "/v1/exec/stream" });
  stream.end(JSON.stringify({ sandbox, command: "gated" }));
  at.runtime.gate.resolve();
  const text = Buffer.concat(await collect<Buffer>(stream)).toString();
  expect(text.trimEnd().split("\n")).toHaveLength(4);
  session.close();
});
