import { describe, expect, it } from "vitest";
import { type Answer, FakeRegistry, HastyClock } from "./fake-registry.ts";
import { manifestBytesMax, ociConfig } from "./manifest.ts";
import { digestOf } from "./registry.ts";

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
});
