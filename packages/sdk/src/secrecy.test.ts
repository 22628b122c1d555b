import { inspect } from "node:util";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { base64, endOfStream, type FakeServer, frame, json, type Respond, startFakeServer, stream } from "../test/fake-server.ts";
import { ConnectClient } from "./connect.ts";
import { create } from "./create.ts";
import { AgentRunError, errorForConnect } from "./errors.ts";
import { HttpClient, tokenOf } from "./http.ts";
import { Pty } from "./pty.ts";
import { Sandbox } from "./sandbox.ts";
import { SandboxServer } from "./server.ts";

const key = "sk-secret-value";

/** Everything that prints a value, with whatever it can be asked to show. */
function shown(value: unknown): string {
  const everything = { depth: Number.POSITIVE_INFINITY, showHidden: true, getters: true, maxStringLength: null } as const;
  const text = value instanceof Error ? `${value} ${value.message} ${value.stack}` : "";
  return `${text} ${inspect(value)} ${inspect(value, everything)} ${JSON.stringify(value)} ${JSON.stringify(Object.entries(value as object))}`;
}

let server: FakeServer;
let respond: Respond;
beforeEach(async () => {
  respond = (_request, response) => json(response, 200, { id: "sb", template_id: "python" });
  server = await startFakeServer((request, response) => respond(request, response));
});
afterEach(async () => {
  vi.unstubAllEnvs();
  await server[Symbol.asyncDispose]();
});

describe("the key is shown by no", () => {
  it.each<[string, () => object | Promise<object>]>([
    ["HttpClient", () => new HttpClient(server.url, key)],
    ["HttpClient with the key of the environment", () => HttpClient.fromAuth({ baseUrl: server.url })],
    ["ConnectClient", () => new ConnectClient(server.url, "sb", key)],
    ["SandboxServer", () => new SandboxServer(server.url, key)],
    ["Sandbox", () => new Sandbox({ id: "sb", endpoint: server.url, token: key })],
    ["Sandbox of create", () => create({ baseUrl: server.url, apiKey: key })],
    ["files of a Sandbox", () => new Sandbox({ id: "sb", endpoint: server.url, token: key }).files],
    ["BackgroundProcess", () => new Sandbox({ id: "sb", endpoint: server.url, token: key }).connectProcess(7)],
    ["Pty", () => new Sandbox({ id: "sb", endpoint: server.url, token: key }).connectPty(7, () => undefined)],
  ])("%s", async (_name, make) => {
    vi.stubEnv("MITOS_API_KEY", key);
    const value = await make();
    expect(shown(value)).not.toContain(key);
    if (value instanceof Pty) value.disconnect();
  });

  it("HttpClient, which sends it nevertheless", async () => {
    const http = new HttpClient(server.url, key);
    await http.get("/v1/health");
    expect(server.requests[0]?.headers.authorization).toBe(`Bearer ${key}`);
    expect(tokenOf(http)).toBe(key);
  });
});

describe("the key is in no error, when", () => {
  const everywhere = {
    code: key,
    message: `Bearer ${key}`,
    cause: key,
    remediation: `use ${key}`,
    context: { [key]: [key], deep: { key } },
  };

  it.each<[string, Respond]>([
    ["the server's envelope repeats it", (_request, response) => json(response, 500, { error: everywhere })],
    ["an older server's text repeats it", (_request, response) => json(response, 500, { error: key })],
    ["the answer is not JSON", (_request, response) => response.writeHead(502).end(`<html>${key}</html>`)],
    ["a page is answered that cuts it off", (_request, response) => response.end(`<html>${" ".repeat(186)}${key}`)],
    ["the server hangs up", (_request, response) => response.destroy()],
  ])("%s", async (_name, answer) => {
    respond = answer;
    const error = await new SandboxServer(server.url, key).health().catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(AgentRunError);
    expect(shown(error)).not.toContain(key.slice(0, 8));
  });

  it.each<[string, Respond]>([
    ["an RPC is refused", (_request, response) => json(response, 500, { code: "internal", message: `Bearer ${key}` })],
    ["an RPC is refused with a code of its own", (_request, response) => json(response, 500, { code: key, message: key })],
    ["a stream ends with an error", (_request, response) => stream(response, frame({ error: { code: "internal", message: key } }, 2))],
    ["a program cannot be started", (_request, response) => stream(response, frame({ exit: { exitCode: 1, error: key } }), endOfStream)],
    ["a stream is cut", (_request, response) => stream(response, frame({ stdout: base64(key) }))],
  ])("%s", async (_name, answer) => {
    respond = answer;
    const error = await new Sandbox({ id: "sb", endpoint: server.url, token: key }).exec("x").catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(AgentRunError);
    expect(shown(error)).not.toContain(key);
  });

  it("the runtime's own error repeats it", () => {
    const http = new HttpClient(server.url, key);
    const reason = new TypeError("fetch failed", { cause: new Error(`"Bearer ${key}" is an invalid header value`) });
    expect(shown(http.failure("GET /v1/health", reason))).not.toContain(key);
  });

  it("it is part of the path that was asked for", async () => {
    respond = (_request, response) => response.destroy();
    const error = await new Sandbox({ id: key, endpoint: server.url, token: key }).terminate().catch((reason: unknown) => reason);
    expect(shown(error)).not.toContain(key);
  });

  it("a Connect failure repeats it", () => {
    expect(shown(errorForConnect({ code: key, message: key }, key))).not.toContain(key);
  });
});
