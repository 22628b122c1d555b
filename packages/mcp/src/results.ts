import type { CallToolResult, ContentBlock } from "@modelcontextprotocol/server";

export function textResult(...texts: readonly string[]): CallToolResult {
  return { content: texts.map(text) };
}

/** The value for programs, and as JSON text for models and older clients. */
export function jsonResult(structuredContent: Record<string, unknown>, ...more: readonly ContentBlock[]): CallToolResult {
  return { content: [text(JSON.stringify(structuredContent)), ...more], structuredContent };
}

export function text(value: string): ContentBlock {
  return { type: "text", text: value };
}
