import { execFile } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type HttpServer, startHttp } from "../../packages/mcp/src/http/server.ts";
import { conformanceServer } from "./support/conformance-server.ts";
import { startHttpProgram } from "./support/programs.ts";

// The published conformance tool of the protocol, scenario by scenario.
const tool = path.resolve(import.meta.dirname, "../../node_modules/@modelcontextprotocol/conformance/dist/index.js");

/** What a scenario asks of any server: these are run against mitos-mcp itself. */
const ofEveryServer = ["server-initialize", "ping", "tools-list", "server-sse-multiple-streams", "dns-rebinding-protection"];

/**
 * The others need parts of the tool's own sample server, which no product has, so they are run against such a server on the transport of
 * mitos-mcp. Why each does not apply to mitos-mcp itself: what it needs.
 */
const ofTheSample: Record<string, string> = {
  "tools-call-simple-text": "the tool `test_simple_text`",
  "tools-call-image": "the tool `test_image_content`",
  "tools-call-audio": "the tool `test_audio_content`",
  "tools-call-embedded-resource": "the tool `test_embedded_resource`",
  "tools-call-mixed-content": "the tool `test_multiple_content_types`",
  "tools-call-with-logging": "the tool `test_tool_with_logging`",
  "tools-call-error": "the tool `test_error_handling`",
  "tools-call-with-progress": "the tool `test_tool_with_progress`",
  "tools-call-sampling": "the tool `test_sampling`, which asks the client's model",
  "tools-call-elicitation": "the tool `test_elicitation`, which asks the client's user",
  "elicitation-sep1034-defaults": "the tool `test_elicitation_sep1034_defaults`",
  "elicitation-sep1330-enums": "the tool `test_elicitation_sep1330_enums`",
  "json-schema-2020-12": "the tool `json_schema_2020_12_tool`",
  "server-sse-polling": "the tool `test_reconnection`",
  "logging-set-level": "log messages, which go to standard error",
  "completion-complete": "prompts",
  "resources-list": "resources",
  "resources-read-text": "the resource `test://static-text`",
  "resources-read-binary": "the resource `test://static-binary`",
  "resources-templates-read": "the resources `test://template/{id}/data`",
  "resources-subscribe": "resources that change",
  "resources-unsubscribe": "resources that change",
  "prompts-list": "prompts",
  "prompts-get-simple": "the prompt `test_simple_prompt`",
  "prompts-get-with-args": "the prompt `test_prompt_with_arguments`",
  "prompts-get-embedded-resource": "the prompt `test_prompt_with_embedded_resource`",
  "prompts-get-with-image": "the prompt `test_prompt_with_image`",
};

const run = (args: readonly string[]) => promisify(execFile)(process.execPath, [tool, ...args]);

/** Runs every scenario once and keeps the checks of each. */
async function runSuite(url: string): Promise<Map<string, { id: string; status: string; errorMessage?: string }[]>> {
  const dir = mkdtempSync(path.join(os.tmpdir(), "mitos-mcp-"));
  try {
    // It exits with 1 when a check has failed; which one is in the files.
    await run(["server", "--url", url, "--suite", "all", "-o", dir]).catch(() => undefined);
    return new Map(
      readdirSync(dir).map((name) => {
        const scenario = name.replace(/^server-/, "").replace(/-\d{4}-\d\d-\d\dT.*$/, "");
        return [scenario, JSON.parse(readFileSync(path.join(dir, name, "checks.json"), "utf8"))];
      }),
    );
  } finally {
    rmSync(dir, { recursive: true });
  }
}

it("knows every scenario of the tool", async () => {
  const { stdout } = await run(["list", "--server"]);
  const scenarios = [...stdout.matchAll(/^ {2}- (\S+) \[/gm)].map(([, name]) => name!);
  expect([...ofEveryServer, ...Object.keys(ofTheSample)].sort()).toEqual(scenarios.sort());
});

it("docs/guides/mcp.md lists exactly these scenarios and reasons", () => {
  const guide = readFileSync(path.resolve(import.meta.dirname, "../../docs/guides/mcp.md"), "utf8");
  const rows = [...guide.matchAll(/^\| `([a-z0-9-]+)` \| (.+) \|$/gm)].map(([, scenario, reason]) => [scenario, reason]);
  expect(rows.filter(([scenario]) => scenario! in ofTheSample)).toEqual(Object.entries(ofTheSample));
  for (const scenario of ofEveryServer) expect(guide).toContain(`\`${scenario}\``);
});

describe("mitos-mcp", () => {
  let checks: Awaited<ReturnType<typeof runSuite>>;
  beforeAll(async () => {
    await using program = await startHttpProgram(["--server", "http://127.0.0.1:9"]);
    checks = await runSuite(program.url);
  });

  it.each(ofEveryServer)("passes %s", (scenario) => expectPassed(checks.get(scenario)));
});

describe("a sample server on the transport of mitos-mcp", () => {
  let server: HttpServer;
  let checks: Awaited<ReturnType<typeof runSuite>>;
  beforeAll(async () => {
    const openSession = () => ({ createServer: conformanceServer, end: async () => {} });
    server = await startHttp({ host: "127.0.0.1", port: 0, openSession, onerror: () => {} });
    checks = await runSuite(server.url);
  });
  afterAll(() => server.close());

  it.each([...ofEveryServer, ...Object.keys(ofTheSample)])("passes %s", (scenario) => expectPassed(checks.get(scenario)));
});

/** Warnings are about what a server may leave out. */
function expectPassed(checks: { status: string }[] | undefined): void {
  expect(checks?.length).toBeGreaterThan(0);
  expect(checks!.filter(({ status }) => status === "FAILURE")).toEqual([]);
}
