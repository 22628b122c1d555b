import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { inspect } from "node:util";
import type { BuildEvent } from "@mitos/sdk";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { imageOf, type LayerBlob, layerOf, type OciImage } from "../support/oci.ts";
import { type Registry, type RegistryOptions, registryUser, startRegistry } from "../support/registry.ts";
import { startScriptedRegistry } from "../support/scripted-registry.ts";
import type { TarEntry } from "../support/tar.ts";
import { ImageServer } from "./image-server.ts";

/** Without libraries or programs: what is asked here is what comes over the network and what becomes of it. */
const base = layerOf([{ name: "base", content: "x".repeat(1_000_000) }], "none");
const other = layerOf([{ name: "other", content: "other" }]);
const folderOf = (layer: LayerBlob) => layer.diffId.replace("sha256:", "");
const imageWith = (content: string) => imageOf([base, layerOf([{ name: "own", content }])]);

/** Without options; what a test does to it is that test's own. */
let plain: ImageServer;
beforeAll(async () => {
  plain = await ImageServer.start();
});
afterAll(() => plain?.[Symbol.asyncDispose]());

let cleanUp: AsyncDisposableStack;
beforeEach(() => {
  cleanUp = new AsyncDisposableStack();
});
afterEach(() => cleanUp.disposeAsync());

async function serve(...options: Parameters<typeof ImageServer.start>): Promise<ImageServer> {
  return cleanUp.use(await ImageServer.start(...options));
}

async function registryOf(options?: RegistryOptions): Promise<Registry> {
  return cleanUp.use(await startRegistry(options));
}

/** What a new sandbox of it has as its own file. */
async function ownFile(server: ImageServer, reference: string): Promise<string> {
  const sandbox = await server.create(reference);
  const content = await sandbox.files.read("/own");
  await sandbox.terminate();
  return content;
}

describe("a server and its registry", () => {
  it("moves and unpacks of a second image only what the first one has not", async () => {
    const [registry, server] = [await registryOf(), plain];
    await server.api.createTemplate(await registry.push(imageWith("first"), "team/first:1"));
    registry.forgetRequests();
    const second = imageWith("second");
    const events: BuildEvent[] = [];
    const reference = await registry.push(second, "team/second:1");
    await server.api.createTemplate(reference, { onEvent: (event) => events.push(event) });
    expect(registry.blobBytes).toBe(second.config.bytes.length + second.layers[1]!.bytes.length);
    const states = (layer: LayerBlob) =>
      events.flatMap((event) => (event.kind === "layer" && event.digest === layer.diffId ? [event.state] : []));
    expect(states(second.layers[0]!)).toEqual(["shared"]);
    expect(states(second.layers[1]!).at(-1)).toBe("done");
    expect(await ownFile(server, reference)).toBe("second");
    const [, own] = second.layers as [LayerBlob, LayerBlob];
    expect(readdirSync(server.layersDir)).toEqual(expect.arrayContaining([folderOf(base), folderOf(own)]));
  });

  it("goes on where a broken connection has left a download", async () => {
    const [registry, server] = [await registryOf(), plain];
    const large = layerOf([{ name: "large", content: "y".repeat(1_000_000) }], "none");
    const reference = await registry.push(imageOf([large, layerOf([{ name: "own", content: "whole" }])]), "team/cut:1");
    registry.cutBlobs(300_000, 2);
    expect(await ownFile(server, reference)).toBe("whole");
    const of = registry.requests.filter(({ path, method }) => method === "GET" && path.endsWith(large.digest));
    const begins = of.map(({ range }) => Number(/^bytes=(\d+)-$/.exec(range)?.[1] ?? 0));
    // A reader does not get all that was under way when a connection breaks.
    expect(begins).toEqual([0, expect.toSatisfy((at) => at > 0 && at <= 300_000), expect.toSatisfy((at) => at > 300_000 && at <= 600_000)]);
  });

  it("does the work once for all who want an image at the same time", async () => {
    const [registry, server] = [await registryOf(), plain];
    const image = imageOf([layerOf([{ name: "large", content: "z".repeat(500_000) }]), layerOf([{ name: "own", content: "shared" }])]);
    const one = await registry.push(image, "team/one:1");
    const other = await registry.push(image, "team/one:other");
    const goOn = registry.holdBlobs();
    const creates = Promise.all([one, one, other, other].map((reference) => ownFile(server, reference)));
    goOn();
    expect(await creates).toEqual(["shared", "shared", "shared", "shared"]);
    const asked = registry.requests.filter(
      ({ path, method }) => method === "GET" && image.layers.some(({ digest }) => path.endsWith(digest)),
    );
    expect(asked.map(({ path }) => path).toSorted()).toEqual(image.layers.map(({ digest }) => `/v2/team/one/blobs/${digest}`).toSorted());
  });

  it("needs it no more once an image is there, not even after a restart", async () => {
    const registry = await startRegistry();
    const server = await serve();
    const reference = await registry.push(imageWith("kept"), "team/kept:1");
    const running = await server.create(reference);
    await running.files.write("/tmp/mine", "written before");
    const paused = await server.create(reference);
    await paused.pause();
    await registry[Symbol.asyncDispose]();
    await server.restart();
    expect(await ownFile(server, reference)).toBe("kept");
    const again = server.reach(running.id);
    expect([await again.files.read("/tmp/mine"), await again.files.read("/own")]).toEqual(["written before", "kept"]);
    const resumed = server.reach(paused.id);
    await resumed.resume();
    expect(await resumed.files.read("/own")).toBe("kept");
    const [child] = await resumed.fork(1);
    expect(await child!.files.read("/own")).toBe("kept");
    // A template of the same image under another name is made without anybody being asked.
    await server.api.createTemplate("mine", { image: reference });
    expect(await ownFile(server, "mine")).toBe("kept");
    await Promise.all([again, resumed, child!].map((sandbox) => sandbox.terminate()));
  });

  it("takes a tag as it was, until it is told to ask again", async () => {
    const [registry, server] = [await registryOf(), plain];
    const reference = await registry.push(imageWith("old"), "team/moved:1");
    expect(await ownFile(server, reference)).toBe("old");
    await registry.push(imageWith("new"), "team/moved:1");
    expect(await ownFile(server, reference)).toBe("old");
    await server.api.createTemplate(reference, { pull: true });
    expect(await ownFile(server, reference)).toBe("new");
  });

  it("asks a mirror first, and goes on without one that is not there", async () => {
    const registry = await registryOf();
    await registry.push(imageWith("from the mirror"), "team/mirrored:1");
    const server = await serve({ mirrors: { "registry.invalid": ["127.0.0.1:1", registry.host] } });
    expect(await ownFile(server, "registry.invalid/team/mirrored:1")).toBe("from the mirror");
  });

  it("leaves nothing half-made when whoever wanted an image goes away", async () => {
    const [registry, server] = [await registryOf(), plain];
    const before = readdirSync(server.layersDir);
    const reference = await registry.push(imageWith("unwanted"), "team/unwanted:1");
    registry.holdBlobs();
    const leaving = new AbortController();
    const building = server.api.createTemplate(reference, { signal: leaving.signal, onEvent: () => leaving.abort() });
    await expect(building).rejects.toThrow();
    await expect.poll(async () => (await server.api.listTemplates()).map(({ id }) => id)).not.toContain(reference);
    expect(readdirSync(server.layersDir)).toEqual(before);
  });
});

describe("a registry that asks who is there", () => {
  it("gets what docker login has stored for it, and nothing else", async () => {
    const registries = {
      basic: await registryOf({ auth: "basic" }),
      token: await registryOf({ auth: "token" }),
      unknown: await registryOf({ auth: "basic" }),
    };
    const wrong = await registryOf({ auth: "basic" });
    const right = `${registryUser.username}:${registryUser.password}`;
    const logins = { [registries.basic.host]: right, [registries.token.host]: right, [wrong.host]: "tester:not-the-password" };
    const server = await serve({ dockerConfig: dockerConfig(logins) });
    const references = await Promise.all(
      [...Object.values(registries), wrong].map((registry) => registry.push(imageWith("private"), "team/private:1")),
    );
    const [basic = "", token = "", unknown = "", refused = ""] = references;
    expect(await ownFile(server, basic)).toBe("private");
    expect(await ownFile(server, token)).toBe("private");
    const denied = { code: "unauthorized", remediation: expect.stringContaining("docker login") };
    await expect(server.create(unknown)).rejects.toMatchObject(denied);
    for (const reference of [basic, token]) await expect(plain.create(reference)).rejects.toMatchObject(denied);
    const events: BuildEvent[] = [];
    const error = await server.api.createTemplate(refused, { onEvent: (event) => events.push(event) }).catch((reason: unknown) => reason);
    expect(error).toMatchObject(denied);
    const told = inspect([error, events], { depth: 10 });
    for (const secret of ["not-the-password", Buffer.from("tester:not-the-password").toString("base64")])
      expect(told).not.toContain(secret);
  });
});

describe("a name without a registry", () => {
  it("is the configured registry's image where there is one, else the host's files for the three names, else an error", async () => {
    const registry = await registryOf();
    for (const name of ["python:latest", "tool:latest"]) await registry.push(imageWith(`of ${name}`), name);
    const server = await serve({ registry: registry.host });
    expect(await server.api.meaningOf("python")).toEqual({ name: "python", means: "image", reference: `${registry.host}/python:latest` });
    expect(await ownFile(server, "python")).toBe("of python:latest");
    expect(await ownFile(server, "tool")).toBe("of tool:latest");
    expect((await server.api.meaningOf("node")).means).toBe("host");
    await expect(server.create("pyhton")).rejects.toMatchObject({ code: "not_found", remediation: expect.stringContaining("python") });
  });

  it("is never the host's files instead of an image that is named", async () => {
    const [registry, server] = [await registryOf(), plain];
    for (const reference of [`${registry.host}/python:latest`, `${registry.host}/team/missing:1`]) {
      await expect(server.create(reference)).rejects.toMatchObject({ code: "not_found" });
    }
    await expect(server.create("no-such-name")).rejects.toMatchObject({ code: "not_found" });
    const templates = await server.api.listTemplates();
    expect(templates.filter(({ id }) => /missing|no-such-name|python/.test(id))).toEqual([]);
  });
});

describe("a hostile image, through the server", () => {
  it.each([
    [
      "an entry out of its root",
      () => imageOf([layerOf([{ name: "../../../etc/cron.d/root", content: "x" }])]),
      /sha256:\w+.*\.\.\/etc\/cron\.d\/root/s,
    ],
    ["a layer that is another than it says", () => imageOf([other], {}, { diffIds: [layerOf([]).diffId] }), /sha256:\w+/],
    ["ten thousand layers", () => imageOf(Array.from({ length: 10_000 }, () => base)), /10,?000/],
  ] as [string, () => OciImage, RegExp][])("is refused with its cause and a remedy, and leaves nothing: %s", async (_, image, cause) => {
    const registry = cleanUp.use(await startScriptedRegistry());
    const state = async () => [
      await plain.api.listTemplates(),
      await plain.api.listImages(),
      await plain.api.listSandboxes(),
      readdirSync(plain.layersDir),
    ];
    const before = await state();
    const error = await plain.create(registry.put(image(), "team/hostile:1")).catch((reason: unknown) => reason);
    expect(error).toMatchObject({
      code: "build_failed",
      status: 422,
      errorCause: expect.stringMatching(cause),
      remediation: expect.stringMatching(/[a-z]/),
    });
    expect(await state()).toEqual(before);
    expect(readdirSync(path.join(plain.dataDir, "images/partial"))).toEqual([]);
    expect(existsSync("/etc/cron.d/root")).toBe(false);
  });

  it("with a hostile configuration still starts, and what it says stays inside", async () => {
    const [registry, server] = [await registryOf(), plain];
    const marks: TarEntry[] = [{ name: "own", content: "still here" }];
    const run = {
      Env: ["LD_PRELOAD=/own", "PATH=/nowhere", "HOME=../../.."],
      User: "4000000000:4000000000",
      WorkingDir: "/../../not/there",
    };
    const sandbox = await server.create(await registry.push(imageOf([layerOf(marks)], run), "team/odd:1"));
    expect(await sandbox.files.read("/own")).toBe("still here");
    await sandbox.terminate();
  });
});

/** As `docker login` leaves it. */
function dockerConfig(auths: Readonly<Record<string, string>>): string {
  const folder = mkdtempSync(path.join(os.tmpdir(), "mitos-docker-config-"));
  cleanUp.defer(() => rmSync(folder, { recursive: true }));
  const encoded = Object.entries(auths).map(([host, pair]) => [host, { auth: Buffer.from(pair).toString("base64") }]);
  const file = path.join(folder, "config.json");
  writeFileSync(file, JSON.stringify({ auths: Object.fromEntries(encoded) }));
  return file;
}
