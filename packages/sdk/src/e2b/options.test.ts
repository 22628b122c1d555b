import { describe, expect, it } from "vitest";
import { InvalidArgumentError } from "./errors.ts";
import {
  ALL_TRAFFIC,
  connectionOf,
  networkOf,
  requireHonoured,
  type SandboxNetworkOpts,
  type SandboxOpts,
  templateOf,
  toSeconds,
} from "./options.ts";

describe("the server", () => {
  it.each([
    [{}, undefined],
    [{ domain: "mitos.example" }, "https://mitos.example"],
    [{ domain: "127.0.0.1:8080" }, "http://127.0.0.1:8080"],
    [{ domain: "localhost:8080" }, "http://localhost:8080"],
    [{ domain: "http://mitos.example:81/" }, "http://mitos.example:81"],
    [{ apiUrl: "https://api.mitos.example/" }, "https://api.mitos.example"],
    [{ apiUrl: "127.0.0.1:1", domain: "mitos.example" }, "http://127.0.0.1:1"],
  ])("of %j is %s", (opts, baseUrl) => {
    expect(connectionOf(opts).baseUrl).toBe(baseUrl);
  });

  it.each([{ domain: "e2b.app" }, { domain: "e2b.dev" }, { apiUrl: "https://api.e2b.app" }])(
    "is never E2B's own: %j is refused",
    (opts) => {
      expect(() => connectionOf({ ...opts, apiKey: "secret" })).toThrow(InvalidArgumentError);
    },
  );

  it("is given the key, and only that", () => {
    expect(connectionOf({ apiKey: "k", debug: true, sandboxUrl: "http://x", retries: 3, validateApiKey: false })).toEqual({
      apiKey: "k",
      baseUrl: undefined,
    });
  });

  it.each([{ proxy: "http://p:1" }, { headers: { a: "b" } }, { apiHeaders: { a: "b" } }])("is not reached through %j", (opts) => {
    expect(() => connectionOf(opts)).toThrow(/cannot be honoured here: /);
  });

  it("needs no headers, so that none are fine", () => {
    expect(() => connectionOf({ headers: {}, apiHeaders: {} })).not.toThrow();
  });
});

describe("a template", () => {
  it.each([
    [undefined, "python", true],
    ["", "python", true],
    ["base", "base", true],
    ["node", "node", true],
    ["code-interpreter-v1", "python", true],
    ["python:3.12", "python:3.12", true],
    ["my-own", "my-own", false],
    ["constructor", "constructor", false],
  ])("%s is %s, made on demand: %s", (name, template, onDemand) => {
    expect(templateOf(name)).toEqual({ template, onDemand });
  });
});

describe("options that change what a program may rely on", () => {
  it.each<SandboxOpts>([
    { mcp: {} },
    { iam: { tokens: { aws: {} } } },
    { volumeMounts: { "/data": "volume" } },
    { lifecycle: { onTimeout: "pause" } },
    { lifecycle: { onTimeout: { action: "pause", keepMemory: false } } },
    { lifecycle: { onTimeout: "kill", autoResume: true } },
    { lifecycle: { onTimeout: "sleep" as "kill" } },
    { network: { rules: { "api.example": [] } } },
    { network: { rules: new Map([["api.example", []]]) } },
    { network: { egressProxy: { address: "p:1" } } },
    { network: { maskRequestHost: "x" } },
    { network: { httpsPorts: [443] } },
  ])("are refused: %j", (opts) => {
    expect(() => requireHonoured(opts)).toThrow(InvalidArgumentError);
  });

  it.each<SandboxOpts>([
    {},
    { iam: {}, volumeMounts: {}, secure: true },
    { lifecycle: { onTimeout: "kill", autoResume: false } },
    { lifecycle: { onTimeout: { action: "kill" } } },
    { network: { rules: {}, httpsPorts: [], allowPublicTraffic: false } },
  ])("are taken where they say what is so anyway: %j", (opts) => {
    expect(() => requireHonoured(opts)).not.toThrow();
  });
});

describe("the network", () => {
  const allowOut = ["example.com", "*.example.org", "1.1.1.1", "8.8.8.0/24", "2606:4700::/32", "2606:4700::1"];

  it.each<[SandboxOpts, object]>([
    [{}, { egress: "allow" }],
    [{ allowInternetAccess: true }, { egress: "allow" }],
    [{ allowInternetAccess: false }, { egress: "deny" }],
    [{ network: { denyOut: [ALL_TRAFFIC] } }, { egress: "deny" }],
    [{ network: { denyOut: ({ allTraffic }) => [allTraffic] } }, { egress: "deny" }],
    [{ network: { allowOut: [ALL_TRAFFIC] } }, { egress: "allow" }],
    [{ network: { allowOut: [] } }, { egress: "deny", allowDomains: [], allowCidrs: [] }],
    [{ network: { allowOut: ({ rules }) => [...rules.keys()] } }, { egress: "deny", allowDomains: [], allowCidrs: [] }],
  ])("of %j is %j", (opts, network) => {
    expect(networkOf(opts)).toEqual(network);
  });

  it.each<SandboxNetworkOpts>([{ allowOut }, { allowOut, denyOut: [ALL_TRAFFIC] }])(
    "allows names and addresses, and nothing else",
    (network) => {
      expect(networkOf({ network })).toEqual({
        egress: "deny",
        allowDomains: ["example.com", "*.example.org"],
        allowCidrs: ["1.1.1.1/32", "8.8.8.0/24", "2606:4700::/32", "2606:4700::1/128"],
      });
    },
  );

  it("is not open but for single addresses: that is refused", () => {
    expect(() => networkOf({ network: { denyOut: ["10.0.0.0/8"] } })).toThrow(InvalidArgumentError);
  });
});

it("milliseconds become whole seconds, never fewer", () => {
  expect([0, 1, 1000, 1001, 300_000].map((timeoutMs) => toSeconds(timeoutMs))).toEqual([0, 1, 1, 2, 300]);
  for (const timeoutMs of [-1, Number.NaN, Number.POSITIVE_INFINITY]) expect(() => toSeconds(timeoutMs)).toThrow(InvalidArgumentError);
});
