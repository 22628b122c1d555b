import { createServer } from "node:http";
import { describe, expect, it } from "vitest";
import { debian } from "../support/base-image.ts";
import { imageOf, layerOf, type OciImage, sha256 } from "../support/oci.ts";
import { type Registry, registryUser, startRegistry } from "../support/registry.ts";

const basic = `Basic ${Buffer.from(`${registryUser.username}:${registryUser.password}`).toString("base64")}`;
const small = () => imageOf([layerOf([{ name: "note", content: "hello" }])]);

describe("the registry of these tests", () => {
  it("keeps a real Debian and hands it out again, byte for byte", async () => {
    await using registry = await startRegistry();
    const image = await debian("python");
    expect(await registry.push(image, "library/debian:python")).toBe(`${registry.host}/library/debian:python`);
    const manifest = await get(registry, "/v2/library/debian/manifests/python", { accept: image.manifest.mediaType });
    expect(sha256(await bytesOf(manifest))).toBe(image.manifest.digest);
    for (const { digest } of image.layers)
      expect(sha256(await bytesOf(await get(registry, `/v2/library/debian/blobs/${digest}`)))).toBe(digest);
    expect(registry.blobBytes).toBe(image.layers.reduce((sum, { bytes }) => sum + bytes.length, 0));
  });

  it("cuts a download where it is told to, once, and goes on at a range", async () => {
    await using registry = await startRegistry();
    const image = imageOf([layerOf([{ name: "much", content: "x".repeat(300_000) }], "none")]);
    await registry.push(image, "cut:1");
    const [layer] = image.layers as [OciImage["layers"][number]];
    const address = `/v2/cut/blobs/${layer.digest}`;
    registry.cutBlobs(100_000);
    await expect(get(registry, address).then(bytesOf)).rejects.toThrow();
    const rest = await get(registry, address, { range: "bytes=100000-" });
    expect(rest.status).toBe(206);
    expect((await bytesOf(rest)).equals(Buffer.from(layer.bytes).subarray(100_000))).toBe(true);
    expect(registry.requests.map(({ bytes, range }) => ({ bytes, range }))).toEqual([
      { bytes: 100_000, range: "" },
      { bytes: layer.bytes.length - 100_000, range: "bytes=100000-" },
    ]);
  });

  it("asks for a password and takes the right one only", async () => {
    await using registry = await startRegistry({ auth: "basic" });
    await registry.push(small(), "private:1");
    const address = "/v2/private/manifests/1";
    expect((await get(registry, address)).status).toBe(401);
    expect((await get(registry, address, { authorization: `Basic ${Buffer.from("tester:wrong").toString("base64")}` })).status).toBe(401);
    expect((await get(registry, address, { authorization: basic, accept: small().manifest.mediaType })).status).toBe(200);
  });

  it("gives tokens for one repository, to those who may have them", async () => {
    await using registry = await startRegistry({ auth: "token" });
    for (const name of ["one:1", "two:1"]) await registry.push(small(), name);
    const refused = await get(registry, "/v2/one/manifests/1");
    const challenge = refused.headers.get("www-authenticate") ?? "";
    expect(challenge).toBe(`Bearer realm="http://${registry.host}/token",service="tests",scope="repository:one:pull"`);
    const tokenAddress = "/token?service=tests&scope=repository:one:pull";
    expect((await get(registry, tokenAddress)).status).toBe(401);
    const { token } = (await (await get(registry, tokenAddress, { authorization: basic })).json()) as { token: string };
    const headers = { authorization: `Bearer ${token}`, accept: small().manifest.mediaType };
    expect((await get(registry, "/v2/one/manifests/1", headers)).status).toBe(200);
    expect((await get(registry, "/v2/two/manifests/1", headers)).status).toBe(401);
  });

  it("is gone when it is disposed of", async () => {
    const registry = await startRegistry();
    await registry[Symbol.asyncDispose]();
    const [, port] = registry.host.split(":");
    const taker = createServer();
    await new Promise<void>((resolve, reject) => taker.on("error", reject).listen(Number(port), "127.0.0.1", resolve));
    await new Promise((resolve) => taker.close(resolve));
  });
});

function get(registry: Registry, address: string, headers: Record<string, string> = {}): Promise<Response> {
  return fetch(`http://${registry.host}${address}`, { headers });
}

async function bytesOf(answer: Response): Promise<Buffer> {
  return Buffer.from(await answer.arrayBuffer());
}
