import { once } from "node:events";
import http from "node:http";
import type { AddressInfo } from "node:net";
import type { Sandbox } from "@mitos/sdk";
import { Client } from "@modelcontextprotocol/client";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { until } from "../support/until.ts";
import { initialize, type RawMcp, request, startRaw, stdioTransport } from "./support/programs.ts";

// Every tool, by the published client over stdio, against the real engine.
const key = "key-of-the-mitos-server-0123456789";
let live: LiveServer;
let client: Client;
let sandbox: Sandbox;

beforeAll(async () => {
  live = await startLiveServer();
  sandbox = await live.create();
  ({ client } = await connected(["--server", live.url]));
});
afterAll(async () => {
  await client?.close();
  await live.close();
});

async function connected(args: readonly string[]) {
  const { transport, said } = stdioTransport(args, { MITOS_API_KEY: key });
  const made = new Client({ name: "test", version: "1.0.0" });
  await made.connect(transport);
  return { client: made, said, [Symbol.asyncDispose]: () => made.close() };
}

type Answer = { content: { type: string; text: string; [field: string]: unknown }[]; structuredContent?: unknown; isError?: boolean };

async function call(name: string, args: Record<string, unknown> = {}, by = client, options = {}): Promise<Answer> {
  const answer = (await by.callTool({ name, arguments: args }, options)) as unknown as Answer;
  expect(JSON.stringify(answer)).not.toContain(key);
  return answer;
}

async function textOf(name: string, args: Record<string, unknown> = {}, by = client): Promise<string> {
  const answer = await call(name, args, by);
  expect(answer.isError, answer.content[0]?.text).toBeFalsy();
  return answer.content[0]!.text;
}

async function failureOf(name: string, args: Record<string, unknown> = {}, by = client) {
  const answer = await call(name, args, by);
  expect(answer).toMatchObject({ isError: true, content: [{ type: "text" }] });
  const failure = JSON.parse(answer.content[0]!.text) as { code: string; cause: string; remediation: string };
  expect(Object.keys(failure)).toEqual(["code", "cause", "remediation"]);
  expect(failure.remediation).not.toBe("");
  return failure;
}

const runsIn = async (pattern: string) => (await sandbox.exec(`pgrep -f '${pattern}' || true`)).stdout !== "";

describe("the list of tools", () => {
  it("names each with title, schema and what a client may assume of it", async () => {
    const { tools } = await client.listTools();
    expect(tools.map(({ name }) => name)).toEqual([
      "sandbox_create",
      "sandbox_exec",
      "sandbox_run_code",
      "sandbox_read_file",
      "sandbox_write_file",
      "sandbox_list_files",
      "sandbox_fork",
      "sandbox_preview",
      "sandbox_pause",
      "sandbox_resume",
      "sandbox_terminate",
      "sandbox_list",
    ]);
    for (const { title, description, inputSchema, annotations } of tools) {
      expect(title).toBeTruthy();
      expect(description).toMatch(/\.$/);
      expect(inputSchema).toMatchObject({ type: "object", additionalProperties: false });
      expect(annotations).toMatchObject({ readOnlyHint: expect.any(Boolean), destructiveHint: expect.any(Boolean) });
    }
    const exec = tools.find(({ name }) => name === "sandbox_exec");
    expect(exec).toMatchObject({
      inputSchema: { required: ["sandbox", "command"] },
      outputSchema: { required: ["exit_code", "stdout", "stderr"] },
    });
    expect(tools.filter(({ annotations }) => annotations?.readOnlyHint).map(({ name }) => name)).toEqual([
      "sandbox_read_file",
      "sandbox_list_files",
      "sandbox_preview",
      "sandbox_list",
    ]);
    expect(tools.filter(({ annotations }) => annotations?.openWorldHint).map(({ name }) => name)).toEqual([
      "sandbox_exec",
      "sandbox_run_code",
    ]);
    expect(tools.find(({ name }) => name === "sandbox_terminate")?.annotations).toMatchObject({
      destructiveHint: true,
      idempotentHint: true,
    });
  });
});

describe("sandbox_exec", () => {
  it("answers exit code and both streams, as text and as structure", async () => {
    const answer = await call("sandbox_exec", { sandbox: sandbox.id, command: "echo out; echo err >&2; exit 3" });
    const outcome = { exit_code: 3, stdout: "out\n", stderr: "err\n" };
    expect(JSON.parse(answer.content[0]!.text)).toEqual(outcome);
    expect(answer.structuredContent).toEqual(outcome);
    expect(answer.isError).toBeFalsy();
  });

  it("answers what was printed before the time-out killed it, and says so", async () => {
    const { structuredContent } = await call("sandbox_exec", {
      sandbox: sandbox.id,
      command: "echo so far; sleep 3131",
      timeout_seconds: 1,
    });
    expect(structuredContent).toMatchObject({
      exit_code: 124,
      stdout: "so far\n",
      notice: expect.stringMatching(/time-out of 1 s.*timeout_seconds/),
    });
    expect(await runsIn("sleep 313[1]")).toBe(false);
  });

  it("leaves the middle of long output out, says so, and the way to all of it works", async () => {
    const command = "seq 1 100000";
    const { structuredContent } = await call("sandbox_exec", { sandbox: sandbox.id, command });
    const { stdout, notice } = structuredContent as { stdout: string; notice: string };
    expect(stdout.length).toBeLessThan(70_000);
    expect(stdout).toMatch(/^1\n2\n[\s\S]*\n\[… \d+ bytes left out …\]\n[\s\S]*\n100000\n$/);
    expect(notice).toMatch(/stdout was 588895 bytes long.*sandbox_read_file/);
    await call("sandbox_exec", { sandbox: sandbox.id, command: `${command} > /workspace/all` });
    let all = "";
    for (let part = { content: [{ text: "" }] } as Answer; ; ) {
      part = await call("sandbox_read_file", { sandbox: sandbox.id, path: "/workspace/all", offset: all.length });
      all += part.content[0]!.text;
      const next = /read on with offset (\d+)/.exec(part.content[1]?.text ?? "");
      if (!next) break;
      expect(Number(next[1])).toBe(all.length);
    }
    expect(all).toBe(Array.from({ length: 100_000 }, (_, index) => `${index + 1}\n`).join(""));
  });

  it("kills the command and what it started when the call is cancelled, and serves on", async () => {
    const controller = new AbortController();
    const work = call("sandbox_exec", { sandbox: sandbox.id, command: "sleep 4141 & exec sleep 4141", timeout_seconds: 600 }, client, {
      signal: controller.signal,
    });
    await until("the command runs", () => runsIn("sleep 414[1]"));
    controller.abort();
    await expect(work).rejects.toThrow();
    await until("the command has been killed", async () => !(await runsIn("sleep 414[1]")));
    expect(await textOf("sandbox_exec", { sandbox: sandbox.id, command: "echo on" })).toContain("on");
  });

  it("tells a client that asks for it how it is doing", async () => {
    const seen: unknown[] = [];
    const go = "/workspace/go";
    const work = call("sandbox_exec", { sandbox: sandbox.id, command: `echo step one; until test -e ${go}; do sleep 0.1; done` }, client, {
      onprogress: (progress: unknown) => seen.push(progress),
    });
    await until("there is progress", () => seen.length > 0);
    expect(seen[0]).toEqual({ progress: expect.any(Number), total: 30, message: "step one" });
    await sandbox.files.write(go, "");
    expect((await work).isError).toBeFalsy();
  });
});

describe("sandbox_run_code", () => {
  const run = (args: Record<string, unknown>) => call("sandbox_run_code", { sandbox: sandbox.id, ...args });

  it("keeps the interpreter's state, and answers value, logs and error", async () => {
    await run({ code: "x = 41" });
    const { structuredContent, content } = await run({ code: "import sys\nprint('hi')\nprint('oh', file=sys.stderr)\nx + 1" });
    expect(structuredContent).toEqual({ text: "42", logs: { stdout: "hi\n", stderr: "oh\n" }, error: null });
    expect(JSON.parse(content[0]!.text)).toEqual(structuredContent);
    const failed = await run({ code: "1/0" });
    expect(failed.structuredContent).toMatchObject({ text: null, error: { name: "ZeroDivisionError" } });
    expect(failed.isError).toBeFalsy();
    expect((await run({ code: "6 * 7", language: "javascript" })).structuredContent).toMatchObject({ text: "42" });
    expect((await run({ code: "echo $((6 * 7))", language: "bash" })).structuredContent).toMatchObject({ logs: { stdout: "42\n" } });
  });

  it("answers pictures as images, drawings as a resource, and other displays as text", async () => {
    const png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==";
    const code = `
import base64
class Png:
    def _repr_png_(self): return base64.b64decode("${png}")
class Svg:
    def _repr_svg_(self): return "<svg/>"
display(Png()); display(Svg()); display("plain")`;
    const { content, structuredContent } = await run({ code });
    expect(content.slice(1)).toEqual([
      { type: "image", data: png, mimeType: "image/png" },
      { type: "resource", resource: { uri: `mitos://${sandbox.id}/display.svg`, mimeType: "image/svg+xml", text: "<svg/>" } },
    ]);
    expect((structuredContent as { displays: string[] }).displays).toContain("'plain'");
  });

  it("leaves out what is too much, and says so", async () => {
    const code = `
class Picture:
    def _repr_png_(self): return b"\\x89PNG"
for _ in range(12): display(Picture())
print("x" * 200_000)
"y" * 300_000`;
    const { content, structuredContent } = await run({ code });
    expect(content.slice(1).map(({ type }) => type)).toEqual(Array.from({ length: 10 }, () => "image"));
    const { notice, logs, text } = structuredContent as { notice: string; logs: { stdout: string }; text: string };
    expect(notice).toMatch(/stdout was 200001 bytes long.*text was 300002 bytes long.*2 images were left out/);
    expect(Math.max(logs.stdout.length, text.length)).toBeLessThan(70_000);
  });

  it("interrupts the code at its time-out", async () => {
    const { structuredContent } = await run({ code: "import time\ntime.sleep(600)", timeout_seconds: 1 });
    expect(structuredContent).toMatchObject({ error: { name: expect.any(String) } });
    expect((await run({ code: "x" })).structuredContent).toMatchObject({ text: "41" });
  });

  it("interrupts the code when the call is cancelled", async () => {
    const controller = new AbortController();
    const code = "open('/workspace/began', 'w').close()\nimport time\ntime.sleep(600)";
    const work = client.callTool({ name: "sandbox_run_code", arguments: { sandbox: sandbox.id, code } }, { signal: controller.signal });
    await until("the code runs", () => sandbox.files.exists("/workspace/began"));
    controller.abort();
    await expect(work).rejects.toThrow();
    const free = async () => ((await run({ code: "1", timeout_seconds: 5 })).structuredContent as { text: string | null }).text === "1";
    await until("the interpreter is free", free);
  });
});

describe("the file tools", () => {
  const file = (args: Record<string, unknown>) => ({ sandbox: sandbox.id, path: "/workspace/dir/file", ...args });

  it("write text and bytes, read both back, and list them", async () => {
    expect(await textOf("sandbox_write_file", file({ content: "grüße\n" }))).toBe(
      `Wrote 8 bytes to /workspace/dir/file in sandbox ${sandbox.id}`,
    );
    expect(await textOf("sandbox_read_file", file({}))).toBe("grüße\n");
    const bytes = Buffer.from([0, 255, 128, 10]).toString("base64");
    expect(await textOf("sandbox_write_file", file({ path: "/workspace/dir/bytes", content: bytes, encoding: "base64" }))).toContain(
      "Wrote 4 bytes",
    );
    expect(await textOf("sandbox_read_file", file({ path: "/workspace/dir/bytes", encoding: "base64" }))).toBe(bytes);
    const { structuredContent } = await call("sandbox_list_files", { sandbox: sandbox.id, path: "/workspace/dir" });
    const { files } = structuredContent as { files: { name: string }[] };
    expect(files.sort((one, other) => one.name.localeCompare(other.name))).toMatchObject([
      { name: "bytes", is_dir: false, size: 4 },
      { name: "file", is_dir: false, size: 8 },
    ]);
    expect(await textOf("sandbox_write_file", file({ path: "/workspace/empty", content: "" }))).toContain("Wrote 0 bytes");
    expect((await call("sandbox_read_file", file({ path: "/workspace/empty" }))).content).toEqual([{ type: "text", text: "" }]);
  });

  it("read a part without cutting a character, and say what is not text", async () => {
    await textOf("sandbox_write_file", file({ content: "aüb" }));
    const part = await call("sandbox_read_file", file({ length: 2 }));
    expect(part.content.map(({ text }) => text)).toEqual(["a", "The file goes on here: read on with offset 1."]);
    expect((await call("sandbox_read_file", file({ offset: 1 }))).content.map(({ text }) => text)).toEqual(["üb"]);
    expect((await failureOf("sandbox_read_file", file({ offset: 4 }))).cause).toMatch(/behind the end of the file, which has 4 bytes/);
    await textOf("sandbox_write_file", file({ content: "gP8=", encoding: "base64" }));
    expect((await call("sandbox_read_file", file({}))).content.map(({ text }) => text)).toEqual([
      "\ufffd\ufffd",
      expect.stringContaining("base64"),
    ]);
  });

  it("list a thousand entries, and say when there are more", async () => {
    await sandbox.exec("mkdir -p /workspace/many && cd /workspace/many && seq 1001 | xargs touch");
    const { structuredContent } = await call("sandbox_list_files", { sandbox: sandbox.id, path: "/workspace/many" });
    const { files, notice } = structuredContent as { files: unknown[]; notice: string };
    expect(files).toHaveLength(1000);
    expect(notice).toMatch(/1001 entries/);
  });

  it("carry a file as large as a message may be", async () => {
    const content = "x".repeat(15 * 1024 * 1024);
    expect(await textOf("sandbox_write_file", file({ content }))).toContain(`Wrote ${content.length} bytes`);
    expect((await sandbox.files.stat("/workspace/dir/file")).size).toBe(content.length);
  });

  it("refuse content that is not base64, and name a path that does not exist", async () => {
    expect(await failureOf("sandbox_write_file", file({ content: "not base64!", encoding: "base64" }))).toMatchObject({
      code: "invalid_arguments",
    });
    expect(await failureOf("sandbox_read_file", file({ path: "/nowhere" }))).toMatchObject({
      code: "backend_error",
      cause: expect.stringMatching(/^not_found: .*\/nowhere/),
    });
  });
});

describe("the life of a sandbox", () => {
  it("goes from create to fork, pause, resume and terminate", async () => {
    const created = /^Created sandbox (\S+)$/.exec(
      await textOf("sandbox_create", { pool: "python", env: { K: "v" }, timeout_seconds: 600 }),
    );
    const id = created![1]!;
    await textOf("sandbox_write_file", { sandbox: id, path: "/workspace/f", content: "kept" });
    const answer = await call("sandbox_fork", { sandbox: id, replicas: 2 });
    const ids = JSON.parse(answer.content[0]!.text) as string[];
    expect(answer.structuredContent).toEqual({ ids });
    expect(ids).toHaveLength(2);
    expect(await textOf("sandbox_exec", { sandbox: ids[1], command: "echo $K; cat /workspace/f" })).toContain("v\\nkept");
    const { structuredContent } = await call("sandbox_list");
    expect((structuredContent as { sandboxes: unknown[] }).sandboxes).toEqual(
      expect.arrayContaining([
        expect.objectContaining({ id, state: "running", template: "python", parent: null }),
        expect.objectContaining({ id: ids[0], parent: id }),
      ]),
    );
    expect(await textOf("sandbox_pause", { sandbox: id })).toBe(`Paused sandbox ${id}`);
    expect((await failureOf("sandbox_exec", { sandbox: id, command: "true" })).cause).toMatch(/^sandbox_not_running: /);
    expect(await textOf("sandbox_resume", { sandbox: id })).toBe(`Resumed sandbox ${id}`);
    expect(await textOf("sandbox_read_file", { sandbox: id, path: "/workspace/f" })).toBe("kept");
    for (const one of [id, ...ids]) expect(await textOf("sandbox_terminate", { sandbox: one })).toBe(`Terminated sandbox ${one}`);
    expect((await failureOf("sandbox_exec", { sandbox: id, command: "true" })).code).toBe("backend_error");
  });

  it("begins with the template python unless another is named, by either name", async () => {
    for (const args of [{}, { template: "python" }, { pool: "python", template: "python" }]) {
      const [, , id] = (await textOf("sandbox_create", args)).split(" ");
      await textOf("sandbox_terminate", { sandbox: id });
    }
    expect(await failureOf("sandbox_create", { pool: "python", template: "node" })).toMatchObject({ code: "invalid_arguments" });
  });

  it("opens a port of it to the outside", async () => {
    await textOf("sandbox_exec", {
      sandbox: sandbox.id,
      command: "cd /workspace && echo served > page && (python3 -m http.server 8123 > /dev/null 2>&1 &)",
    });
    const { structuredContent, content } = await call("sandbox_preview", { sandbox: sandbox.id, port: 8123 });
    expect(JSON.parse(content[0]!.text)).toEqual(structuredContent);
    const url = new URL((structuredContent as { url: string }).url);
    url.pathname += "page";
    await until("the page is served", async () => (await (await fetch(url)).text()) === "served\n");
  });

  it("ends what a cancelled create or fork has made, which nobody would know of", async () => {
    const ended: unknown[] = [];
    const stop = live.engine.onEnd(({ id }) => ended.push(id));
    await using mcp = startRaw(["--server", live.url]);
    mcp.write(initialize);
    await mcp.next();
    const cancelled = JSON.stringify({ jsonrpc: "2.0", method: "notifications/cancelled", params: { requestId: 1 } });
    mcp.write(request(1, "tools/call", { name: "sandbox_create" }), cancelled);
    await until("the new sandbox has ended", () => ended.length === 1);
    mcp.write(request(1, "tools/call", { name: "sandbox_fork", arguments: { sandbox: sandbox.id, replicas: 2 } }), cancelled);
    await until("its children have ended", () => ended.length === 3);
    stop();
    expect(live.engine.list().filter(({ id }) => ended.includes(id))).toEqual([]);
  });
});

describe("a failure", () => {
  it("of the name or the arguments is a result that says what to correct", async () => {
    expect(await failureOf("sandbox_launch")).toMatchObject({
      code: "unknown_tool",
      cause: expect.stringContaining("sandbox_launch"),
      remediation: expect.stringContaining("sandbox_create"),
    });
    expect(await failureOf("workspace_list")).toMatchObject({ code: "unknown_tool" });
    expect(await failureOf("sandbox_exec", { sandbox: sandbox.id })).toMatchObject({
      code: "missing_required_argument",
      cause: "sandbox_exec needs command",
    });
    for (const args of [
      { sandbox: sandbox.id, command: 5 },
      { sandbox: sandbox.id, command: "" },
      { sandbox: "../other", command: "true" },
      { sandbox: sandbox.id, command: "true", timeout_seconds: 0 },
      { sandbox: sandbox.id, command: "true", timeout_seconds: 1.5 },
      { sandbox: sandbox.id, command: "true", timeout_seconds: 86_401 },
      { sandbox: sandbox.id, command: "true", cmd: "true" },
    ]) {
      expect(await failureOf("sandbox_exec", args)).toMatchObject({
        code: "invalid_arguments",
        remediation: expect.stringContaining("timeout_seconds"),
      });
    }
    expect(await failureOf("sandbox_fork", { sandbox: sandbox.id, replicas: 101 })).toMatchObject({ code: "invalid_arguments" });
    expect(await failureOf("sandbox_preview", { sandbox: sandbox.id, port: 70_000 })).toMatchObject({ code: "invalid_arguments" });
  });

  it("of the Mitos server carries its code, cause and remedy", async () => {
    const gone = { sandbox: "no-such-sandbox" };
    for (const [tool, args] of Object.entries({
      sandbox_exec: { command: "true" },
      sandbox_run_code: { code: "1" },
      sandbox_read_file: { path: "/f" },
      sandbox_write_file: { path: "/f", content: "" },
      sandbox_list_files: {},
      sandbox_fork: {},
      sandbox_preview: { port: 80 },
      sandbox_pause: {},
      sandbox_resume: {},
      sandbox_terminate: {},
    })) {
      expect(await failureOf(tool, { ...gone, ...args }), tool).toMatchObject({
        code: "backend_error",
        cause: expect.stringMatching(/^not_found: .*no-such-sandbox/),
      });
    }
    expect((await failureOf("sandbox_create", { pool: "../x" })).cause).toMatch(/^invalid_input: /);
  });

  it("of the way to it says that nobody answers, and what to do", async () => {
    await using other = await connected(["--server", "http://127.0.0.1:9"]);
    const failure = await failureOf("sandbox_list", {}, other.client);
    expect(failure).toMatchObject({
      code: "backend_error",
      cause: expect.stringMatching(/^transport_error: /),
      remediation: expect.stringContaining("mitos serve"),
    });
  });

  it("holds no key, even when the server repeats it", async () => {
    await using echo = await listening((incoming, response) => {
      response
        .writeHead(500)
        .end(JSON.stringify({ error: { code: "internal_error", message: `headers ${JSON.stringify(incoming.headers)}` } }));
    });
    await using other = await connected(["--server", echo.url]);
    const failure = await failureOf("sandbox_list", {}, other.client);
    expect(failure.cause).toContain("Bearer [REDACTED]");
    expect(other.said()).toMatch(/token set, stdio\n$/);
    expect(other.said()).not.toContain(key);
  });

  it("of a fork that nobody answered names the ids that may exist", async () => {
    await using other = await connected(["--server", "http://127.0.0.1:9"]);
    const { cause, remediation } = await failureOf("sandbox_fork", { sandbox: sandbox.id, replicas: 2 }, other.client);
    expect(cause).toMatch(/could not be found out, their ids would be sandbox-[0-9a-f]{8}-0, sandbox-[0-9a-f]{8}-1$/);
    expect(remediation).toContain("sandbox_list");
  });

  it("of a fork whose answer was lost names the children that exist", async () => {
    // Between client and server stands a network that loses the answer to every fork.
    await using lossy = await listening(async (incoming, response) => {
      const body = await new Response(incoming as never).text();
      const { method = "GET", url } = incoming;
      const headers = { "Content-Type": incoming.headers["content-type"] ?? "application/json" };
      const answer = await fetch(`${live.url}${url}`, { method, headers, ...(body ? { body } : {}) });
      const text = await answer.text();
      if (url?.endsWith("/fork")) return void incoming.socket.destroy();
      response.writeHead(answer.status).end(text);
    });
    await using other = await connected(["--server", lossy.url]);
    const { code, cause, remediation } = await failureOf("sandbox_fork", { sandbox: sandbox.id, replicas: 2 }, other.client);
    const children = live.engine.list().filter(({ parentId }) => parentId === sandbox.id);
    expect(children).toHaveLength(2);
    expect({ code, cause }).toEqual({ code: "backend_error", cause: expect.stringMatching(/^transport_error: .*these children exist: /) });
    for (const { id } of children) expect(cause).toContain(id);
    expect(remediation).toContain("sandbox_terminate");
    for (const { id } of children) await textOf("sandbox_terminate", { sandbox: id });
  });
});

describe("workspace tools", () => {
  it("are listed when they are asked for, and answer that they cannot be dispatched", async () => {
    await using other = await connected(["--server", live.url, "--enable-workspace-tools"]);
    const { tools } = await other.client.listTools();
    expect(tools.slice(-4).map(({ name }) => name)).toEqual(["workspace_create", "workspace_list", "workspace_attach", "workspace_delete"]);
    for (const [tool, args] of Object.entries({
      workspace_create: { name: "w" },
      workspace_list: {},
      workspace_attach: { sandbox: sandbox.id, workspace: "w" },
      workspace_delete: { name: "w" },
    })) {
      expect(await failureOf(tool, args, other.client)).toMatchObject({ code: "tool_not_dispatchable" });
    }
    expect(await failureOf("workspace_create", {}, other.client)).toMatchObject({ code: "missing_required_argument" });
  });
});

describe("the end of a session", () => {
  const exec = (id: number, command: string) =>
    request(id, "tools/call", { name: "sandbox_exec", arguments: { sandbox: sandbox.id, command, timeout_seconds: 600 } });

  it.each([
    ["the end of its input", (mcp: RawMcp) => mcp.child.stdin.end()],
    ["SIGTERM", (mcp: RawMcp) => mcp.child.kill("SIGTERM")],
    ["SIGINT", (mcp: RawMcp) => mcp.child.kill("SIGINT")],
  ])("comes with %s: it exits with 0 and the running command is killed", async (_name, end) => {
    await using mcp = startRaw(["--server", live.url]);
    mcp.write(initialize, exec(1, "exec sleep 5151"));
    await until("the command runs", () => runsIn("sleep 515[1]"));
    end(mcp);
    expect(await mcp.ended).toBe(0);
    await until("the command has been killed", async () => !(await runsIn("sleep 515[1]")));
  });

  const createAndFork = async (mcp: RawMcp) => {
    mcp.write(initialize, request(1, "tools/call", { name: "sandbox_create", arguments: {} }));
    await mcp.next();
    const made = textIn(await mcp.next()).replace("Created sandbox ", "");
    mcp.write(request(2, "tools/call", { name: "sandbox_fork", arguments: { sandbox: made } }));
    const [child] = JSON.parse(textIn(await mcp.next()));
    mcp.child.stdin.end();
    expect(await mcp.ended).toBe(0);
    const left = live.engine.list().map(({ id }) => String(id));
    return [made, child].filter((id) => left.includes(id));
  };

  it("leaves the sandboxes that it has made", async () => {
    await using mcp = startRaw(["--server", live.url]);
    const left = await createAndFork(mcp);
    expect(left).toHaveLength(2);
    for (const id of left) await textOf("sandbox_terminate", { sandbox: id });
  });

  it("takes them with it when they are ephemeral, and no others", async () => {
    await using mcp = startRaw(["--server", live.url, "--ephemeral"]);
    expect(await createAndFork(mcp)).toEqual([]);
    expect(live.engine.list().map(({ id }) => String(id))).toContain(sandbox.id);
  });
});

function textIn(answer: Record<string, unknown>): string {
  return (answer.result as Answer).content[0]!.text;
}

async function listening(handler: http.RequestListener): Promise<AsyncDisposable & { url: string }> {
  const server = http.createServer(handler).listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
