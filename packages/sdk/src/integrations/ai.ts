import type { Tool, ToolSet } from "ai";
import type { Sandbox } from "../sandbox.ts";
import { loadFramework } from "./framework.ts";
import { type BoundTool, bindTools, type ToolOptions, type ToolOutput } from "./tools.ts";

/**
 * A sandbox's tools for `generateText({ tools })`, `streamText` and agents of the AI SDK. A result is plain data for the program; the model
 * reads it as text, and images as images. The abort signal of the generation kills the running command.
 *
 * The sandbox stays its owner's to end; `sandbox.terminate({ subtree: true })` also ends children of the fork tool. Tools over a child that
 * the program itself has forked are `mitosTools(child)`.
 *
 * @throws integration_dependency_missing without `ai`
 */
export async function mitosTools(sandbox: Sandbox, options: ToolOptions = {}): Promise<ToolSet> {
  const { jsonSchema, tool } = await loadFramework("ai", () => import("ai"));
  const toTool = ({ description, inputSchema, call, show }: BoundTool): Tool<unknown, unknown> =>
    tool({
      description,
      // Without `validate`: the tool itself checks its arguments, so that a refusal is a tool error in our words.
      inputSchema: jsonSchema<unknown>(inputSchema as Parameters<typeof jsonSchema>[0]),
      execute: (input: unknown, { abortSignal }) => call(input, { signal: abortSignal }),
      toModelOutput: ({ output }) => toModelOutput(show(output)),
    });
  return Object.fromEntries(bindTools(sandbox, options).tools.map((each) => [each.name, toTool(each)]));
}

function toModelOutput({ text, images }: ToolOutput) {
  if (images.length === 0) return { type: "text" as const, value: text };
  const files = images.map(({ base64, mediaType }) => ({
    type: "file" as const,
    mediaType,
    data: { type: "data" as const, data: base64 },
  }));
  return { type: "content" as const, value: [{ type: "text" as const, text }, ...files] };
}
