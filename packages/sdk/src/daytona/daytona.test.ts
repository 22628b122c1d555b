import { afterEach, describe, expect, it, vi } from "vitest";
import { type FakeServer, json, startFakeServer } from "../../test/fake-server.ts";
import { AgentRunError } from "../errors.ts";
import {
  type CreateSandboxFromImageParams,
  type CreateSandboxParams,
  Daytona,
  DaytonaError,
  DaytonaInvalidArgumentError,
} from "./index.ts";

afterEach(() => {
  vi.unstubAllEnvs();
});

/** Answers every request with one sandbox. */
function startOneSandbox(): Promise<FakeServer> {
  return startFakeServer((_request, response) => json(response, 200, { id: "sb-1", template_id: "python", state: "running" }));
}

it("a time-out may be a part of a second, and longer than a timer can be", async () => {
  await using server = await startFakeServer(async (request, response) => {
    if (request.path === "/v1/pause") await new Promise((resolve) => setTimeout(resolve, 20));
    json(response, 200, { id: "sb-1", template_id: "python", state: "running" });
  });
  const sandbox = await new Daytona({ apiUrl: server.url }).get("sb-1");
  for (const seconds of [1.2345, 30 * 86_400, 1e9]) await sandbox.stop(seconds);
  expect(sandbox.state).toBe("stopped");
});

describe("what goes to the server", () => {
  it("has the client's key, the region for its target, and what the sandbox is created with", async () => {
    await using server = await startOneSandbox();
    const client = new Daytona({ apiKey: "k", apiUrl: server.url, target: "eu" });
    await client.create({
      language: "javascript",
      name: "sb-1",
      envVars: { A: "1" },
      labels: { team: "blue" },
      ttlMinutes: 2,
      ephemeral: true,
      autoStopInterval: 3,
      networkAllowList: "10.0.0.0/8, 192.0.2.0/24",
      domainAllowList: "example.com,*.example.org:443",
    });
    const fork = server.requests.find(({ path }) => path === "/v1/fork")!;
    expect(fork.headers.authorization).toBe("Bearer k");
    expect(fork.json()).toEqual({
      template: "node",
      id: "sb-1",
      env: { A: "1" },
      metadata: { team: "blue", "code-toolbox-language": "javascript", "mitos-daytona-ephemeral": "true" },
      timeout_seconds: 120,
      idle_timeout_seconds: 180,
      region: "eu",
      network: { allow_cidrs: ["10.0.0.0/8", "192.0.2.0/24"], allow_domains: ["example.com", "*.example.org:443"] },
    });
  });

  it.each<[string, CreateSandboxParams, object]>([
    ["the image before the snapshot's and the language's", { image: "mine", language: "python" }, { template: "mine" }],
    ["the snapshot's before the language's", { snapshot: "saved", language: "typescript" }, { template: "saved" }],
    ["python when nothing is said", {}, { template: "python" }],
    ["sizes in our units", { image: "x", resources: { cpu: 2, memory: 1.5 } }, { resources: { vcpu_count: 2, mem_size_mib: 1536 } }],
    ["a blocked network", { networkBlockAll: true }, { network: { block: true } }],
  ])("has %s", async (_what, params, body) => {
    await using server = await startOneSandbox();
    await new Daytona({ apiUrl: server.url }).create(params as CreateSandboxFromImageParams);
    expect(server.requests.find(({ path }) => path === "/v1/fork")!.json()).toMatchObject(body);
  });

  it("goes to apiUrl, then serverUrl, then where the SDK's own variables say, and never where Daytona's do", async () => {
    await using named = await startOneSandbox();
    await using own = await startOneSandbox();
    await using foreign = await startOneSandbox();
    vi.stubEnv("MITOS_BASE_URL", own.url);
    vi.stubEnv("DAYTONA_API_URL", foreign.url);
    vi.stubEnv("DAYTONA_API_KEY", "daytona-key");
    await new Daytona({ apiUrl: named.url, serverUrl: foreign.url }).get("sb-1");
    await new Daytona({ serverUrl: named.url }).get("sb-1");
    await new Daytona().get("sb-1");
    expect([named, own, foreign].map(({ requests }) => requests.length)).toEqual([4, 2, 0]);
    expect(own.requests.map(({ headers }) => headers.authorization)).not.toContain("Bearer daytona-key");
  });
});

describe("an error", () => {
  it.each([
    [400, "invalid_input", "DaytonaBadRequestError"],
    [401, "unauthorized", "DaytonaAuthenticationError"],
    [403, "forbidden", "DaytonaForbiddenError"],
    [404, "not_found", "DaytonaNotFoundError"],
    [409, "sandbox_not_running", "DaytonaConflictError"],
    [410, "idle_timeout", "DaytonaGoneError"],
    [422, "build_failed", "DaytonaUnprocessableEntityError"],
    [429, "rate_limited", "DaytonaRateLimitError"],
    [500, "internal", "DaytonaInternalServerError"],
    [501, "not_supported", "DaytonaError"],
    [503, "unavailable", "DaytonaServiceUnavailableError"],
  ])("with status %i and code %s is a %s", async (status, code, name) => {
    const error = { code, message: "what", cause: "why", remediation: "Do this." };
    await using server = await startFakeServer((_request, response) => json(response, status, { error }));
    const thrown = await new Daytona({ apiUrl: server.url }).get("sb-1").catch((reason: unknown) => reason);
    expect(thrown).toMatchObject({ name, statusCode: status, code, message: "what: why. Do this.", remediation: "Do this." });
    expect(thrown).toBeInstanceOf(DaytonaError);
    expect((thrown as Error).cause).toBeInstanceOf(AgentRunError);
  });

  it("that the SDK finds itself is an invalid argument", async () => {
    const thrown = await new Daytona({ apiUrl: "http://127.0.0.1:1" }).get("../x").catch((reason: unknown) => reason);
    expect(thrown).toBeInstanceOf(DaytonaInvalidArgumentError);
    expect(thrown).toMatchObject({ code: "invalid_sandbox_id", statusCode: undefined, cause: { name: "AgentRunError" } });
  });
});
