import type { Sandbox } from "@mitos/sdk";
import { Client, StreamableHTTPClientTransport, type Transport } from "@modelcontextprotocol/client";
import { Client as OlderClient } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport as OlderStdio } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport as OlderHttp } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { until } from "../support/until.ts";
import { bin, type RawMcp, startHttpProgram, startRaw, stdioTransport } from "./support/programs.ts";

// The published clients, new and old, on both transports, against the real engine.
const token = "token-of-the-clients-0123456789";
let live: LiveServer;
let sandbox: Sandbox;
let program: RawMcp & { url: string };

beforeAll(async () => {
  live = await startLiveServer();
  [sandbox, program] = await Promise.all([
    live.create(),
    startHttpProgram(["--server", live.url, "--ephemeral"], { MITOS_MCP_TOKEN: token }),
  ]);
});
afterAll(async () => {
  await program?.[Symbol.asyncDispose]();
  await live.close();
});

const requestInit = { headers: { Authorization: `Bearer ${token}` } };
const info = { name: "test", version: "1.0.0" };
const overHttp = () => new StreamableHTTPClientTransport(new URL(program.url), { requestInit });
const overStdio = () => stdioTransport(["--server", live.url]).transport;

/** What both generations of clients have. */
type AnyClient = Pick<Client, "listTools" | "callTool" | "close">;

async function connected(client: Client, transport: Transport): Promise<AnyClient> {
  await client.connect(transport);
  return client;
}

async function olderConnected(transport: OlderHttp | OlderStdio): Promise<AnyClient> {
  const client = new OlderClient(info);
  // Its types know no exact optional properties.
  await client.connect(transport as never);
  return {
    listTools: client.listTools.bind(client) as never,
    // Its second argument is the schema of the result.
    callTool: ((params: never, options?: never) => client.callTool(params, undefined, options)) as never,
    close: () => client.close(),
  };
}

const clients: [string, () => Promise<AnyClient>][] = [
  ["the client over stdio", () => connected(new Client(info), overStdio())],
  ["the client over HTTP", () => connected(new Client(info), overHttp())],
  [
    "the client of revision 2026-07-28 over stdio",
    () => connected(new Client(info, { versionNegotiation: { mode: "auto" } }), overStdio()),
  ],
  ["the client of revision 2026-07-28 over HTTP", () => connected(new Client(info, { versionNegotiation: { mode: "auto" } }), overHttp())],
  ["the older client over stdio", () => olderConnected(new OlderStdio({ command: bin, args: ["--server", live.url], stderr: "ignore" }))],
  ["the older client over HTTP", () => olderConnected(new OlderHttp(new URL(program.url), { requestInit }))],
];

const runsIn = async (pattern: string) => (await sandbox.exec(`pgrep -f '${pattern}' || true`)).stdout !== "";

describe.each(clients)("%s", (_name, connect) => {
  let client: AnyClient;
  beforeAll(async () => {
    client = await connect();
  });
  afterAll(() => client?.close());

  const exec = (command: string, options = {}) =>
    client.callTool({ name: "sandbox_exec", arguments: { sandbox: sandbox.id, command, timeout_seconds: 600 } }, options);

  it("lists the tools and calls one, whose structured result fits its schema", async () => {
    expect((await client.listTools()).tools.map(({ name }) => name)).toContain("sandbox_exec");
    expect((await exec("echo hi")).structuredContent).toEqual({ exit_code: 0, stdout: "hi\n", stderr: "" });
  });

  it("is told of a failure by a result", async () => {
    const answer = await client.callTool({ name: "sandbox_exec", arguments: {} });
    expect(answer).toMatchObject({ isError: true, content: [{ text: expect.stringContaining("missing_required_argument") }] });
  });

  it("sees progress, and kills the command by cancelling", async () => {
    const progress: { message?: string }[] = [];
    const controller = new AbortController();
    const work = exec("echo begun; exec sleep 6161", {
      signal: controller.signal,
      onprogress: (one: { message?: string }) => progress.push(one),
    });
    await until("there is progress", () => progress.length > 0);
    expect(progress[0]).toMatchObject({ message: "begun", total: 600 });
    controller.abort();
    await expect(work).rejects.toThrow();
    await until("the command has been killed", async () => !(await runsIn("sleep 616[1]")));
  });
});

describe("the client of revision 2026-07-28", () => {
  it.each([
    ["stdio", overStdio],
    ["HTTP", overHttp],
  ])("speaks that revision over %s", async (_name, transport) => {
    const client = new Client(info, { versionNegotiation: { mode: "auto" } });
    await client.connect(transport());
    expect(client.getNegotiatedProtocolVersion()).toBe("2026-07-28");
    await client.close();
  });
});

describe("a session over HTTP", () => {
  const session = async () => {
    const transport = overHttp();
    const client = new Client(info);
    await client.connect(transport);
    const create = async () => {
      const { content } = (await client.callTool({ name: "sandbox_create", arguments: {} })) as { content: { text: string }[] };
      return content[0]!.text.replace("Created sandbox ", "");
    };
    return { transport, client, create };
  };

  const ids = () => live.engine.list().map(({ id }) => String(id));

  it("that its client ends takes its commands and its ephemeral sandboxes with it, and those of no other", async () => {
    const [one, other] = [await session(), await session()];
    const [ofOne, ofOther] = [await one.create(), await other.create()];
    const work = one.client.callTool({
      name: "sandbox_exec",
      arguments: { sandbox: sandbox.id, command: "exec sleep 7171", timeout_seconds: 600 },
    });
    work.catch(() => {});
    await until("the command runs", () => runsIn("sleep 717[1]"));
    await one.transport.terminateSession();
    await until("the command has been killed", async () => !(await runsIn("sleep 717[1]")));
    await until("the sandbox has ended", () => !ids().includes(ofOne));
    expect(ids()).toEqual(expect.arrayContaining([ofOther, sandbox.id]));
    await one.client.close();
    await other.client.close();
  });
});

describe("the program", () => {
  it("ends with SIGTERM and 0, with its commands and all ephemeral sandboxes, and has told no secret", async () => {
    const ended = await startHttpProgram(["--server", live.url, "--ephemeral"], {
      MITOS_MCP_TOKEN: token,
      MITOS_API_KEY: "key-of-the-server",
    });
    for (const mode of ["legacy", "auto"] as const) {
      const client = new Client(info, { versionNegotiation: { mode } });
      await client.connect(new StreamableHTTPClientTransport(new URL(ended.url), { requestInit }));
      await client.callTool({ name: "sandbox_create", arguments: {} });
      if (mode === "auto") await client.close();
    }
    const made = live.engine.list().length;
    ended.child.kill("SIGTERM");
    expect(await ended.ended).toBe(0);
    expect(live.engine.list()).toHaveLength(made - 2);
    expect(ended.said()).toMatch(/token set, http:\S+\/mcp, client token set\n/);
    expect(ended.said()).not.toMatch(new RegExp(`${token}|key-of-the-server`));
  });

  it("says so when it cannot listen, and exits with 1", async () => {
    await using taken = startRaw(["--http", "--addr", new URL(program.url).host]);
    expect(await taken.ended).toBe(1);
    expect(taken.said()).toMatch(/^error: 127\.0\.0\.1:\d+ cannot be listened on\ncause: .*EADDRINUSE.*\nnext step: .*--addr/);
  });
});
