import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { inspect } from "node:util";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { chooseChallenge, parseChallenges } from "./auth.ts";
import { endpointOf } from "./endpoint.ts";
import { type Answer, FakeRegistry, HastyClock } from "./fake-registry.ts";
import { ociManifest } from "./manifest.ts";

const secret = "s3cret";
const basic = `Basic ${Buffer.from(`alice:${secret}`).toString("base64")}`;

describe("a challenge", () => {
  it.each([
    [
      'Bearer realm="https://auth.example/token",service="registry"',
      [["bearer", { realm: "https://auth.example/token", service: "registry" }]],
    ],
    ['Basic realm="a \\"quoted\\", name"', [["basic", { realm: 'a "quoted", name' }]]],
    [
      'Basic realm=plain, Bearer realm="https://a.example/" , service=x',
      [
        ["basic", { realm: "plain" }],
        ["bearer", { realm: "https://a.example/", service: "x" }],
      ],
    ],
    [
      "Negotiate, Basic",
      [
        ["negotiate", {}],
        ["basic", {}],
      ],
    ],
    ["", []],
    ['="x"', []],
  ])("%s is read", (header, wanted) => {
    expect(parseChallenges(header).map(({ scheme, parameters }) => [scheme, Object.fromEntries(parameters)])).toEqual(wanted);
  });

  it("of tokens comes before one of passwords", () => {
    const chosen = chooseChallenge('Basic realm="x", Bearer realm="https://a.example/t"', endpointOf("registry.example", new Set()));
    expect(chosen).toMatchObject({ scheme: "bearer" });
    expect(chooseChallenge("Digest realm=x", endpointOf("registry.example", new Set()))).toBeUndefined();
  });

  it.each([
    ["registry.example", "http://auth.example/token"],
    ["registry.example", "http://registry.example/token"],
    ["registry.example", "http://127.0.0.1:80/token"],
    ["registry.example", "file:///etc/passwd"],
    ["registry.example", "https://user:password@auth.example/"],
    ["registry.example", "nothing"],
    ["127.0.0.1:5000", "http://auth.example/token"],
    ["127.0.0.1:5000", "http://169.254.169.254/latest"],
  ])("of %s that sends credentials to %s is refused", (host, realm) => {
    const choose = () => chooseChallenge(`Bearer realm="${realm}"`, endpointOf(host, new Set()));
    expect(choose).toThrow(expect.objectContaining({ code: "unauthorized" }));
  });

  it.each([
    ["registry.example", "https://auth.example/token"],
    ["127.0.0.1:5000", "http://127.0.0.1:5001/token"],
    ["localhost:5000", "http://127.0.0.1:5001/token"],
    ["plain.example:5000", "http://plain.example:5001/token"],
  ])("of %s may name %s", (host, realm) => {
    const endpoint = endpointOf(host, new Set(["plain.example:5000"]));
    expect(chooseChallenge(`Bearer realm="${realm}"`, endpoint)).toMatchObject({ realm: new URL(realm) });
  });
});

describe("a registry that wants to know who asks", () => {
  let dir: string;
  let clock: HastyClock;
  const manifest: Answer = (_, response) => response.setHeader("content-type", ociManifest).end("{}");
  beforeEach(async () => {
    dir = await mkdtemp(path.join(tmpdir(), "mitos-auth-"));
    clock = new HastyClock();
  });
  afterEach(() => rm(dir, { recursive: true }));

  async function configFor(registry: FakeRegistry, entry: object): Promise<string> {
    const file = path.join(dir, "config.json");
    await writeFile(file, JSON.stringify({ auths: { [registry.host]: entry } }));
    return file;
  }

  /** Wants a token of its own service, and passwords there; each token is good for one scope. */
  function tokenRegistry(registry: () => FakeRegistry, expiresIn?: number): Answer {
    let tokens = 0;
    return (asked, response) => {
      const url = new URL(asked.url, registry().origin);
      if (url.pathname === "/token") {
        const scope = asked.method === "POST" ? new URLSearchParams(asked.body).get("scope") : url.searchParams.get("scope");
        tokens += 1;
        response.end(JSON.stringify({ token: Buffer.from(`${tokens} ${scope}`).toString("base64"), expires_in: expiresIn }));
        return;
      }
      const scope = `repository:${/^\/v2\/(.*)\/(?:manifests|blobs)\//.exec(url.pathname)?.[1]}:pull`;
      const [, token = ""] = /^Bearer (.*)$/.exec(asked.headers.authorization ?? "") ?? [];
      if (Buffer.from(token, "base64").toString().endsWith(` ${scope}`)) return manifest(asked, response);
      response.writeHead(401, { "www-authenticate": `Bearer realm="${registry().origin}/token",service="tests"` }).end();
    };
  }

  it("gets a token that anybody can have, for the repository alone, and the same one until it expires", async () => {
    await using registry = await FakeRegistry.start(tokenRegistry(() => registry, 300));
    const client = registry.client(clock);
    await client.manifest("team/tool", "1");
    await client.manifest("team/tool", "2");
    const tokens = () => registry.asked.filter(({ url }) => url.startsWith("/token"));
    expect(tokens().map(({ url }) => url)).toEqual(["/token?service=tests&scope=repository%3Ateam%2Ftool%3Apull"]);
    expect(tokens()[0]?.headers.authorization).toBeUndefined();
    expect(registry.asked).toHaveLength(4);
    await client.manifest("team/other", "1");
    expect(tokens()).toHaveLength(2);
    clock.advance(300_000);
    await client.manifest("team/tool", "3");
    expect(tokens()).toHaveLength(3);
  });

  it("gets a new token for one that it does not take any more", async () => {
    await using registry = await FakeRegistry.start(manifest);
    const withTokens = tokenRegistry(() => registry, 3600);
    registry.answer = withTokens;
    const client = registry.client(clock);
    await client.manifest("team/tool", "1");
    const [old] = registry.asked.map(({ headers }) => headers.authorization).filter((header) => header?.startsWith("Bearer"));
    registry.answer = (asked, response) => withTokens(asked.headers.authorization === old ? { ...asked, headers: {} } : asked, response);
    await client.manifest("team/tool", "2");
    expect(registry.asked.filter(({ url }) => url.startsWith("/token"))).toHaveLength(2);
  });

  it("gets user and password at its token service", async () => {
    await using registry = await FakeRegistry.start(tokenRegistry(() => registry));
    await registry.client(clock, await configFor(registry, { username: "alice", password: secret })).manifest("team/tool", "1");
    expect(registry.asked.find(({ url }) => url.startsWith("/token"))?.headers.authorization).toBe(basic);
    expect(registry.asked.filter(({ url }) => url.startsWith("/v2/")).map(({ headers }) => headers.authorization?.split(" ")[0])).toEqual([
      undefined,
      "Bearer",
    ]);
  });

  it("gets an identity token in the body of a POST", async () => {
    await using registry = await FakeRegistry.start(tokenRegistry(() => registry));
    await registry.client(clock, await configFor(registry, { identitytoken: secret })).manifest("team/tool", "1");
    const asked = registry.asked.find(({ url }) => url.startsWith("/token"));
    expect(asked).toMatchObject({ method: "POST", url: "/token" });
    expect(Object.fromEntries(new URLSearchParams(asked?.body))).toMatchObject({
      grant_type: "refresh_token",
      refresh_token: secret,
      service: "tests",
    });
    expect(asked?.headers.authorization).toBeUndefined();
  });

  it("gets user and password where it asks for these, and is not asked again with wrong ones", async () => {
    await using registry = await FakeRegistry.start((asked, response) =>
      asked.headers.authorization === basic
        ? manifest(asked, response)
        : response.writeHead(401, { "www-authenticate": "Basic realm=x" }).end(),
    );
    await registry.client(clock, await configFor(registry, { username: "alice", password: secret })).manifest("team/tool", "1");
    registry.asked.length = 0;
    await expect(
      registry.client(clock, await configFor(registry, { username: "alice", password: "wrong" })).manifest("team/tool", "1"),
    ).rejects.toMatchObject({ code: "unauthorized" });
    expect(registry.asked).toHaveLength(2);
    await expect(registry.client(clock).manifest("team/tool", "1")).rejects.toMatchObject({ code: "unauthorized" });
  });

  it.each([
    ["no JSON", "secret-in-answer"],
    ["no token", '{"secret-in-answer":1}'],
    ["a token of several lines", JSON.stringify({ token: "secret-in-answer\r\nHost: evil" })],
  ])("gives no access when its token service answers with %s, which is not told", async (_, answer) => {
    await using registry = await FakeRegistry.start((asked, response) => {
      if (asked.url.startsWith("/token")) response.end(answer);
      else response.writeHead(401, { "www-authenticate": `Bearer realm="${registry.origin}/token"` }).end();
    });
    const failure = await registry
      .client(clock)
      .manifest("team/tool", "1")
      .catch((error: unknown) => error);
    expect(failure).toMatchObject({ code: "unauthorized" });
    expect(inspect(failure, { depth: 10 })).not.toContain("secret-in-answer");
  });

  it("that echoes what it was sent has none of it told", async () => {
    await using registry = await FakeRegistry.start((asked, response) => {
      const sent = JSON.stringify(asked.headers);
      response.writeHead(asked.headers.authorization ? 403 : 401, { "www-authenticate": "Basic realm=x" });
      response.end(JSON.stringify({ errors: [{ code: "DENIED", message: sent, detail: sent }, { code: sent }] }));
    });
    const client = registry.client(clock, await configFor(registry, { username: "alice", password: secret }));
    const failure = await client.manifest("team/tool", "1").catch((error: unknown) => error);
    expect(failure).toMatchObject({ code: "unauthorized", message: expect.stringContaining("403 DENIED") });
    for (const shown of [inspect(failure, { depth: 10, showHidden: true }), inspect(client, { depth: 10, showHidden: true })]) {
      expect(shown).not.toContain(secret);
      expect(shown).not.toContain(basic);
    }
  });
});
