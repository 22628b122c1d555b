import type { FunctionTool } from "@openai/agents";
import { type CreateOptions, create } from "../create.ts";
import { SandboxAdapter } from "./adapter.ts";
import { loadFramework } from "./framework.ts";
import {
  type CommandOutcome,
  type ExecutionOutcome,
  type FileOutcome,
  mapExecute,
  mapFilesList,
  mapFilesRead,
  mapFilesWrite,
  mapRunCode,
} from "./mapping.ts";
import { type BoundTool, type ToolInputSchema, type ToolOptions, type ToolOutput, toolErrorText } from "./tools.ts";

/** A tool without the framework: what it is, and a function that takes its arguments as one object and returns plain data. */
export interface FunctionToolDefinition {
  name: string;
  description: string;
  paramsJsonSchema: ToolInputSchema;
  func(input: unknown): Promise<unknown>;
}

/** A sandbox for agents of `@openai/agents`. */
export class MitosSandboxTools extends SandboxAdapter {
  static async create({ forkTool, ...options }: CreateOptions & ToolOptions = {}): Promise<MitosSandboxTools> {
    return new MitosSandboxTools(await create(options), { forkTool });
  }

  /** @param options.timeoutSeconds - default: 30 */
  runCommand(command: string, { timeoutSeconds }: { timeoutSeconds?: number } = {}): Promise<CommandOutcome> {
    return mapExecute(this.sandbox, command, timeoutSeconds);
  }

  readFile(path: string): Promise<string> {
    return mapFilesRead(this.sandbox, path);
  }

  writeFile(path: string, content: string): Promise<{ path: string; written: true }> {
    return mapFilesWrite(this.sandbox, path, content);
  }

  listFiles(path = "/"): Promise<FileOutcome[]> {
    return mapFilesList(this.sandbox, path);
  }

  /** @param options.timeoutSeconds - default: 60 */
  runCode(code: string, { language, timeoutSeconds }: { language?: string; timeoutSeconds?: number } = {}): Promise<ExecutionOutcome> {
    return mapRunCode(this.sandbox, code, language, timeoutSeconds);
  }

  functionTools(): FunctionToolDefinition[] {
    return this.bound.tools.map(({ name, description, inputSchema, call }) => ({
      name,
      description,
      paramsJsonSchema: inputSchema,
      func: (input) => call(input),
    }));
  }

  /** For `new Agent({ tools })`. @throws integration_dependency_missing without `@openai/agents` */
  async asFunctionTools(): Promise<FunctionTool[]> {
    const { tool } = await loadFramework("@openai/agents", () => import("@openai/agents"));
    return this.bound.tools.map((each) => tool(toolOptions(each)) as FunctionTool);
  }

  /** Adapters over children that continue from this sandbox's exact state. */
  async fork(count = 1): Promise<MitosSandboxTools[]> {
    return (await this.sandbox.fork(count)).map((child) => new MitosSandboxTools(child, this.options));
  }
}

type ToolOptionsOfFramework = Parameters<typeof import("@openai/agents").tool>[0];

function toolOptions({ name, description, inputSchema, call, show }: BoundTool): ToolOptionsOfFramework {
  return {
    name,
    description,
    // The framework's strict mode knows no optional arguments. Its type of other schemas allows additional ones, which we refuse.
    strict: false,
    parameters: inputSchema as unknown as { type: "object"; properties: object; required: never[]; additionalProperties: true },
    execute: async (input, _context, details) => toFramework(show(await call(input, { signal: details?.signal }))),
    errorFunction: (_context, error) => toolErrorText(error),
  };
}

function toFramework({ text, images }: ToolOutput) {
  if (images.length === 0) return text;
  return [
    { type: "text" as const, text },
    ...images.map(({ base64, mediaType }) => ({ type: "image" as const, image: { data: base64, mediaType } })),
  ];
}
