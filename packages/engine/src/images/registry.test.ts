import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { Authenticator } from "./auth.ts";
import { DockerConfig } from "./docker-config.ts";
import { endpointOf } from "./endpoint.ts";
import { type Answer, FakeRegistry, HastyClock } from "./fake-registry.ts";
import { HttpClient } from "./http.ts";
import { manifestBytesMax, ociConfig } from "./manifest.ts";
import { digestOf, Registry } from "./registry.ts";

const content = Buffer.from("content of a blob");
const blob = { mediaType: ociConfig, digest: digestOf(content), bytes: content.length };

describe("a registry's client", () => {
  it("asks for the kinds of manifests that it knows, and says what came", async () => {
    await using registry = await FakeRegistry.start((_, response) => response.setHeader("content-type", "text/x").end("{}"));
    expect(await registry.client().manifest("team/tool", "1")).toMatchObject({
      digest: digestOf(Buffer.from("{}")),
      contentType: "text/x",
    });
    for (const kind of [
      "oci.image.index.v1",
      "oci.image.manifest.v1",
      "docker.distribution.manifest.v2",
      "docker.distribution.manifest.list.v2",
    ]) {
      expect(registry.asked[0]?.headers.accept).toContain(kind);
    }
  });

  it("refuses a manifest that is not the one of the digest", async () => {
    await using registry = await FakeRegistry.start((_, response) => response.end("{}"));
    await expect(registry.client().manifest("team/tool", digestOf(Buffer.from("{ }")))).rejects.toMatchObject({ code: "build_failed" });
  });

  it("refuses a giant manifest before it has all of it", async () => {
    const megabyte = Buffer.alloc(1024 * 1024, " ");
    await using registry = await FakeRegistry.start((_, response) => {
      const more = () => {
        while (!response.destroyed && response.write(megabyte));
      };
      response.on("drain", more);
      more();
    });
    await expect(registry.client().manifest("team/tool", "1")).rejects.toMatchObject({
      code: "build_failed",
      message: expect.stringContaining(String(manifestBytesMax)),
    });
  });

  it.each([
    ["shorter", content.subarray(1)],
    ["longer", Buffer.concat([content, content])],
    ["other", Buffer.from(content.toString().toUpperCase())],
  ])("refuses a small blob with %s content", async (_, sent) => {
    await using registry = await FakeRegistry.start((_, response) => response.end(sent));
    await expect(registry.client().smallBlob("team/tool", blob)).rejects.toMatchObject({ code: "build_failed" });
  });

  it("says unavailable where nobody listens, after five attempts", async () => {
    const registry = await FakeRegistry.start(() => {});
    const clock = new HastyClock();
    const client = registry.client(clock);
    await registry[Symbol.asyncDispose]();
    await expect(client.manifest("team/tool", "1")).rejects.toMatchObject({
      code: "unavailable",
      message: expect.stringContaining("ECONNREFUSED"),
    });
    expect(clock.pausesMs).toHaveLength(4);
  });

  it("says not_found for a tag that is not there, with the registry's code", async () => {
    await using registry = await FakeRegistry.start((_, response) =>
      response.writeHead(404).end('{"errors":[{"code":"MANIFEST_UNKNOWN"}]}'),
    );
    await expect(registry.client().manifest("team/tool", "1")).rejects.toMatchObject({
      code: "not_found",
      message: expect.stringMatching(/team\/tool:1.*404 MANIFEST_UNKNOWN/),
    });
  });

  it("is canceled while it waits for an answer and while it pauses", async () => {
    const abort = new AbortController();
    await using registry = await FakeRegistry.start(() => abort.abort());
    await expect(registry.client().manifest("team/tool", "1", abort.signal)).rejects.toMatchObject({ code: "canceled" });
    await expect(registry.client().manifest("team/tool", "1", abort.signal)).rejects.toMatchObject({ code: "canceled" });
  });

  it.each(["169.254.169.254:80", "0.0.0.0:5000", "2852039166:80"])("never connects to %s, not even in plain HTTP", async (host) => {
    const clock = new HastyClock();
    const http = new HttpClient(clock);
    const client = new Registry(
      endpointOf(host, new Set([host])),
      http,
      new Authenticator(http, clock, new DockerConfig("/nonexistent")),
      clock,
    );
    await expect(client.manifest("latest/meta-data", "1")).rejects.toMatchObject({
      code: "build_failed",
      message: expect.stringContaining("no address"),
    });
    expect(clock.pausesMs).toEqual([]);
  });

  describe("that is redirected", () => {
    const askedWithBasic: Answer = (asked, response) => {
      if (!asked.headers.authorization) response.writeHead(401, { "www-authenticate": "Basic realm=x" }).end();
    };

    it("follows to another host without what is for the registry", async () => {
      await using storage = await FakeRegistry.start((_, response) => response.end(content));
      await using registry = await FakeRegistry.start((_, response) =>
        response.writeHead(307, { location: `${storage.origin}/blob?signature=x` }).end(),
      );
      expect(await registry.client().smallBlob("team/tool", blob)).toEqual(content);
      expect(storage.asked).toMatchObject([{ url: "/blob?signature=x" }]);
    });

    it("does not carry the credentials that it has shown along, and shows them again at the registry", async () => {
      const dir = await mkdtemp(path.join(tmpdir(), "mitos-redirect-"));
      await using storage = await FakeRegistry.start((_, response) => response.end(content));
      await using registry = await FakeRegistry.start((asked, response) => {
        if (!asked.headers.authorization) return response.writeHead(401, { "www-authenticate": "Basic realm=x" }).end();
        const own = asked.url.startsWith("/v2/") ? `${registry.origin}/elsewhere` : `${storage.origin}/blob`;
        response.writeHead(307, { location: own }).end();
      });
      const config = path.join(dir, "config.json");
      await writeFile(config, JSON.stringify({ auths: { [registry.host]: { username: "a", password: "b" } } }));
      try {
        expect(await registry.client(new HastyClock(), config).smallBlob("team/tool", blob)).toEqual(content);
      } finally {
        await rm(dir, { recursive: true });
      }
      expect(registry.asked.map(({ url, headers }) => [url.split("/")[1], headers.authorization !== undefined])).toEqual([
        ["v2", false],
        ["v2", true],
        ["elsewhere", true],
      ]);
      expect(storage.asked.map(({ headers }) => headers.authorization)).toEqual([undefined]);
    });

    it("does not answer another host's question for credentials", async () => {
      await using storage = await FakeRegistry.start(askedWithBasic);
      await using registry = await FakeRegistry.start((_, response) =>
        response.writeHead(307, { location: `${storage.origin}/blob` }).end(),
      );
      await expect(registry.client().smallBlob("team/tool", blob)).rejects.toMatchObject({ code: "unauthorized" });
      expect(storage.asked).toHaveLength(1);
    });

    it("ends after five of them", async () => {
      await using registry = await FakeRegistry.start((asked, response) => response.writeHead(302, { location: `${asked.url}x` }).end());
      const clock = new HastyClock();
      await expect(registry.client(clock).smallBlob("team/tool", blob)).rejects.toMatchObject({ code: "build_failed" });
      expect(registry.asked).toHaveLength(6);
    });

    it.each([
      "file:///etc/passwd",
      "ftp://registry.example/",
      "http://user:password@127.0.0.1/",
      "",
      "http://169.254.169.254/latest/meta-data",
    ])("does not go to %j", async (location) => {
      await using registry = await FakeRegistry.start((_, response) => response.writeHead(307, { location }).end());
      const failure = await registry
        .client()
        .smallBlob("team/tool", blob)
        .catch((error: unknown) => error);
      expect(failure).toMatchObject({ code: expect.stringMatching(/^(build_failed|unavailable)$/) });
      expect(String(failure)).not.toContain("meta-data");
    });
  });

  describe("that uploads", () => {
    const piece = 64 * 1024 * 1024;
    const large = { ...blob, bytes: piece + 1000 };

    /** Zeros, and what was asked for. */
    function source() {
      const parts: [number, number][] = [];
      async function* open(start: number, end: number) {
        parts.push([start, end]);
        const zeros = Buffer.alloc(1024 * 1024);
        for (let at = start; at < end; at += zeros.length) yield zeros.subarray(0, end - at);
      }
      return { parts, open };
    }

    it("keeps the query that the registry has put into a place, be it absolute or relative", async () => {
      await using registry = await FakeRegistry.start((asked, response) => {
        if (asked.method === "POST")
          response.writeHead(202, { location: registry.asked.length === 1 ? "/up?state=a%2Fb~*" : `${registry.origin}/up?state=c` }).end();
        else response.writeHead(201).end();
      });
      const client = registry.client();
      for (const _ of [1, 2])
        await client.uploadBlob("team/tool", blob, async function* () {
          yield content;
        });
      const digest = encodeURIComponent(blob.digest);
      expect(registry.asked.filter(({ method }) => method === "PUT").map(({ url, body }) => [url, body])).toEqual([
        [`/up?state=a%2Fb~*&digest=${digest}`, content.toString()],
        [`/up?state=c&digest=${digest}`, content.toString()],
      ]);
    });

    it("begins an upload anew that the registry has failed", async () => {
      await using registry = await FakeRegistry.start((asked, response) => {
        if (asked.method === "POST") response.writeHead(202, { location: "/up" }).end();
        else response.writeHead(registry.asked.length < 4 ? 500 : 201).end();
      });
      await registry.client().uploadBlob("team/tool", blob, async function* () {
        yield content;
      });
      expect(registry.asked.map(({ method, bodyBytes }) => [method, bodyBytes])).toEqual([
        ["POST", 0],
        ["PUT", content.length],
        ["POST", 0],
        ["PUT", content.length],
      ]);
    });

    it("goes on with a piece where the registry says that it has come to", async () => {
      await using registry = await FakeRegistry.start((asked, response) => {
        const patches = registry.asked.filter(({ method }) => method === "PATCH").length;
        if (asked.method === "POST") response.writeHead(202, { location: "/up?0" }).end();
        else if (asked.method === "GET") response.writeHead(204, { location: "/up?got", range: `0-${piece / 2 - 1}` }).end();
        else if (asked.method === "PUT") response.writeHead(201).end();
        else if (patches === 1) response.destroy();
        else response.writeHead(202, { location: `/up?${patches}` }).end();
      });
      const { parts, open } = source();
      await registry.client().uploadBlob("team/tool", large, open);
      expect(parts).toEqual([
        [0, piece],
        [piece / 2, large.bytes],
      ]);
      expect(registry.asked.map(({ method, url }) => `${method} ${url.slice(0, 8)}`)).toEqual([
        "POST /v2/team",
        "PATCH /up?0",
        "GET /up?0",
        "PATCH /up?got",
        "PUT /up?2&di",
      ]);
      expect(registry.asked[3]?.headers["content-range"]).toBe(`${piece / 2}-${large.bytes - 1}`);
    });

    it("does not take a registry's word that has stored another manifest", async () => {
      await using registry = await FakeRegistry.start((_, response) =>
        response.writeHead(201, { "docker-content-digest": `sha256:${"0".repeat(64)}` }).end(),
      );
      await expect(registry.client().putManifest("team/tool", "1", "x/y", content)).rejects.toMatchObject({ code: "build_failed" });
      registry.answer = (asked, response) => {
        if (asked.method === "HEAD") response.writeHead(200, { "docker-content-digest": digestOf(content) }).end();
        else response.writeHead(201).end();
      };
      expect(await registry.client().putManifest("team/tool", "1", "x/y", content)).toBe(digestOf(content));
    });
  });
});
