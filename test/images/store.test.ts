import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import type { DatabaseSync } from "node:sqlite";
import { inspect } from "node:util";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { BuildEvent, ImageOptions } from "../../packages/engine/src/actions.ts";
import { systemClock } from "../../packages/engine/src/clock.ts";
import { HastyClock } from "../../packages/engine/src/images/fake-registry.ts";
import { ImageStore } from "../../packages/engine/src/images/store.ts";
import { LayerStore } from "../../packages/engine/src/layers/store.ts";
import { openDatabase } from "../../packages/engine/src/store/database.ts";
import { quiet } from "../../packages/engine/src/testing.ts";
import { debian } from "../support/base-image.ts";
import {
  descriptor,
  foreignArchitecture,
  imageOf,
  indexOf,
  json,
  layerOf,
  mediaTypes,
  ourArchitecture,
  sha256,
  withManifest,
} from "../support/oci.ts";
import { type Registry, registryUser, startRegistry } from "../support/registry.ts";
import { startScriptedRegistry } from "../support/scripted-registry.ts";
import { tarOf } from "../support/tar.ts";
import { until } from "../support/until.ts";

const hello = layerOf([{ name: "hello", content: "hello" }]);
const more = layerOf([{ name: "more", content: "x".repeat(300_000) }], "none");
const last = layerOf([{ name: "last", content: "last" }], "zstd");
const run = { Env: ["A=b"], Cmd: ["sh"], WorkingDir: "/app", User: "1000", Entrypoint: ["/entry"], Labels: { of: "tests" } };
const image = imageOf([hello, more, last], run);

/** A server's images, as the engine has them. */
class Store implements AsyncDisposable {
  readonly dataDir: string;
  readonly db: DatabaseSync;
  readonly layers: LayerStore;
  readonly images: ImageStore;

  private constructor(dataDir: string, db: DatabaseSync, layers: LayerStore, images: ImageStore) {
    this.dataDir = dataDir;
    this.db = db;
    this.layers = layers;
    this.images = images;
  }

  static async open(dataDir: string, options: ImageOptions = {}, clock = systemClock, log = quiet): Promise<Store> {
    const db = openDatabase(dataDir);
    const layers = await LayerStore.open({ dataDir, log });
    const none = { dockerConfig: path.join(dataDir, "none.json") };
    const images = await ImageStore.open({ dataDir, db, layers, log, clock, ...none, ...options });
    return new Store(dataDir, db, layers, images);
  }

  get partial(): string[] {
    return readdirSync(path.join(this.dataDir, "images/partial"));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.db.close();
  }
}

let dataDir: string;
beforeEach(() => {
  dataDir = mkdtempSync(path.join(os.tmpdir(), "mitos-images-"));
});
afterEach(() => {
  const leftovers = ["images/partial", "layers"].flatMap((dir) =>
    existsSync(path.join(dataDir, dir))
      ? readdirSync(path.join(dataDir, dir)).filter((name) => name.startsWith("push-") || name.startsWith("."))
      : [],
  );
  rmSync(dataDir, { recursive: true });
  expect(leftovers).toEqual([]);
});

function loginTo(registry: Registry, password = registryUser.password): ImageOptions {
  const dockerConfig = path.join(dataDir, "docker.json");
  const auth = Buffer.from(`${registryUser.username}:${password}`).toString("base64");
  writeFileSync(dockerConfig, JSON.stringify({ auths: { [registry.host]: { auth } } }));
  return { dockerConfig };
}

const blobsOf = (registry: Registry) => registry.requests.filter(({ method, path }) => method === "GET" && path.includes("/blobs/"));
const statesOf = (events: readonly BuildEvent[], digest: string) =>
  events
    .flatMap((event) => (event.kind === "layer" && event.digest === digest ? [event.state] : []))
    .filter((state, at, all) => state !== all[at - 1]);

describe("pulling an image", () => {
  it("has its layers unpacked, its configuration and its origins, and keeps no compressed form", async () => {
    await using registry = await startRegistry();
    const reference = await registry.push(image, "team/tool:1");
    await using store = await Store.open(dataDir);
    const events: BuildEvent[] = [];
    const pulled = await store.images.pull(reference, { onEvent: (event) => events.push(event) });
    expect(pulled).toEqual({
      reference,
      digest: image.manifest.digest,
      config: { env: { A: "b" }, command: ["sh"], workdir: "/app", user: "1000", entrypoint: ["/entry"], labels: { of: "tests" } },
      layers: image.layers.map(({ diffId, digest, mediaType, bytes }) => ({
        id: diffId,
        origin: { mediaType, digest, bytes: bytes.length, repository: `${registry.host}/team/tool` },
      })),
    });
    for (const [{ diffId }, name, content] of [
      [hello, "hello", "hello"],
      [last, "last", "last"],
    ] as const) {
      expect(await readFile(path.join(store.layers.get(diffId)?.dir ?? "", "tree", name), "utf8")).toBe(content);
      expect(statesOf(events, diffId)).toEqual(["waiting", "downloading", "unpacking", "done"]);
    }
    expect(store.partial).toEqual([]);
    expect(await store.images.cacheBytes()).toBe(0);
  });

  it("asks nobody for one that is known, also after a restart, unless it is to ask again", async () => {
    await using registry = await startRegistry();
    const reference = await registry.push(image, "team/tool:1");
    const first = await Store.open(dataDir);
    await first.images.pull(reference);
    await first[Symbol.asyncDispose]();
    await using store = await Store.open(dataDir);
    registry.forgetRequests();
    const events: BuildEvent[] = [];
    expect(store.images.known(reference)?.digest).toBe(image.manifest.digest);
    await store.images.pull(reference, { onEvent: (event) => events.push(event) });
    expect(registry.requests).toEqual([]);
    expect(image.layers.map(({ diffId }) => statesOf(events, diffId))).toEqual([["shared"], ["shared"], ["shared"]]);

    // Unchanged: its manifest is not fetched again, which registries would count.
    expect((await store.images.pull(reference, { pull: true })).digest).toBe(image.manifest.digest);
    expect(await store.images.resolve(reference)).toEqual({ reference, digest: image.manifest.digest });
    expect(registry.requests.map(({ method }) => method)).toEqual(["HEAD", "HEAD"]);
    const newer = imageOf([hello, last], { Cmd: ["new"] });
    await registry.push(newer, "team/tool:1");
    expect((await store.images.pull(reference)).digest).toBe(image.manifest.digest);
    expect((await store.images.pull(reference, { pull: true })).digest).toBe(newer.manifest.digest);
    expect(store.images.known(reference)?.config.command).toEqual(["new"]);
    // Its layers were here.
    expect(blobsOf(registry).map(({ path }) => path.split("/").at(-1))).toEqual([newer.config.digest]);
  });

  it("takes the manifest for this processor, by tag and by the index's or the manifest's own digest", async () => {
    await using registry = await startRegistry();
    const index = indexOf([
      { image: imageOf([last], {}, { architecture: foreignArchitecture }), architecture: foreignArchitecture },
      { image, architecture: ourArchitecture },
    ]);
    const reference = await registry.push(index, "team/tool:1");
    await using store = await Store.open(dataDir);
    const byDigest = [index.index.digest, image.manifest.digest].map((digest) => `${registry.host}/team/tool@${digest}`);
    for (const name of [reference, ...byDigest]) {
      expect(await store.images.resolve(name)).toEqual({ reference: name, digest: image.manifest.digest });
    }
    expect((await store.images.pull(reference)).digest).toBe(image.manifest.digest);
    expect(store.images.list()).toMatchObject([{ reference, digest: image.manifest.digest, layers: 3 }]);
  });

  it("says not_found for what is not there, not for this processor, and of a registry's name only when it exists", async () => {
    await using registry = await startRegistry();
    await registry.push(imageOf([hello], {}, { architecture: foreignArchitecture }), "team/foreign:1");
    const foreign = imageOf([hello], {}, { architecture: foreignArchitecture });
    await registry.push(indexOf([{ image: foreign, architecture: foreignArchitecture }]), "team/foreign:2");
    await registry.push(image, "python:latest");
    await using store = await Store.open(dataDir, { registry: registry.host });
    for (const name of ["team/tool:1", "team/foreign:1", "team/foreign:2", "team/foreign:3"]) {
      await expect(store.images.pull(name)).rejects.toMatchObject({ code: "not_found" });
    }
    expect(store.images.hasOwnRegistry).toBe(true);
    expect(await store.images.resolve("python")).toMatchObject({ reference: `${registry.host}/python:latest` });
    await expect(store.images.resolve("node")).rejects.toMatchObject({ code: "not_found" });
    expect(store.images.list()).toEqual([]);
  });

  it.each(["basic", "token", "anonymous-token"] as const)("from a registry with %s lets in who may come in", async (auth) => {
    await using registry = await startRegistry({ auth });
    const reference = await registry.push(image, "team/tool:1");
    const dirs = ["in", "out", "wrong"].map((name) => path.join(dataDir, name));
    await using known = await Store.open(dirs[0]!, loginTo(registry));
    expect((await known.images.pull(reference)).digest).toBe(image.manifest.digest);
    await using anonymous = await Store.open(dirs[1]!);
    if (auth === "anonymous-token") expect((await anonymous.images.pull(reference)).digest).toBe(image.manifest.digest);
    else await expect(anonymous.images.pull(reference)).rejects.toMatchObject({ code: "unauthorized" });
    await using wrong = await Store.open(dirs[2]!, loginTo(registry, "wrong"));
    await expect(wrong.images.pull(reference)).rejects.toMatchObject({ code: "unauthorized" });
  });

  it.each(["basic", "token"] as const)(
    "from a registry with %s leaves its password and tokens in no log, event, error or record",
    async (auth) => {
      await using registry = await startRegistry({ auth });
      const reference = await registry.push(image, "team/tool:1");
      const said: unknown[] = [];
      const note = (...line: unknown[]) => said.push(...line);
      const log = { debug: note, info: note, warn: note, error: note };
      const mirrors = { "registry.example": [registry.host] };
      await using store = await Store.open(dataDir, { mirrors, ...loginTo(registry) }, new HastyClock(), log);
      await store.images.pull(reference, { onEvent: note });
      for (const name of [`${registry.host}/team/other:1`, "127.0.0.1:1/team/tool:1", "registry.example/team/none:1"]) {
        await expect(store.images.pull(name, { onEvent: note }).catch((error) => Promise.reject(said.push(error)))).rejects.toBeDefined();
      }
      said.push(store.images, store.images.known(reference), store.db.prepare("SELECT * FROM images").all());
      const shown = inspect(said, { depth: 20, showHidden: true, maxArrayLength: null, maxStringLength: null });
      expect(shown).toContain(reference);
      const { username, password } = registryUser;
      for (const secret of [password, Buffer.from(`${username}:${password}`).toString("base64"), "Bearer "])
        expect(shown).not.toContain(secret);
    },
  );

  it("goes on after a broken connection, and by another server where the first one stopped", async () => {
    await using registry = await startRegistry();
    const reference = await registry.push(image, "team/tool:1");
    registry.cutBlobs(10_000, 5);
    {
      await using store = await Store.open(dataDir, {}, new HastyClock());
      await expect(store.images.pull(reference)).rejects.toMatchObject({ code: "unavailable" });
      expect(store.partial.filter((name) => name.startsWith(more.digest.slice("sha256:".length)))).toHaveLength(1);
      expect(await store.images.cacheBytes()).toBeGreaterThan(0);
      expect(store.images.known(reference)).toBeUndefined();
    }
    registry.cutBlobs(0, 0);
    registry.forgetRequests();
    await using store = await Store.open(dataDir, {}, new HastyClock());
    await store.images.pull(reference);
    expect(blobsOf(registry).find(({ path }) => path.endsWith(more.digest))?.range).toMatch(/^bytes=[1-9]\d*-$/);
    expect(store.partial).toEqual([]);
  });

  it("is one download for all who want it at once, and for images that share a layer", async () => {
    await using registry = await startRegistry();
    const references = [await registry.push(image, "team/tool:1"), await registry.push(imageOf([hello, more]), "team/other:1")];
    await using store = await Store.open(dataDir);
    const release = registry.holdBlobs();
    const pulls = Promise.all([...references, ...references].map((reference) => store.images.pull(reference)));
    await until("all manifests were asked for", () => registry.requests.filter(({ path }) => path.includes("/manifests/")).length === 2);
    release();
    const [one, other] = await pulls;
    expect(other?.layers.map(({ id }) => id)).toEqual(one?.layers.slice(0, 2).map(({ id }) => id));
    for (const { digest } of image.layers) expect(blobsOf(registry).filter(({ path }) => path.endsWith(digest))).toHaveLength(1);
  });

  it("leaves the others going when one gives up, and stops when all have, keeping what has come", async () => {
    await using registry = await startRegistry();
    const reference = await registry.push(imageOf([more]), "team/tool:1");
    await using store = await Store.open(dataDir, {}, new HastyClock());
    const [leaver, second] = [new AbortController(), new AbortController()];
    let release = registry.holdBlobs();
    const leaving = store.images.pull(reference, { signal: leaver.signal });
    const staying = store.images.pull(reference);
    await until("the manifest was asked for", () => registry.requests.length > 0);
    leaver.abort();
    await expect(leaving).rejects.toMatchObject({ code: "canceled" });
    release();
    await staying;

    await store.layers.collect(new Set(), { olderThanMs: -1000 });
    expect(store.images.known(reference)).toBeUndefined();
    release = registry.holdBlobs();
    registry.forgetRequests();
    const alone = store.images.pull(reference, { signal: second.signal });
    await until("the manifest was asked for again", () => registry.requests.length > 0);
    second.abort();
    await expect(alone).rejects.toMatchObject({ code: "canceled" });
    release();
    expect((await store.images.pull(reference)).layers).toHaveLength(1);
  });

  it("asks mirrors in order, passes over those that have it not or are not there, and gives each its own credentials", async () => {
    await using registry = await startRegistry();
    await using empty = await startRegistry();
    await using closed = await startRegistry({ auth: "basic" });
    await using mirror = await startRegistry();
    const reference = await registry.push(image, "team/tool:1");
    await mirror.push(image, "team/tool:1");
    const gone = await startRegistry();
    await gone[Symbol.asyncDispose]();
    const clock = new HastyClock();
    const mirrors = { [registry.host]: [gone, empty, closed, mirror].map(({ host }) => host) };
    await using store = await Store.open(dataDir, { mirrors, ...loginTo(registry) }, clock);
    expect((await store.images.pull(reference)).reference).toBe(reference);
    expect(registry.requests).toEqual([]);
    expect(empty.requests.map(({ status }) => status)).toContain(404);
    expect(closed.requests.every(({ status }) => status === 401)).toBe(true);
    // Asked once, though an image has many parts.
    expect(clock.pausesMs).toHaveLength(4);
    const only = await registry.push(imageOf([last]), "team/only:1");
    await store.images.pull(only);
    expect(registry.requests.length).toBeGreaterThan(0);
  });
});

it("a real Debian comes, goes to another registry packed anew, and comes back with the same files", async () => {
  await using from = await startRegistry();
  await using to = await startRegistry();
  const real = await debian("python");
  await using store = await Store.open(dataDir);
  const reference = await from.push(real, "library/debian:python");
  const pulled = await store.images.pull(reference);
  expect(pulled.layers.map(({ id }) => id)).toEqual(real.layers.map(({ diffId }) => diffId));
  const made = { ...pulled, layers: pulled.layers.map(({ id }) => ({ id, origin: null })) };
  const back = await store.images.pull((await store.images.push(made, `${to.host}/debian:python`)).reference);
  const files = ({ layers }: typeof back) => layers.map(({ id }) => store.layers.get(id)).map((layer) => [layer?.entries, layer?.bytes]);
  expect(files(back)).toEqual(files(pulled));
  expect(back.config).toEqual(pulled.config);
});

describe("an image that is not what it says", () => {
  it.each([
    ["a layer with another diff_id", imageOf([hello, last], {}, { diffIds: [last.diffId, hello.diffId] })],
    ["fewer diff_ids than layers", imageOf([hello, last], {}, { diffIds: [hello.diffId] })],
    ["a layer that is no tar", imageOf([layerOf(Buffer.alloc(100_000, "no tar"))])],
  ])("is refused with build_failed for %s, and nothing of it is kept", async (_, wrong) => {
    await using registry = await startScriptedRegistry();
    const reference = registry.put(wrong, "team/tool:1");
    await using store = await Store.open(dataDir);
    await expect(store.images.pull(reference)).rejects.toMatchObject({ code: "build_failed" });
    expect(store.images.known(reference)).toBeUndefined();
    expect(store.images.list()).toEqual([]);
  });

  it("is refused for a foreign layer before anything of it is asked for", async () => {
    const foreign = { ...hello, mediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" };
    const manifest = {
      schemaVersion: 2,
      config: descriptor(image.config),
      layers: [{ ...descriptor(foreign), urls: ["http://169.254.169.254/"] }],
    };
    await using registry = await startScriptedRegistry();
    const reference = registry.put(withManifest(manifest, image.config, [foreign]), "team/tool:1");
    await using store = await Store.open(dataDir);
    await expect(store.images.pull(reference)).rejects.toMatchObject({
      code: "build_failed",
      message: expect.stringContaining("distributed"),
    });
    expect(registry.requests).toHaveLength(1);
  });

  it("is refused when the disk cannot hold it, before its first layer", async () => {
    const giant = { ...descriptor(hello), size: 31 * 1024 ** 3 };
    const layers = Array.from({ length: 200 }, () => giant);
    const diffIds = layers.map((_, at) => sha256(Buffer.from(String(at))));
    const { config } = imageOf([], {}, { diffIds });
    await using registry = await startScriptedRegistry();
    const reference = registry.put(withManifest({ schemaVersion: 2, config: descriptor(config), layers }, config, []), "team/tool:1");
    await using store = await Store.open(dataDir);
    await expect(store.images.pull(reference)).rejects.toMatchObject({
      code: "quota_exceeded",
      detail: { context: { dimension: "disk" } },
    });
    expect(registry.requests).toHaveLength(2);
  });

  it("is no image when its config is another thing", async () => {
    const config = json("application/vnd.cncf.helm.config.v1+json", {});
    await using registry = await startScriptedRegistry();
    const reference = registry.put(
      withManifest({ schemaVersion: 2, mediaType: mediaTypes.manifest, config: descriptor(config), layers: [] }, config, []),
      "chart:1",
    );
    await using store = await Store.open(dataDir);
    await expect(store.images.pull(reference)).rejects.toMatchObject({ code: "build_failed", message: expect.stringContaining("helm") });
  });
});

describe("pushing an image", () => {
  it("takes layers over within a registry, and what comes back is what was pushed", async () => {
    await using registry = await startRegistry();
    await using store = await Store.open(dataDir);
    const pulled = await store.images.pull(await registry.push(image, "team/tool:1"));
    registry.forgetRequests();
    const events: BuildEvent[] = [];
    const pushed = await store.images.push({ ...pulled, history: ["RUN something"] }, `${registry.host}/team/mine:2`, {
      onEvent: (event) => events.push(event),
    });
    expect(image.layers.map(({ diffId }) => statesOf(events, diffId).at(-1))).toEqual(["shared", "shared", "shared"]);
    expect(blobsOf(registry)).toEqual([]);
    const back = await store.images.pull(pushed.reference);
    expect(back.digest).toBe(pushed.digest);
    expect(back.config).toEqual(pulled.config);
    expect(back.layers.map(({ id, origin }) => [id, origin?.digest])).toEqual(image.layers.map(({ diffId, digest }) => [diffId, digest]));
    // Again: nothing is sent but the manifest, and it is the same.
    registry.forgetRequests();
    expect((await store.images.push({ ...pulled, history: ["RUN something"] }, pushed.reference)).digest).toBe(pushed.digest);
    expect(registry.requests.filter(({ method }) => method !== "HEAD").map(({ method, path }) => `${method} ${path}`)).toEqual([
      "PUT /v2/team/mine/manifests/2",
    ]);
  });

  it.each(["basic", "token"] as const)("brings layers from their registry to another one with %s", async (auth) => {
    await using from = await startRegistry();
    await using to = await startRegistry({ auth });
    await using store = await Store.open(dataDir, loginTo(to));
    const pulled = await store.images.pull(await from.push(image, "team/tool:1"));
    const { reference, digest } = await store.images.push(pulled, `${to.host}/mine:1`);
    expect(blobsOf(from).filter(({ path }) => path.endsWith(more.digest))).toHaveLength(2);
    await store.layers.collect(new Set(), { olderThanMs: -1000 });
    const back = await store.images.pull(reference);
    expect([back.digest, back.layers[1]?.origin?.digest]).toEqual([digest, more.digest]);
    expect(store.partial).toEqual([]);
  });

  it("packs layers that were made here, and those whose registry is gone, the same each time", async () => {
    await using to = await startRegistry();
    const from = await startRegistry();
    await using store = await Store.open(dataDir, {}, new HastyClock());
    const pulled = await store.images.pull(await from.push(image, "team/tool:1"));
    await from[Symbol.asyncDispose]();
    const tree = tarOf({ made: "here" });
    const made = await store.layers.add(
      (async function* () {
        yield tree;
      })(),
    );
    const all = { ...pulled, layers: [...pulled.layers, { id: made.id, origin: null }] };
    const { reference, digest } = await store.images.push(all, `${to.host}/mine:1`);
    expect((await store.images.push(all, `${to.host}/mine:2`)).digest).toBe(digest);
    const back = await store.images.pull(reference);
    expect(back.layers).toHaveLength(4);
    const top = store.layers.get(back.layers[3]!.id);
    expect(await readFile(path.join(top?.dir ?? "", "tree/made"), "utf8")).toBe("here");
    expect(store.partial).toEqual([]);
  });

  it("sends a large layer in pieces", async () => {
    await using registry = await startRegistry();
    const large = layerOf([{ name: "large", content: "y".repeat(65 * 1024 * 1024) }], "none");
    await using from = await startScriptedRegistry();
    await using store = await Store.open(dataDir);
    const pulled = await store.images.pull(from.put(imageOf([large]), "team/large:1"));
    const { reference, digest } = await store.images.push(pulled, `${registry.host}/large:1`);
    expect(registry.requests.filter(({ method }) => method === "PATCH")).toHaveLength(2);
    expect((await store.images.resolve(reference)).digest).toBe(digest);
  });

  it("is refused where it is not allowed, by a digest, and with a layer that is not here", async () => {
    await using registry = await startRegistry({ auth: "anonymous-token" });
    await using store = await Store.open(dataDir);
    const pulled = await store.images.pull(await registry.push(image, "team/tool:1"));
    await expect(store.images.push(pulled, `${registry.host}/mine:1`)).rejects.toMatchObject({ code: "unauthorized" });
    await expect(store.images.push(pulled, `${registry.host}/mine@${image.manifest.digest}`)).rejects.toMatchObject({
      code: "invalid_input",
    });
    const unknown = { ...pulled, layers: [{ id: sha256(Buffer.from("x")), origin: null }] };
    await expect(store.images.push(unknown, `${registry.host}/mine:1`)).rejects.toMatchObject({ code: "not_found" });
  });
});

describe("collecting", () => {
  it("leaves the layers of an image alone that is being pulled, and then as long as their caller holds them", async () => {
    await using registry = await startRegistry();
    const reference = await registry.push(image, "team/tool:1");
    await using store = await Store.open(dataDir);
    const collectAll = () => store.layers.collect(new Set(), { olderThanMs: -1000 });
    const removed: Promise<number>[] = [];
    const onEvent = (event: BuildEvent) => {
      if (event.kind === "layer" && event.state === "done") removed.push(collectAll());
    };
    using scope = new DisposableStack();
    const { layers } = await store.images.pull(reference, { hold: (ids) => scope.use(store.layers.hold(ids)), onEvent });
    expect(await Promise.all(removed)).toEqual([0, 0, 0]);
    expect(await collectAll()).toBe(0);
    expect(layers.every(({ id }) => store.layers.has(id))).toBe(true);
    // Known by now.
    await store.images.pull(reference, { hold: (ids) => scope.use(store.layers.hold(ids)) });
    scope.dispose();
    expect(await collectAll()).toBeGreaterThan(0);
    expect(layers.some(({ id }) => store.layers.has(id))).toBe(false);
  });

  it("removes what was not used for a time: partial downloads, contexts, and images whose layers nobody keeps", async () => {
    await using registry = await startRegistry();
    const [kept, old] = [await registry.push(image, "team/kept:1"), await registry.push(imageOf([hello]), "team/old:1")];
    const clock = new HastyClock();
    await using store = await Store.open(dataDir, {}, clock);
    for (const reference of [kept, old]) await store.images.pull(reference);
    const tar = tarOf({ a: "b" });
    await store.images.putContext(
      sha256(tar),
      (async function* () {
        yield tar;
      })(),
    );
    writeFileSync(path.join(dataDir, "images/partial/left"), "left");
    const keepLayers = new Set(image.layers.slice(1).map(({ diffId }) => diffId));
    expect(await store.images.collect({ keepLayers, olderThanMs: 60_000 })).toBe(0);
    expect(store.images.list()).toHaveLength(2);
    clock.advance(120_000);
    await store.images.pull(kept);
    expect(await store.images.cacheBytes()).toBe(tar.length + 4);
    expect(await store.images.collect({ keepLayers, olderThanMs: 60_000 })).toBe(tar.length + 4);
    expect(await store.images.cacheBytes()).toBe(0);
    expect(await store.images.hasContext(sha256(tar))).toBe(false);
    expect(store.images.list().map(({ reference }) => reference)).toEqual([kept]);
  });

  it("removes the oldest ones beyond a sum", async () => {
    await using store = await Store.open(dataDir);
    const tars = ["a", "b", "c"].map((name) => tarOf({ [name]: name }));
    for (const tar of tars)
      await store.images.putContext(
        sha256(tar),
        (async function* () {
          yield tar;
        })(),
      );
    await store.images.hasContext(sha256(tars[0]!));
    expect(await store.images.collect({ keepLayers: new Set(), olderThanMs: 60_000, bytesMax: 2 * tars[0]!.length })).toBe(tars[0]!.length);
    expect(await Promise.all(tars.map((tar) => store.images.hasContext(sha256(tar))))).toEqual([true, false, true]);
  });
});
