import { readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { startServer } from "../index.ts";
import { FakeEngine } from "../testing/fake-engine.ts";
import { get, post, useServer } from "../testing/harness.ts";
import { PreviewSigner } from "./token.ts";

const secret = Buffer.from("0123456789abcdef0123456789abcdef");

describe("with a domain", () => {
  const at = useServer({ previewSecret: secret, previewDomain: "Example.com", previewTtlSeconds: 3600 });

  it("the URL is https://<sandbox id>.<domain>/ with a token for that port, as published", async () => {
    const { url, browser_url } = (await post(at, "/v1/preview", { sandbox: "sb-1", port: 8080 })).json;
    const { protocol, host, pathname, searchParams } = new URL(url);
    expect([protocol, host, pathname]).toEqual(["https:", "sb-1.example.com", "/"]);
    expect(new PreviewSigner(secret).verify(searchParams.get("token")!, 0)).toMatchObject({ grant: { sandbox: "sb-1", port: 8080 } });
    expect(new URL(browser_url).host).toBe("p8080-sb-1.example.com");
  });

  it("a browser is led to the port's own host, and gets a cookie there that no neighbour can set", async () => {
    const { url } = (await post(at, "/v1/preview", { sandbox: "sb-1", port: 8080 })).json;
    const { search } = new URL(url);
    const navigation = { "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-Site": "none" };
    const first = await get(at, `/a${search}`, { Host: "sb-1.example.com", ...navigation });
    expect([first.status, first.headers.location]).toEqual([302, `https://p8080-sb-1.example.com/a${search}`]);
    const second = await get(at, `/a${search}`, { Host: "p8080-sb-1.example.com", ...navigation });
    expect([second.status, second.headers.location]).toEqual([302, "https://p8080-sb-1.example.com/a"]);
    expect(second.headers["set-cookie"]).toEqual([expect.stringMatching(/^__Host-mitos_preview=\S+; Path=\/; HttpOnly; .*; Secure$/)]);
  });

  it("the domain itself, and what is deeper below it, is no host of this server", async () => {
    for (const host of ["example.com", "a.b.example.com"]) expect((await get(at, "/", { Host: host })).status).toBe(403);
    expect((await get(at, "/v1/health", { Host: "sb-1.example.com" })).status).toBe(401);
  });
});

describe("with previews switched off", () => {
  const at = useServer({ previews: false });

  it("asking for one is 501, and their hosts and paths reach nothing", async () => {
    expect((await post(at, "/v1/preview", { sandbox: "none", port: 0 })).status).toBe(501);
    expect((await get(at, "/v1/preview/p80-sb-1/")).status).toBe(501);
    expect((await get(at, "/v1/health", { Host: `p80-sb-1.localhost:${new URL(at.url).port}` })).status).toBe(403);
  });
});

describe("the audit log", () => {
  const file = path.join(tmpdir(), `mitos-preview-audit-${process.pid}.log`);
  const at = useServer({ auditLog: file });
  afterAll(() => rm(file));

  it("has a line for each preview and forward, and no token", async () => {
    at.engine.driverName = "gvisor";
    const { url } = (await post(at, "/v1/preview", { sandbox: "sb-1", port: 8080 })).json;
    await post(at, "/v1/sandboxes/sb-1/forward", { guest_port: 5432 });
    await get(at, url.slice(at.url.length));
    await at.server.close();
    const lines = (await readFile(file, "utf8")).trim().split("\n");
    // The harness has made a template and a sandbox before.
    expect(lines.slice(2).map((line) => JSON.parse(line))).toEqual([
      { sandbox_id: "sb-1", op: "preview", detail: "port=8080", unix: expect.any(Number), ok: true },
      { sandbox_id: "sb-1", op: "forward", detail: "port=5432", unix: expect.any(Number), ok: true },
    ]);
  });
});

describe("without a secret", () => {
  const at = useServer();

  it("the one that the engine keeps signs", async () => {
    const { url } = (await post(at, "/v1/preview", { sandbox: "sb-1", port: 1 })).json;
    const kept = new PreviewSigner(at.engine.storedSecret("preview", 32));
    expect(kept.verify(new URL(url).searchParams.get("token")!, 0)).toMatchObject({ grant: { port: 1 } });
  });
});

it.each([
  [{ previewSecret: Buffer.from("fifteen bytes ..").subarray(1) }],
  [{ previewDomain: "not a domain" }],
  [{ previewDomain: "localhost" }],
  [{ previewDomain: "" }],
])("a server does not start with %j", async (options) => {
  const log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };
  const starting = startServer({ engine: new FakeEngine().asEngine(), host: "127.0.0.1", port: 0, log, version: "test", ...options });
  await expect(starting).rejects.toMatchObject({ code: "invalid_input" });
});
