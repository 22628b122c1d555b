import type { ToolCall } from "@langchain/core/messages/tool";
import type { StructuredTool } from "@langchain/core/tools";
import { type CreateOptions, create } from "../create.ts";
import { isObject } from "../errors.ts";
import type { ExecResult } from "../exec.ts";
import type { FileInfo } from "../files.ts";
import type { Execution } from "../run-code.ts";
import { SandboxAdapter } from "./adapter.ts";
import { loadFramework } from "./framework.ts";
import { type CommandOutcome, type ExecutionOutcome, mapExecute, mapFilesRead, mapRunCode } from "./mapping.ts";
import { type BoundTool, checkToolInput, type ToolOptions, type ToolOutput, toolErrorText } from "./tools.ts";

interface TimeoutOption {
  timeoutSeconds?: number | undefined;
}

interface CodeOptions extends TimeoutOption {
  /** Default: `python`. */
  language?: string | undefined;
}

/** A sandbox for LangChain and LangGraph. */
export class MitosSandbox extends SandboxAdapter {
  static async create({ forkTool, ...options }: CreateOptions & ToolOptions = {}): Promise<MitosSandbox> {
    return new MitosSandbox(await create(options), { forkTool });
  }

  /** @param options.timeoutSeconds - default: 30 */
  execute(command: string, { timeoutSeconds }: TimeoutOption = {}): Promise<CommandOutcome> {
    return mapExecute(this.sandbox, command, timeoutSeconds);
  }

  /** Another name of execute. */
  run(command: string, options: TimeoutOption = {}): Promise<CommandOutcome> {
    return this.execute(command, options);
  }

  /** The same as the SDK's own result. */
  execResult(command: string, { timeoutSeconds = 30 }: TimeoutOption = {}): Promise<ExecResult> {
    return this.sandbox.exec(command, { timeoutSeconds });
  }

  readFile(path: string): Promise<string> {
    return mapFilesRead(this.sandbox, path);
  }

  writeFile(path: string, content: string | Uint8Array): Promise<void> {
    return this.sandbox.files.write(path, content);
  }

  listFiles(path = "/"): Promise<FileInfo[]> {
    return this.sandbox.files.list(path);
  }

  /** @param options.timeoutSeconds - default: 60 */
  runCode(code: string, options: CodeOptions = {}): Promise<Execution> {
    return this.sandbox.runCode(code, options);
  }

  /** The same as plain data. */
  runCodeDict(code: string, { language, timeoutSeconds }: CodeOptions = {}): Promise<ExecutionOutcome> {
    return mapRunCode(this.sandbox, code, language, timeoutSeconds);
  }

  /** For `createAgent({ tools })` or `model.bindTools`. @throws integration_dependency_missing without `@langchain/core` */
  async asLangchainTools(): Promise<StructuredTool[]> {
    const [{ DynamicStructuredTool }, { ToolMessage }] = await loadFramework("@langchain/core", () =>
      Promise.all([import("@langchain/core/tools"), import("@langchain/core/messages")]),
    );

    /**
     * Called by a model, it answers a failure with a tool message of status `error`: an agent with middleware would end at an exception.
     * Called by a program, it throws.
     */
    class MitosTool extends DynamicStructuredTool {
      readonly #tool: BoundTool;

      constructor(tool: BoundTool) {
        super({
          name: tool.name,
          description: tool.description,
          schema: tool.inputSchema,
          func: async (input, _runManager, config) => toContent(tool.show(await tool.call(input, { signal: config?.signal }))),
        });
        this.#tool = tool;
      }

      override async invoke(input: unknown, config?: Parameters<StructuredTool["invoke"]>[1]) {
        const call = isToolCall(input) ? input : undefined;
        try {
          // Before the framework's own check, whose refusal names neither the argument nor a remedy.
          checkToolInput(this.#tool.name, this.#tool.inputSchema, call ? call.args : input);
          return await super.invoke(input as never, config);
        } catch (error) {
          if (!call || config?.signal?.aborted) throw error;
          return new ToolMessage({ status: "error", content: toolErrorText(error), tool_call_id: call.id ?? "", name: this.name });
        }
      }
    }

    return this.bound.tools.map((tool) => new MitosTool(tool));
  }

  /** Adapters over children that continue from this sandbox's exact state. */
  async fork(count = 1): Promise<MitosSandbox[]> {
    return (await this.sandbox.fork(count)).map((child) => new MitosSandbox(child, this.options));
  }
}

function isToolCall(input: unknown): input is ToolCall {
  return isObject(input) && input.type === "tool_call";
}

function toContent({ text, images }: ToolOutput) {
  if (images.length === 0) return text;
  return [
    { type: "text" as const, text },
    ...images.map(({ base64, mediaType }) => ({ type: "image" as const, mimeType: mediaType, data: base64 })),
  ];
}
