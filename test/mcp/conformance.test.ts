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
const ofEveryServer = [
  "server-initialize",
  "ping",
  "tools-list",
  "tools-call-error",
  "server-sse-multiple-streams",
  "dns-rebinding-protection",
];

/**
 * The others call tools, resources and prompts of the tool's own sample server (docs/guides/mcp.md lists each), so they are run against such
 * a server on the same transport.
 */
const ofTheSample = [
  "logging-set-level",
  "completion-complete",
  "tools-call-simple-text",
  "tools-call-image",
  "tools-call-audio",
  "tools-call-embedded-resource",
  "tools-call-mixed-content",
  "tools-call-with-logging",
  "tools-call-with-progress",
  "tools-call-sampling",
  "tools-call-elicitation",
  "json-schema-2020-12",
  "elicitation-sep1034-defaults",
  "elicitation-sep1330-enums",
  "server-sse-polling",
  "resources-list",
  "resources-read-text",
  "resources-read-binary",
  "resources-templates-read",
  "resources-subscribe",
  "resources-unsubscribe",
  "prompts-list",
  "prompts-get-simple",
  "prompts-get-with-args",
  "prompts-get-embedded-resource",
  "prompts-get-with-image",
];

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
  expect([...ofEveryServer, ...ofTheSample].sort()).toEqual(scenarios.sort());
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

  it.each([...ofEveryServer, ...ofTheSample])("passes %s", (scenario) => expectPassed(checks.get(scenario)));
});

/** Warnings are about what a server may leave out. */
function expectPassed(checks: { status: string }[] | undefined): void {
  expect(checks?.length).toBeGreaterThan(0);
  expect(checks!.filter(({ status }) => status === "FAILURE")).toEqual([]);
}
