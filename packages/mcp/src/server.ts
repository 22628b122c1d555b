import {
  type CallToolResult,
  type ListToolsResult,
  Server,
  type StandardSchemaV1,
  type Tool as ToolDescription,
} from "@modelcontextprotocol/server";
import type { Backend } from "./backend.ts";
import type { CreatedSandboxes } from "./created-sandboxes.ts";
import { ToolError, toToolError } from "./errors.ts";
import { progressOf } from "./progress.ts";
import { text } from "./results.ts";
import type { Tool } from "./tools/tool.ts";

export interface McpServerOptions {
  readonly version: string;
  readonly tools: readonly Tool[];
  readonly backend: Backend;
  /** Gets the ids of what this session makes. */
  readonly created: CreatedSandboxes;
}

const instructions =
  "Sandboxes are isolated Linux machines: create one with sandbox_create, work in it with sandbox_exec, sandbox_run_code and the file tools, " +
  "fork it with sandbox_fork to try several ideas from one state, and end it with sandbox_terminate when it is not needed any more.";

/**
 * The protocol server of one session. The SDK's `Server` rather than its `McpServer`, which answers an unknown tool and wrong arguments in
 * words of its own; here they are results with code, cause and remedy that a model can act on.
 */
export function createMcpServer({ version, tools, backend, created }: McpServerOptions): Server {
  const byName = new Map(tools.map((tool) => [tool.description.name, tool]));
  const server = new Server(
    { name: "mitos-mcp", title: "Mitos sandboxes", version },
    { capabilities: { tools: { listChanged: false } }, instructions },
  );

  server.setRequestHandler("tools/list", { params: listParams }, (): ListToolsResult => {
    const revision = server.getNegotiatedProtocolVersion();
    return { tools: tools.map(({ description }) => descriptionFor(revision, description)) };
  });

  // Called with a string for `name` and an object for `arguments`; anything else is answered -32602.
  server.setRequestHandler("tools/call", async ({ params: { name, arguments: args = {} } }, context): Promise<CallToolResult> => {
    using progress = progressOf(context);
    try {
      const tool = byName.get(name);
      if (!tool) throw unknownTool(name, [...byName.keys()]);
      const result = await tool.call(args, { backend, created, signal: context.mcpReq.signal, progress });
      return resultFor(server.getNegotiatedProtocolVersion(), result);
    } catch (error) {
      const failure = toToolError(error);
      if (!(failure instanceof ToolError)) throw failure;
      return { content: [text(failure.toText())], isError: true };
    }
  });

  return server;
}

/** What the revision does not know yet is left out: 2025-03-26 brought annotations, 2025-06-18 titles and structured content. */
function descriptionFor(revision: string | undefined, description: ToolDescription): ToolDescription {
  if (revision === undefined || revision >= structuredSince) return description;
  const { title: _title, outputSchema: _outputSchema, annotations, ...known } = description;
  return revision >= annotationsSince && annotations ? { ...known, annotations } : known;
}

function resultFor(revision: string | undefined, result: CallToolResult): CallToolResult {
  if (revision === undefined || revision >= structuredSince) return result;
  const { structuredContent: _structuredContent, ...known } = result;
  return known;
}

const annotationsSince = "2025-03-26";
const structuredSince = "2025-06-18";

function unknownTool(name: string, known: readonly string[]): ToolError {
  return new ToolError("unknown_tool", `there is no tool ${JSON.stringify(name.slice(0, 100))}`, `Use one of ${known.join(", ")}.`);
}

/** The list has one page, so every cursor is one that was never given out. */
const listParams: StandardSchemaV1<unknown, object> = {
  "~standard": {
    version: 1,
    vendor: "mitos",
    validate: (params) =>
      (params as { cursor?: unknown }).cursor === undefined
        ? { value: {} }
        : { issues: [{ message: "cursor is unknown: the list has one page" }] },
  },
};
