import { setTimeout as sleep } from "node:timers/promises";
import { fromJsonSchema, McpServer, ResourceTemplate, type ServerContext } from "@modelcontextprotocol/server";
import { z } from "zod";

/** A server with the tools, resources and prompts for which the scenarios of the conformance tool ask; no product server has them. */
export function conformanceServer(): McpServer {
  const server = new McpServer(
    { name: "conformance", version: "1.0.0" },
    { capabilities: { logging: {}, completions: {}, tools: {}, prompts: {}, resources: { subscribe: true } } },
  );
  addTools(server);
  addToolsThatAsk(server);
  addResources(server);
  addPrompts(server);
  return server;
}

/** One red pixel. */
const png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==";
/** No samples. */
const wav = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA=";

const text = (value: string) => ({ type: "text" as const, text: value });
const image = { type: "image" as const, data: png, mimeType: "image/png" };

function addTools(server: McpServer): void {
  const simple = (name: string, content: () => Awaited<ReturnType<Parameters<typeof server.registerTool>[2]>>) =>
    server.registerTool(name, { description: `Answers what the scenario of ${name} asks for.` }, content as never);
  simple("test_simple_text", () => ({ content: [text("This is a simple text response for testing.")] }));
  simple("test_image_content", () => ({ content: [image] }));
  simple("test_audio_content", () => ({ content: [{ type: "audio", data: wav, mimeType: "audio/wav" }] }));
  const resource = { uri: "test://embedded-resource", mimeType: "text/plain", text: "This is an embedded resource content." };
  simple("test_embedded_resource", () => ({ content: [{ type: "resource", resource }] }));
  const mixed = { uri: "test://mixed-content-resource", mimeType: "application/json", text: '{"test":"data","value":123}' };
  simple("test_multiple_content_types", () => ({
    content: [text("Multiple content types test:"), image, { type: "resource", resource: mixed }],
  }));
  simple("test_error_handling", () => {
    throw new Error("This tool intentionally returns an error for testing");
  });

  const schema = {
    $schema: "https://json-schema.org/draft/2020-12/schema",
    type: "object" as const,
    $defs: { address: { type: "object", properties: { street: { type: "string" }, city: { type: "string" } } } },
    properties: { name: { type: "string" }, address: { $ref: "#/$defs/address" } },
    additionalProperties: false,
  };
  const described = { description: "Has a schema of 2020-12.", inputSchema: fromJsonSchema(schema) };
  server.registerTool("json_schema_2020_12_tool", described, () => ({ content: [text("ok")] }));

  server.registerTool("test_tool_with_logging", { description: "Logs three lines." }, async (ctx: ServerContext) => {
    for (const line of ["Tool execution started", "Tool processing data", "Tool execution completed"]) {
      await ctx.mcpReq.log("info", line);
      await sleep(50);
    }
    return { content: [text("logged")] };
  });
  server.registerTool("test_tool_with_progress", { description: "Reports progress." }, async (ctx: ServerContext) => {
    const progressToken = ctx.mcpReq._meta?.progressToken;
    for (const progress of [0, 50, 100]) {
      if (progressToken !== undefined) {
        await ctx.mcpReq.notify({ method: "notifications/progress", params: { progressToken, progress, total: 100 } });
      }
      await sleep(50);
    }
    return { content: [text("done")] };
  });
  server.registerTool("test_reconnection", { description: "Closes the stream before it answers." }, async (ctx: ServerContext) => {
    ctx.http?.closeSSE?.();
    await sleep(100);
    return { content: [text("Reconnection test completed successfully")] };
  });
}

/** What a tool asks goes out with its call: the stream that the client opens beside it may not be there yet. */
const onItsStream = (ctx: ServerContext) => ({ relatedRequestId: ctx.mcpReq.id });

function addToolsThatAsk(server: McpServer): void {
  server.registerTool(
    "test_sampling",
    { description: "Asks the client's model.", inputSchema: z.object({ prompt: z.string() }) },
    async ({ prompt }, ctx) => {
      const answer = await ctx.mcpReq.requestSampling(
        { messages: [{ role: "user", content: text(prompt) }], maxTokens: 100 },
        onItsStream(ctx),
      );
      return { content: [text(`LLM response: ${JSON.stringify(answer.content)}`)] };
    },
  );
  server.registerTool(
    "test_elicitation",
    { description: "Asks the client's user.", inputSchema: z.object({ message: z.string() }) },
    async ({ message }, ctx) => {
      const properties = {
        username: { type: "string" as const, description: "User's response" },
        email: { type: "string" as const, description: "User's email address" },
      };
      const requestedSchema = { type: "object" as const, properties, required: ["username", "email"] };
      const { action, content } = await ctx.mcpReq.elicitInput({ mode: "form", message, requestedSchema }, onItsStream(ctx));
      return { content: [text(`User response: action: ${action}, content: ${JSON.stringify(content)}`)] };
    },
  );
  const ask = (name: string, properties: Record<string, object>) =>
    server.registerTool(name, { description: "Asks the client's user." }, async (ctx: ServerContext) => {
      const requestedSchema = { type: "object", properties, required: [] } as never;
      const { action, content } = await ctx.mcpReq.elicitInput(
        { mode: "form", message: "Please fill in", requestedSchema },
        onItsStream(ctx),
      );
      return { content: [text(`Elicitation completed: action=${action}, content=${JSON.stringify(content)}`)] };
    });
  ask("test_elicitation_sep1034_defaults", {
    name: { type: "string", default: "John Doe" },
    age: { type: "integer", default: 30 },
    score: { type: "number", default: 95.5 },
    status: { type: "string", enum: ["active", "inactive", "pending"], default: "active" },
    verified: { type: "boolean", default: true },
  });
  const titled = ["First", "Second", "Third"].map((word, index) => ({ const: `value${index + 1}`, title: `${word} Option` }));
  ask("test_elicitation_sep1330_enums", {
    untitledSingle: { type: "string", enum: ["option1", "option2", "option3"] },
    titledSingle: { type: "string", oneOf: titled },
    legacyEnum: { type: "string", enum: ["opt1", "opt2", "opt3"], enumNames: ["Option One", "Option Two", "Option Three"] },
    untitledMulti: { type: "array", items: { type: "string", enum: ["option1", "option2", "option3"] } },
    titledMulti: { type: "array", items: { anyOf: titled } },
  });
}

function addResources(server: McpServer): void {
  const described = (mimeType: string) => ({ description: "For the scenarios.", mimeType });
  const textUri = "test://static-text";
  server.registerResource("static-text", textUri, described("text/plain"), () => ({
    contents: [{ uri: textUri, mimeType: "text/plain", text: "This is the content of the static text resource." }],
  }));
  const binaryUri = "test://static-binary";
  server.registerResource("static-binary", binaryUri, described("image/png"), () => ({
    contents: [{ uri: binaryUri, mimeType: "image/png", blob: png }],
  }));
  const template = new ResourceTemplate("test://template/{id}/data", { list: undefined });
  server.registerResource("template", template, described("application/json"), (uri, { id }) => ({
    contents: [
      { uri: uri.href, mimeType: "application/json", text: JSON.stringify({ id, templateTest: true, data: `Data for ID: ${id}` }) },
    ],
  }));
  server.server.setRequestHandler("resources/subscribe", () => ({}));
  server.server.setRequestHandler("resources/unsubscribe", () => ({}));
}

function addPrompts(server: McpServer): void {
  const user = <Content>(content: Content) => ({ role: "user" as const, content });
  server.registerPrompt("test_simple_prompt", { description: "Without arguments." }, () => ({
    messages: [user(text("This is a simple prompt for testing."))],
  }));
  const argsSchema = z.object({ arg1: z.string().describe("First"), arg2: z.string().describe("Second") });
  server.registerPrompt("test_prompt_with_arguments", { description: "With arguments.", argsSchema }, ({ arg1, arg2 }) => ({
    messages: [user(text(`Prompt with arguments: arg1='${arg1}', arg2='${arg2}'`))],
  }));
  server.server.setRequestHandler("completion/complete", () => ({
    completion: { values: ["paris", "park", "party"], total: 3, hasMore: false },
  }));
  const embedded = { description: "With a resource.", argsSchema: z.object({ resourceUri: z.string().describe("URI") }) };
  server.registerPrompt("test_prompt_with_embedded_resource", embedded, ({ resourceUri }) => ({
    messages: [
      user({
        type: "resource" as const,
        resource: { uri: resourceUri, mimeType: "text/plain", text: "Embedded resource content for testing." },
      }),
      user(text("Please process the embedded resource above.")),
    ],
  }));
  server.registerPrompt("test_prompt_with_image", { description: "With an image." }, () => ({
    messages: [user(image), user(text("Please analyze the image above."))],
  }));
}
