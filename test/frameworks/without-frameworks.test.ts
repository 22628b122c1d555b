import { expect, it } from "vitest";
import { runWithoutFrameworks } from "../support/consumer.ts";

const program = `
import { Sandbox } from "@mitos/sdk";
import { mitosTools } from "@mitos/sdk/integrations/ai";
import { MitosSandboxTools as ClaudeTools } from "@mitos/sdk/integrations/claude-agent";
import { asDeepagentsBackend } from "@mitos/sdk/integrations/deepagents";
import { MitosSandbox } from "@mitos/sdk/integrations/langchain";
import { MitosSandboxTools as OpenAiTools } from "@mitos/sdk/integrations/openai-agents";

const sandbox = new Sandbox({ id: "sb-1", endpoint: "http://127.0.0.1:1" });
const needs = {
  ai: () => mitosTools(sandbox),
  "claude-agent": () => new ClaudeTools(sandbox).asMcpServer(),
  deepagents: () => asDeepagentsBackend(sandbox),
  langchain: () => new MitosSandbox(sandbox).asLangchainTools(),
  "openai-agents": () => new OpenAiTools(sandbox).asFunctionTools(),
};
const failures = {};
for (const [name, use] of Object.entries(needs)) {
  failures[name] = await use().then(() => "no failure", ({ code, status, message, remediation }) => ({ code, status, message, remediation }));
}
const definitions = [new OpenAiTools(sandbox).functionTools(), new ClaudeTools(sandbox).toolDefs()];
console.log(JSON.stringify({ failures, definitions: definitions.map((each) => each.map(({ name }) => name)) }));
`;

it("adapters can be imported without their framework, define their tools, and name the package when it is needed", () => {
  const printed = runWithoutFrameworks(program);
  const names = ["run_command", "read_file", "write_file", "run_code"];
  const missing = (name: string) => ({
    code: "integration_dependency_missing",
    status: 501,
    message: `${name} could not be loaded`,
    remediation: `Install it beside @mitos/sdk: npm install ${name}`,
  });
  expect(JSON.parse(printed)).toEqual({
    failures: {
      ai: missing("ai"),
      "claude-agent": missing("@anthropic-ai/claude-agent-sdk"),
      deepagents: missing("deepagents"),
      langchain: missing("@langchain/core"),
      "openai-agents": missing("@openai/agents"),
    },
    definitions: [names, names],
  });
});
