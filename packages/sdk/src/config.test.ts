import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { inspect } from "node:util";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { newIdempotencyKey, resolveBaseUrl, resolveToken, toBaseUrl, toToken, validSandboxId } from "./config.ts";
import { create } from "./create.ts";
import { HttpClient } from "./http.ts";
import { Sandbox } from "./sandbox.ts";
import { SandboxServer } from "./server.ts";

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(path.join(os.tmpdir(), "mitos-sdk-"));
  for (const name of ["MITOS_API_KEY", "MITOS_BASE_URL", "MITOS_GATEWAY_SERVICE_HOST", "MITOS_GATEWAY_SERVICE_PORT"])
    vi.stubEnv(name, undefined);
  vi.stubEnv("MITOS_CONFIG_DIR", dir);
});
afterEach(() => {
  vi.unstubAllGlobals();
  vi.unstubAllEnvs();
  rmSync(dir, { recursive: true });
});

describe("the base URL", () => {
  it("is the argument, the environment, the gateway, the local server, in this order", () => {
    expect(resolveBaseUrl()).toBe("http://127.0.0.1:8080");
    vi.stubEnv("MITOS_GATEWAY_SERVICE_HOST", "10.0.0.1");
    expect(resolveBaseUrl()).toBe("http://10.0.0.1:80");
    vi.stubEnv("MITOS_GATEWAY_SERVICE_PORT", "8443");
    expect(resolveBaseUrl()).toBe("http://10.0.0.1:8443");
    vi.stubEnv("MITOS_BASE_URL", "https://env.example/");
    expect(resolveBaseUrl()).toBe("https://env.example");
    expect(resolveBaseUrl("https://argument.example//")).toBe("https://argument.example");
    expect(resolveBaseUrl("")).toBe("https://env.example");
  });

  it.each([
    ["mitos_sk_x", "http://127.0.0.1:8080"],
    ["mitos_live_x", "https://mitos.run"],
    ["", "http://127.0.0.1:8080"],
  ])("is, with nothing but the key %j, %s: a self-hosted key goes to no host that nobody named", (key, url) => {
    expect(HttpClient.fromAuth({ apiKey: key }).baseUrl).toBe(url);
    expect(new SandboxServer(undefined, key).url).toBe(url);
    writeFileSync(path.join(dir, "credentials.json"), JSON.stringify({ token: key }));
    expect(HttpClient.fromAuth().baseUrl).toBe(url);
    vi.stubEnv("MITOS_API_KEY", key);
    expect(SandboxServer.fromAuth()).toMatchObject({ url });
  });

  it("has to be given in a browser, which has no environment", async () => {
    vi.stubGlobal("process", undefined);
    const missing = { name: "AgentRunError", code: "missing_base_url", remediation: expect.stringContaining("location.origin") };
    expect(thrownBy(() => HttpClient.fromAuth({ apiKey: "mitos_live_x" }))).toMatchObject(missing);
    expect(thrownBy(() => new SandboxServer())).toMatchObject(missing);
    for (const attempt of [create(), create("python"), Sandbox.create(), Sandbox.connect("sb"), Sandbox.list()]) {
      await expect(attempt).rejects.toMatchObject(missing);
    }
    expect(HttpClient.fromAuth({ baseUrl: "https://page.example/mitos/" }).baseUrl).toBe("https://page.example/mitos");
  });

  it.each(["ftp://host", "http://", "/relative", "http://host:99999", "http://us er", "http://h/?q=1", "http://h/#f"])(
    "is refused when it is %s, before anything is sent",
    (baseUrl) => {
      expect(() => new SandboxServer(baseUrl)).toThrow(
        expect.objectContaining({ code: "invalid_base_url", remediation: expect.any(String) }),
      );
    },
  );

  it("is refused when it holds a password, which the error does not repeat", () => {
    const error = thrownBy(() => new HttpClient("https://user:hunter2@host"));
    expect(error).toMatchObject({ code: "invalid_base_url" });
    expect(inspect(error)).not.toContain("hunter2");
  });

  it("takes host:port, and leaves a scheme", () => {
    expect(toBaseUrl("host:8080")).toBe("http://host:8080");
    expect(toBaseUrl("HTTPS://host")).toBe("HTTPS://host");
  });
});

describe("the key", () => {
  const save = (text: string) => writeFileSync(path.join(dir, "credentials.json"), text);

  it("is the argument, the environment, the file, none, in this order", () => {
    expect(resolveToken()).toBeUndefined();
    save('{"token":"from-file","email":"a@b.c"}');
    expect(resolveToken()).toBe("from-file");
    vi.stubEnv("MITOS_API_KEY", "from-env");
    expect(resolveToken()).toBe("from-env");
    expect(resolveToken("from-argument")).toBe("from-argument");
    expect(resolveToken("")).toBe("from-env");
  });

  it("may have white space around it", () => {
    expect(toToken(" key\n")).toBe("key");
    expect(toToken(" ")).toBeUndefined();
  });

  it("is refused when no header can carry it, without being shown", () => {
    for (const key of ["super secret", "super\nsecret", "supersecret…"]) {
      const error = thrownBy(() => new SandboxServer("http://h", key));
      expect(error).toMatchObject({ code: "invalid_api_key" });
      expect(inspect(error)).not.toMatch(/super|secret/);
    }
  });

  it.each(["not json", "[]", "{}", '{"token":""}', '{"token":7}'])("is none with a file that holds %s", (text) => {
    save(text);
    expect(resolveToken()).toBeUndefined();
  });

  it("is none with a file that cannot be read", () => {
    mkdirSync(path.join(dir, "credentials.json"));
    expect(resolveToken()).toBeUndefined();
  });
});

it("ids follow the published rule", () => {
  for (const id of ["sbx-123", "A_b-9", "a".repeat(64)]) expect(validSandboxId(id)).toBe(true);
  for (const id of ["", "..", "a/b", "-leading", "x".repeat(65)]) expect(validSandboxId(id)).toBe(false);
});

it("idempotency keys are 32 hexadecimal digits, never the same", () => {
  const keys = new Set(Array.from({ length: 100 }, newIdempotencyKey));
  expect(keys.size).toBe(100);
  for (const key of keys) expect(key).toMatch(/^[0-9a-f]{32}$/);
});

function thrownBy(work: () => unknown): unknown {
  try {
    work();
  } catch (error) {
    return error;
  }
  throw new Error("nothing was thrown");
}
