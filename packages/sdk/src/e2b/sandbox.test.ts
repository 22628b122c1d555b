import { afterEach, expect, it, vi } from "vitest";
import { json, startFakeServer } from "../../test/fake-server.ts";
import { AuthenticationError, E2B, RateLimitError, Sandbox } from "./index.ts";

afterEach(() => {
  vi.unstubAllEnvs();
});

const refuse = (status: number, code: string, context = {}) =>
  startFakeServer((_request, response) => json(response, status, { error: { code, message: "no", remediation: "Do this.", context } }));

it("the key goes to the server as a bearer, and is in no error", async () => {
  await using server = await refuse(401, "unauthorized");
  const error = await Sandbox.create({ apiUrl: server.url, apiKey: "secret-key" }).catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(AuthenticationError);
  expect(JSON.stringify(error, Object.getOwnPropertyNames(error))).not.toContain("secret-key");
  expect(server.requests[0]?.headers.authorization).toBe("Bearer secret-key");
});

it("E2B's own variables are not read", async () => {
  await using server = await refuse(401, "unauthorized");
  vi.stubEnv("E2B_API_KEY", "e2b_key");
  vi.stubEnv("E2B_API_URL", "http://127.0.0.1:9");
  vi.stubEnv("MITOS_BASE_URL", server.url);
  vi.stubEnv("MITOS_API_KEY", "");
  vi.stubEnv("MITOS_CONFIG_DIR", "/nowhere");
  await expect(Sandbox.getInfo("sb-1")).rejects.toBeInstanceOf(AuthenticationError);
  expect(server.requests[0]?.headers.authorization).toBeUndefined();
});

it("a client's options are the defaults of its class, of classes made from it, and of its lists; a call's own count first", async () => {
  await using server = await refuse(401, "unauthorized");
  const { Sandbox: Bound } = new E2B({ apiUrl: server.url, apiKey: "bound" });
  class Mine extends Bound {}
  await expect(Bound.kill("sb-1")).rejects.toBeInstanceOf(AuthenticationError);
  await expect(Mine.connect("sb-1")).rejects.toBeInstanceOf(AuthenticationError);
  await expect(Bound.list().nextItems({ requestTimeoutMs: 10_000 })).rejects.toBeInstanceOf(AuthenticationError);
  await expect(Bound.kill("sb-1", { apiKey: "own" })).rejects.toBeInstanceOf(AuthenticationError);
  expect(new Set(server.requests.slice(0, -1).map(({ headers }) => headers.authorization))).toEqual(new Set(["Bearer bound"]));
  expect(server.requests.at(-1)?.headers.authorization).toBe("Bearer own");
});

it("a rate limit says when to try again", async () => {
  await using server = await refuse(429, "rate_limited", { retry_after_ms: 1500 });
  const error = await Sandbox.pause("sb-1", { apiUrl: server.url }).catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(RateLimitError);
  expect(error).toMatchObject({ statusCode: 429, cause: { context: { retry_after_ms: 1500 } } });
});

it("nothing is sent for options that are refused, and refusals come as rejections", async () => {
  await using server = await refuse(500, "internal");
  const connection = { apiUrl: server.url };
  const sandbox = new Sandbox({ sandboxId: "sb-1", ...connection });
  const refused = { name: "InvalidArgumentError" };
  await expect(Sandbox.create({ ...connection, mcp: {} })).rejects.toMatchObject(refused);
  await expect(Sandbox.create({ ...connection, timeoutMs: -1 })).rejects.toMatchObject(refused);
  await expect(Sandbox.kill("../x", connection)).rejects.toMatchObject(refused);
  await expect(sandbox.pause({ keepMemory: false })).rejects.toMatchObject(refused);
  await expect(sandbox.connect({ onResume: "reboot" })).rejects.toMatchObject(refused);
  await expect(sandbox.commands.run("x", { timeoutMs: Number.NaN })).rejects.toMatchObject(refused);
  await expect(sandbox.files.list("x", { depth: 0 })).rejects.toMatchObject(refused);
  await expect(sandbox.files.read("x", { user: "nobody" })).rejects.toMatchObject(refused);
  await expect(sandbox.files.write("x", 7 as never)).rejects.toMatchObject(refused);
  await expect(sandbox.files.watchDir("/etc", () => {})).rejects.toMatchObject(refused);
  await expect(sandbox.runCode("x", { envs: { "A B": "x" } })).rejects.toMatchObject(refused);
  expect(() => Sandbox.list({ ...connection, limit: 0 })).toThrow(expect.objectContaining(refused));
  expect(server.requests).toEqual([]);
});
