import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";

// A program in a folder of its own, in which the SDK and nothing else can be resolved. No server is needed.
let folder: string;
beforeAll(() => {
  folder = mkdtempSync(path.join(os.tmpdir(), "mitos-consumer-"));
  mkdirSync(path.join(folder, "node_modules/@mitos"), { recursive: true });
  for (const name of ["sdk", "protocol"]) {
    const source = path.resolve(import.meta.dirname, "../../packages", name);
    for (const part of ["package.json", "src"]) cpSync(path.join(source, part), path.join(folder, name, part), { recursive: true });
    // A link: Node reads TypeScript outside node_modules only, and looks at where a file really is.
    symlinkSync(path.join(folder, name), path.join(folder, "node_modules/@mitos", name));
  }
  writeFileSync(path.join(folder, "program.mjs"), program);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

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
  const printed = execFileSync(process.execPath, ["--disable-warning=ExperimentalWarning", path.join(folder, "program.mjs")], {
    encoding: "utf8",
  });
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
