import type { McpSdkServerConfigWithInstance } from "@anthropic-ai/claude-agent-sdk";
import type { CallToolResult } from "@modelcontextprotocol/sdk/types.js";
import { type CreateOptions, create } from "../create.ts";
import { SandboxAdapter } from "./adapter.ts";
import { loadFramework } from "./framework.ts";
import { mapFilesList, type OpsTarget } from "./mapping.ts";
import {
  asJson,
  defineTool,
  invalidToolInput,
  type ToolCallOptions,
  type ToolInputSchema,
  type ToolOptions,
  type ToolOutput,
  toolErrorText,
} from "./tools.ts";

/** A tool without the framework: what it is, and a handler that never throws: errors are results with `isError`. */
export interface ClaudeToolDefinition {
  name: string;
  description: string;
  inputSchema: ToolInputSchema;
  handler(input: unknown, options?: ToolCallOptions): Promise<CallToolResult>;
}

/** A sandbox for the Claude Agent SDK. Its methods take one object with the arguments and answer with MCP content. */
export class MitosSandboxTools extends SandboxAdapter {
  static async create({ forkTool, ...options }: CreateOptions & ToolOptions = {}): Promise<MitosSandboxTools> {
    return new MitosSandboxTools(await create(options), { forkTool });
  }

  /** `{ command, timeout }`; answers with JSON text. */
  runCommand(input: unknown, options?: ToolCallOptions): Promise<CallToolResult> {
    return this.#tool("run_command").handler(input, options);
  }

  /** `{ path }`; answers with the file's text. */
  readFile(input: unknown, options?: ToolCallOptions): Promise<CallToolResult> {
    return this.#tool("read_file").handler(input, options);
  }

  /** `{ path, content }` */
  writeFile(input: unknown, options?: ToolCallOptions): Promise<CallToolResult> {
    return this.#tool("write_file").handler(input, options);
  }

  /** `{ path }`, default `/`; answers with JSON text. A method only: a model has `ls`. */
  listFiles(input: unknown = {}): Promise<CallToolResult> {
    return toResult(listFiles.show, () => listFiles.call(this.sandbox, input));
  }

  /** `{ code, language }`; answers with JSON text, and images as images. */
  runCode(input: unknown, options?: ToolCallOptions): Promise<CallToolResult> {
    return this.#tool("run_code").handler(input, options);
  }

  toolDefs(): ClaudeToolDefinition[] {
    return this.bound.tools.map(({ name, description, inputSchema, call, show }) => ({
      name,
      description,
      inputSchema,
      handler: (input, options) => toResult(show, () => call(input, options)),
    }));
  }

  /** For `query({ options: { mcpServers } })`. @throws integration_dependency_missing without `@anthropic-ai/claude-agent-sdk` */
  async asMcpServer(name = "mitos-sandbox"): Promise<McpSdkServerConfigWithInstance> {
    const { createSdkMcpServer } = await loadFramework("@anthropic-ai/claude-agent-sdk", () => import("@anthropic-ai/claude-agent-sdk"));
    // A peer of the framework, for the two kinds of request that are answered here.
    const { CallToolRequestSchema, ListToolsRequestSchema } = await loadFramework(
      "@modelcontextprotocol/sdk",
      () => import("@modelcontextprotocol/sdk/types.js"),
    );
    const config = createSdkMcpServer({ name, tools: [] });
    const { server } = config.instance;
    const tools = this.toolDefs();
    // Not `tool()`, which takes Zod schemas only: it would list other schemas, and refuse bad arguments before our check with its own words.
    server.setRequestHandler(ListToolsRequestSchema, () => ({
      tools: tools.map(({ name, description, inputSchema }) => ({ name, description, inputSchema })),
    }));
    server.setRequestHandler(CallToolRequestSchema, ({ params }, { signal }) => {
      const tool = tools.find(({ name }) => name === params.name);
      return tool ? tool.handler(params.arguments ?? {}, { signal }) : errorResult(unknownTool(tools));
    });
    return config;
  }

  /** Adapters over children that continue from this sandbox's exact state. */
  async fork(count = 1): Promise<MitosSandboxTools[]> {
    return (await this.sandbox.fork(count)).map((child) => new MitosSandboxTools(child, this.options));
  }

  #tool(name: string): ClaudeToolDefinition {
    return this.toolDefs().find((tool) => tool.name === name)!;
  }
}

const listFiles = defineTool({
  name: "list_files",
  description: "Lists a folder of the sandbox.",
  properties: { path: { type: "string", description: "Path of the folder.", default: "/" } },
  run: (target: OpsTarget, { path }) => mapFilesList(target, path),
  show: asJson,
});

function unknownTool(tools: readonly ClaudeToolDefinition[]): Error {
  return invalidToolInput(`there is no such tool; there are ${tools.map(({ name }) => name).join(", ")}`);
}

async function toResult(show: (value: unknown) => ToolOutput, run: () => Promise<unknown>): Promise<CallToolResult> {
  try {
    const { text, images } = show(await run());
    return {
      content: [
        { type: "text", text },
        ...images.map(({ base64, mediaType }) => ({ type: "image" as const, data: base64, mimeType: mediaType })),
      ],
    };
  } catch (error) {
    return errorResult(error);
  }
}

function errorResult(error: unknown): CallToolResult {
  return { content: [{ type: "text", text: toolErrorText(error) }], isError: true };
}
