import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export interface ToolResultSeen {
  content: unknown;
  is_error?: boolean;
}

export interface ScriptedMessagesApi extends AsyncDisposable {
  readonly url: string;
  /** The results of tools in the last request. */
  readonly results: readonly ToolResultSeen[];
}

/** The streaming Messages API on loopback, with a model that makes these calls, one a turn, and then says "done". */
export async function startScriptedMessagesApi(calls: readonly [name: string, input: unknown][]): Promise<ScriptedMessagesApi> {
  let results: ToolResultSeen[] = [];
  const server = createServer(async (request, response) => {
    const parts: Buffer[] = [];
    for await (const part of request) parts.push(part as Buffer);
    if (request.method !== "POST" || new URL(request.url ?? "/", "http://x").pathname !== "/v1/messages") {
      response.writeHead(404).end("{}");
      return;
    }
    const { messages, model } = JSON.parse(Buffer.concat(parts).toString()) as { messages: { content: unknown }[]; model: string };
    results = messages.flatMap(({ content }) => (Array.isArray(content) ? content.filter(({ type }) => type === "tool_result") : []));
    const call = calls[results.length];
    answer(response, model, call && { id: `toolu_${results.length}`, name: call[0], input: call[1] });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    get results() {
      return results;
    },
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      await closed;
    },
  };
}

function answer(response: ServerResponse, model: string, call: { id: string; name: string; input: unknown } | undefined): void {
  const block = call ? { type: "tool_use", id: call.id, name: call.name, input: {} } : { type: "text", text: "" };
  const delta = call ? { type: "input_json_delta", partial_json: JSON.stringify(call.input) } : { type: "text_delta", text: "done" };
  const usage = { input_tokens: 1, output_tokens: 1 };
  const message = { id: "msg_1", type: "message", role: "assistant", model, content: [], stop_reason: null, stop_sequence: null, usage };
  const events = [
    { type: "message_start", message },
    { type: "content_block_start", index: 0, content_block: block },
    { type: "content_block_delta", index: 0, delta },
    { type: "content_block_stop", index: 0 },
    { type: "message_delta", delta: { stop_reason: call ? "tool_use" : "end_turn", stop_sequence: null }, usage },
    { type: "message_stop" },
  ];
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  response.end(events.map((event) => `event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`).join(""));
}
