import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { newIdempotencyKey, resolveBaseUrl, resolveToken, toBaseUrl, validSandboxId } from "./config.ts";
import { HttpClient } from "./http.ts";

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(path.join(os.tmpdir(), "mitos-sdk-"));
  for (const name of ["MITOS_API_KEY", "MITOS_BASE_URL", "MITOS_GATEWAY_SERVICE_HOST", "MITOS_GATEWAY_SERVICE_PORT"])
    vi.stubEnv(name, undefined);
  vi.stubEnv("MITOS_CONFIG_DIR", dir);
});
afterEach(() => {
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

  it("is never somebody else's host because of a key", () => {
    writeFileSync(path.join(dir, "credentials.json"), '{"token":"mitos_sk_y","default_org":"acme"}');
    expect(resolveBaseUrl()).toBe("http://127.0.0.1:8080");
    vi.stubEnv("MITOS_API_KEY", "mitos_sk_x");
    expect(resolveBaseUrl()).toBe("http://127.0.0.1:8080");
    expect(HttpClient.fromAuth()).toMatchObject({ baseUrl: "http://127.0.0.1:8080", token: "mitos_sk_x" });
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
