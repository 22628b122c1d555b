import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { query } from "@anthropic-ai/claude-agent-sdk";
import { MitosSandboxTools } from "@mitos/sdk/integrations/claude-agent";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { InMemoryTransport } from "@modelcontextprotocol/sdk/inMemory.js";
import type { CallToolResult } from "@modelcontextprotocol/sdk/types.js";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LiveServer, startLiveServer } from "../support/live-server.ts";
import { until } from "../support/until.ts";
import { png, showPng } from "./pictures.ts";
import { startScriptedMessagesApi } from "./scripted-messages-api.ts";

// The in-process server that the real framework makes, asked by the official MCP client, and by the framework's own agent with a scripted model.
let live: LiveServer;
let tools: MitosSandboxTools;
let client: Client;
beforeAll(async () => {
  live = await startLiveServer();
  tools = await MitosSandboxTools.create({ baseUrl: live.url });
  client = await connect(tools);
});
afterAll(async () => {
  await client.close();
  await tools.close();
  await live.close();
});

async function connect(adapter: MitosSandboxTools): Promise<Client> {
  const [clientSide, serverSide] = InMemoryTransport.createLinkedPair();
  const { instance } = await adapter.asMcpServer();
  await instance.connect(serverSide);
  const connected = new Client({ name: "test", version: "1" });
  await connected.connect(clientSide);
  return connected;
}

async function call(name: string, input: Record<string, unknown>, of = client): Promise<CallToolResult> {
  return (await of.callTool({ name, arguments: input })) as CallToolResult;
}

const text = ({ content }: CallToolResult) => (content[0]?.type === "text" ? content[0].text : undefined);

describe("the MCP server", () => {
  it("is an in-process one for the framework, under the name that was asked for", async () => {
    expect(await tools.asMcpServer()).toMatchObject({ type: "sdk", name: "mitos-sandbox" });
    expect(await tools.asMcpServer("other")).toMatchObject({ type: "sdk", name: "other" });
  });

  it("lists the four tools with their schemas", async () => {
    const { tools: listed } = await client.listTools();
    expect(listed).toEqual(tools.toolDefs().map(({ name, description, inputSchema }) => ({ name, description, inputSchema })));
    expect(listed.map(({ name }) => name)).toEqual(["run_command", "read_file", "write_file", "run_code"]);
  });

  it("runs commands, writes and reads files, and runs code that keeps its state", async () => {
    expect(await call("write_file", { path: "/workspace/a.txt", content: "hello" })).toEqual({
      content: [{ type: "text", text: "wrote /workspace/a.txt" }],
    });
    expect(JSON.parse(text(await call("run_command", { command: "cat a.txt; exit 3" }))!)).toMatchObject({ stdout: "hello", exit_code: 3 });
    expect(text(await call("read_file", { path: "/workspace/a.txt" }))).toBe("hello");
    await call("run_code", { code: "x = 41" });
    expect(JSON.parse(text(await call("run_code", { code: "x + 1" }))!)).toMatchObject({ text: "42" });
  });

  it("hands over images as images", async () => {
    const { content } = await call("run_code", { code: showPng });
    expect(content).toEqual([
      { type: "text", text: expect.stringContaining("(image 1, attached)") },
      { type: "image", data: png, mimeType: "image/png" },
    ]);
  });

  it.each<[string, string, Record<string, unknown>, string]>([
    ["a missing argument", "read_file", {}, "read_file needs the argument `path`"],
    ["a wrong type", "run_code", { code: 1 }, "`code` of run_code is not a string"],
    ["an unknown argument", "run_command", { command: "ls", cwd: "/" }, "run_command knows no argument `cwd`; it takes command, timeout"],
    ["an unknown tool", "remove_file", {}, "there is no such tool; there are run_command, read_file, write_file, run_code"],
  ])("refuses %s with invalid_input, as an error result", async (_title, name, input, cause) => {
    const result = await call(name, input);
    expect(result.isError).toBe(true);
    expect(text(result)).toBe(
      `[invalid_input] the tool's input is not valid | cause: ${cause} | remediation: Correct the value that the cause names.`,
    );
  });

  it("answers a failure as an error result with code and remedy", async () => {
    const result = await call("read_file", { path: "/workspace/nope" });
    expect(result).toMatchObject({ isError: true });
    expect(text(result)).toMatch(/^\[not_found\] .* \| remediation: /);
  });

  it("kills the running command when the client cancels the request", async () => {
    const controller = new AbortController();
    const request = { name: "run_command", arguments: { command: "touch /tmp/begun; exec sleep 5252" } };
    const work = client.callTool(request, undefined, { signal: controller.signal });
    await until("the command runs", () => tools.sandbox.files.exists("/tmp/begun"));
    controller.abort();
    await expect(work).rejects.toThrow();
    await expect.poll(async () => (await tools.sandbox.exec("pgrep -f 'sleep 525[2]' || true")).stdout).toBe("");
  });
});

describe("an agent of query()", () => {
  it("calls the tools in its own process, reads results and refusals, and goes on", async () => {
    await using api = await startScriptedMessagesApi([
      ["mcp__mitos-sandbox__write_file", { path: "/workspace/q.txt", content: "from the agent" }],
      ["mcp__mitos-sandbox__run_command", { command: "cat q.txt; exit 3" }],
      ["mcp__mitos-sandbox__read_file", { file: "/workspace/q.txt" }],
      ["mcp__mitos-sandbox__run_code", { code: showPng }],
    ]);
    const home = mkdtempSync(path.join(os.tmpdir(), "mitos-agent-"));
    try {
      const messages = query({
        prompt: "go",
        options: {
          // Nothing of the machine's own settings, keys and traffic.
          env: {
            PATH: process.env.PATH,
            HOME: home,
            TMPDIR: home,
            ANTHROPIC_BASE_URL: api.url,
            ANTHROPIC_API_KEY: "none",
            CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1",
          },
          cwd: home,
          settingSources: [],
          tools: [],
          mcpServers: { "mitos-sandbox": await tools.asMcpServer() },
          allowedTools: tools.toolDefs().map(({ name }) => `mcp__mitos-sandbox__${name}`),
        },
      });
      const ends = [];
      for await (const message of messages) if (message.type === "result") ends.push(message);
      expect(ends).toMatchObject([{ subtype: "success", result: "done" }]);
    } finally {
      rmSync(home, { recursive: true, force: true });
    }
    const [wrote, ran, refused, shown] = api.results;
    expect(JSON.stringify(wrote!.content)).toContain("wrote /workspace/q.txt");
    expect(JSON.stringify(ran!.content)).toContain("from the agent");
    expect(refused).toMatchObject({ is_error: true, content: expect.stringContaining("[invalid_input]") });
    expect(JSON.stringify(shown!.content)).toContain(png);
  });
});

describe("the adapter itself", () => {
  it("has every operation as a method that takes one object and answers with MCP content", async () => {
    expect(text(await tools.writeFile({ path: "/workspace/m/a", content: "x" }))).toBe("wrote /workspace/m/a");
    expect(text(await tools.readFile({ path: "/workspace/m/a" }))).toBe("x");
    expect(JSON.parse(text(await tools.listFiles({ path: "/workspace/m" }))!)).toMatchObject([{ name: "a", is_dir: false, size: 1 }]);
    expect(JSON.parse(text(await tools.runCommand({ command: "echo hi" }))!)).toMatchObject({ stdout: "hi\n" });
    expect(JSON.parse(text(await tools.runCode({ code: "6 * 7" }))!)).toMatchObject({ text: "42" });
    expect(await tools.listFiles({ path: 1 })).toMatchObject({ isError: true });
  });

  it("forks into adapters, and as a tool when that is asked for", async () => {
    await using forking = await MitosSandboxTools.create({ baseUrl: live.url, forkTool: true });
    await forking.writeFile({ path: "/workspace/f", content: "parent" });
    const [child] = await forking.fork();
    expect(text(await child!.readFile({ path: "/workspace/f" }))).toBe("parent");
    await child!.close();
    const forkingClient = await connect(forking);
    expect((await forkingClient.listTools()).tools.map(({ name }) => name)).toContain("fork");
    const { children } = JSON.parse(text(await call("fork", {}, forkingClient))!) as { children: string[] };
    expect(text(await call("read_file", { path: "/workspace/f", sandbox: children[0] }, forkingClient))).toBe("parent");
    await forkingClient.close();
  });
});
