import { mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import os from "node:os";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type Clock, systemClock } from "../../packages/engine/src/clock.ts";
import { ImageStore } from "../../packages/engine/src/images/store.ts";
import { LayerStore } from "../../packages/engine/src/layers/store.ts";
import { openDatabase } from "../../packages/engine/src/store/database.ts";
import { quiet } from "../support/live-server.ts";
import {
  type Blob,
  blobOf,
  descriptor,
  foreignArchitecture,
  imageOf,
  indexOf,
  json,
  type LayerBlob,
  layerOf,
  mediaTypes,
  type OciImage,
  ourArchitecture,
  withManifest,
} from "../support/oci.ts";
import { type ScriptedRegistry, startScriptedRegistry } from "../support/scripted-registry.ts";

let dataDir: string;
let db: ReturnType<typeof openDatabase>;
let images: ImageStore;
let registry: ScriptedRegistry;

beforeEach(async () => {
  dataDir = mkdtempSync(path.join(os.tmpdir(), "mitos-hostile-"));
  db = openDatabase(dataDir);
  const layers = await LayerStore.open({ dataDir, log: quiet });
  images = await ImageStore.open({ dataDir, db, layers, log: quiet, clock: impatient });
  registry = await startScriptedRegistry();
});

afterEach(async () => {
  await registry[Symbol.asyncDispose]();
  db.close();
  rmSync(dataDir, { recursive: true, force: true });
});

/** Pauses between attempts are over at once; what waits for a silent registry waits as ever. */
const impatient: Clock = {
  nowMs: systemClock.nowMs,
  after: (delayMs, wake) => systemClock.after(delayMs < 20_000 ? 0 : delayMs, wake),
};

const layer = layerOf([{ name: "hello", content: "hello" }]);
const other = layerOf([{ name: "other", content: "other" }]);

interface Hostile {
  readonly what: string;
  /** Puts it there. @returns the reference */
  readonly put: () => string;
  /** What the cause must name. */
  readonly names?: string | RegExp;
  readonly code?: string;
}

const hostile: Hostile[] = [
  {
    what: "a manifest with another digest than it was asked for",
    names: "digest",
    put: () => {
      const image = imageOf([layer]);
      registry.put(image, "image:1");
      registry.lie(image.manifest.digest, { body: imageOf([other]).manifest.bytes });
      return `${registry.host}/image@${image.manifest.digest}`;
    },
  },
  {
    what: "an index whose image's manifest has another digest",
    names: "digest",
    put: () => {
      const image = imageOf([layer]);
      registry.lie(image.manifest.digest, { body: imageOf([other]).manifest.bytes });
      return registry.put(indexOf([{ image, architecture: ourArchitecture }]), "image:1");
    },
  },
  {
    what: "a layer with other content than its digest says",
    names: layer.digest,
    put: () => lyingAbout(layer, { body: other.bytes }, "same size"),
  },
  {
    what: "a layer that is shorter than its manifest says",
    put: () => lyingAbout(layer, { body: layer.bytes.subarray(0, 50) }),
    code: "unavailable",
  },
  { what: "a layer that does not end", names: layer.digest, put: () => lyingAbout(layer, { body: endless() }) },
  {
    what: "a layer that is another than the configuration says",
    names: layer.digest,
    put: () => registry.put(imageOf([layer], {}, { diffIds: [other.diffId] }), "image:1"),
  },
  {
    what: "a layer with an entry out of its root",
    names: /sha256:[0-9a-f]{64}.*\.\.\/\.\.\/etc\/cron\.d\/root/s,
    put: () => registry.put(imageOf([layerOf([{ name: "../../etc/cron.d/root", content: "x" }])]), "image:1"),
  },
  {
    what: "a compressed layer that is no tar",
    names: /sha256:[0-9a-f]{64}/,
    put: () =>
      registry.put(imageOf([{ ...blobOf(mediaTypes.layer.gzip, Buffer.from("not a tar at all")), diffId: layer.diffId }]), "image:1"),
  },
  {
    what: "a configuration with other content than its digest says",
    put: () => lyingAbout(imageOf([layer]).config, { body: Buffer.from("{}") }),
  },
  { what: "a configuration that is no JSON", put: () => withConfig(Buffer.from("{,}")) },
  { what: "a configuration of nine megabytes", names: "bytes", put: () => withConfig(Buffer.alloc(9 << 20, " ")) },
  {
    what: "fewer layers in its configuration than in its manifest",
    put: () => registry.put(imageOf([layer, other], {}, { diffIds: [layer.diffId] }), "image:1"),
  },
  { what: "a zero byte in its environment", names: "Env", put: () => registry.put(imageOf([layer], { Env: ["A=\0"] }), "image:1") },
  {
    what: "an environment of a megabyte",
    names: "Env",
    put: () => registry.put(imageOf([layer], { Env: [`A=${"x".repeat(1 << 20)}`] }), "image:1"),
  },
  {
    what: "a working directory of a megabyte",
    names: "WorkingDir",
    put: () => registry.put(imageOf([layer], { WorkingDir: `/${"x".repeat(1 << 20)}` }), "image:1"),
  },
  { what: "a user of a megabyte", names: "User", put: () => registry.put(imageOf([layer], { User: "x".repeat(1 << 20) }), "image:1") },
  {
    what: "a command that is no list of texts",
    names: "Cmd",
    put: () => registry.put(imageOf([layer], { Cmd: [1] as unknown as string[] }), "image:1"),
  },
  {
    what: "ten thousand layers",
    names: /10,?000/,
    put: () => registry.put(imageOf(Array.from({ length: 10_000 }, () => layer)), "image:1"),
  },
  { what: "a manifest of five megabytes", names: "bytes", put: () => putManifest({ annotations: { a: "x".repeat(5 << 20) } }) },
  { what: "a manifest that does not end", put: () => lyingAbout(imageOf([layer]).manifest, { body: endless() }) },
  { what: "a manifest that is no JSON", put: () => lyingAbout(imageOf([layer]).manifest, { body: Buffer.from("[[[") }) },
  { what: "a manifest that is an index at once", names: "index", put: () => putManifest({ manifests: [] }) },
  {
    what: "a layer's digest that is a path",
    names: "digest",
    put: () => putManifest({ layers: [{ ...descriptor(layer), digest: "sha256:../../../../etc/passwd" }] }),
  },
  {
    what: "a layer of an unknown algorithm",
    names: "digest",
    put: () => putManifest({ layers: [{ ...descriptor(layer), digest: "md5:d41d8cd98f00b204e9800998ecf8427e" }] }),
  },
  { what: "a layer of less than nothing", names: "size", put: () => putManifest({ layers: [{ ...descriptor(layer), size: -1 }] }) },
  { what: "a layer of a pebibyte", names: "bytes", put: () => putManifest({ layers: [{ ...descriptor(layer), size: 2 ** 50 }] }) },
  {
    what: "a layer that is to be fetched from elsewhere",
    names: "distributed",
    put: () =>
      putManifest({
        layers: [
          {
            ...descriptor(layer),
            mediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            urls: ["http://169.254.169.254/layer"],
          },
        ],
      }),
  },
  { what: "indexes inside each other without end", names: "index", put: nestedIndexes },
  { what: "an index without an image for this processor", code: "not_found", put: () => registry.put(indexOf([foreign()]), "image:1") },
  {
    what: "an index that says an image of another processor were ours",
    code: "not_found",
    put: () => registry.put(indexOf([{ ...foreign(), architecture: ourArchitecture }]), "image:1"),
  },
  {
    what: "redirects to itself without end",
    names: "redirects",
    put: () => lyingAbout(layer, redirect(`/v2/image/blobs/${layer.digest}`)),
  },
  {
    what: "a redirect to a host's metadata service",
    names: "169.254.169.254 is no address of a registry",
    put: () => lyingAbout(layer, redirect("http://169.254.169.254/latest/meta-data/")),
  },
  { what: "a redirect to a file of the host", names: /redirects|TLS/, put: () => lyingAbout(layer, redirect("file:///etc/passwd")) },
  {
    what: "a token service on somebody else's host",
    code: "unauthorized",
    put: () =>
      lyingAbout(imageOf([layer]).manifest, {
        status: 401,
        headers: { "www-authenticate": 'Bearer realm="http://192.0.2.1/token",service="x"' },
        body: new Uint8Array(),
      }),
  },
];

describe("a hostile image", () => {
  it.each(hostile)("is refused, and leaves nothing: $what", async ({ put, names = "", code: wanted = "build_failed" }) => {
    const failure = await images.pull(put()).then(
      () => undefined,
      (error: unknown) => error,
    );
    expect(failure).toBeInstanceOf(MitosError);
    const { code, detail, entry } = failure as MitosError;
    expect(code, String(failure)).toBe(wanted);
    expect(detail.cause).toMatch(typeof names === "string" ? new RegExp(RegExp.escape(names)) : names);
    expect(detail.remediation ?? entry.remediation).toMatch(/[a-z]/);
    expect(images.list()).toEqual([]);
    expect(readdirSync(path.join(dataDir, "layers"))).toEqual([]);
    // What arrived before a connection broke may be gone on with; it is never more than the manifest has promised.
    if (wanted !== "unavailable") expect(leftPartial()).toEqual([]);
  });

  it("is not asked about elsewhere because a layer names other addresses", async () => {
    const asked: string[] = [];
    const elsewhere = createServer((request, response) => {
      asked.push(request.url ?? "");
      response.end();
    });
    await new Promise<void>((resolve) => elsewhere.listen(0, "127.0.0.1", resolve));
    const { port } = elsewhere.address() as AddressInfo;
    const reference = putManifest({ layers: [{ ...descriptor(layer), urls: [`http://127.0.0.1:${port}/layer`] }] });
    expect((await images.pull(reference)).layers).toHaveLength(1);
    expect(asked).toEqual([]);
    await new Promise((resolve) => elsewhere.close(resolve));
  });

  it("that names one layer many times is that layer once", async () => {
    const image = await images.pull(registry.put(imageOf([layer, layer, other, layer]), "image:1"));
    expect(image.layers.map(({ id }) => id)).toEqual([layer, layer, other, layer].map(({ diffId }) => diffId));
    expect(readdirSync(path.join(dataDir, "layers"))).toHaveLength(2);
    expect(registry.requests.filter((url) => url.endsWith(layer.digest))).toHaveLength(1);
  });

  it("that gives another image's layer a name of its own does not spoil it for that one", async () => {
    const liar = registry.put(imageOf([layer], {}, { diffIds: [other.diffId] }), "liar:1");
    const honest = registry.put(imageOf([layer]), "honest:1");
    const [first, second] = await Promise.allSettled([images.pull(liar), images.pull(honest)]);
    expect([first.status, second.status]).toEqual(["rejected", "fulfilled"]);
    expect(readdirSync(path.join(dataDir, "layers"))).toEqual([layer.diffId.replace("sha256:", "")]);
  });

  it("has its configuration taken as data, not as orders", async () => {
    const image = await images.pull(
      registry.put(
        imageOf([layer], {
          Env: ["__proto__=polluted", "=nameless", "NOVALUE", "A=1", "A=2", "LD_PRELOAD=/tmp/evil.so"],
          User: "../../root",
          WorkingDir: "../../outside",
          Entrypoint: ["$(touch /tmp/mitos-escaped)"],
        }),
        "image:1",
      ),
    );
    expect(({} as Record<string, unknown>).polluted).toBeUndefined();
    expect(Object.entries(image.config.env)).toEqual([
      ["__proto__", "polluted"],
      ["A", "2"],
      ["LD_PRELOAD", "/tmp/evil.so"],
    ]);
    expect(image.config).toMatchObject({ user: "../../root", workdir: "/../../outside", entrypoint: ["$(touch /tmp/mitos-escaped)"] });
  });
});

/** An image that is whole but for one blob, about which its registry lies. */
function lyingAbout(blob: Blob, said: Parameters<ScriptedRegistry["lie"]>[1], how?: "same size"): string {
  const reference = registry.put(imageOf([layer]), "image:1");
  const body = how && said.body instanceof Uint8Array ? padded(said.body, blob.bytes.length) : said.body;
  registry.lie(blob.digest, { ...said, ...(body ? { body } : {}) });
  return reference;
}

function padded(bytes: Uint8Array, length: number): Uint8Array {
  const result = new Uint8Array(length);
  result.set(bytes.subarray(0, length));
  return result;
}

/** An image with members of its manifest replaced. */
function putManifest(members: object): string {
  const { config } = imageOf([layer]);
  const usual = { schemaVersion: 2, mediaType: mediaTypes.manifest, config: descriptor(config), layers: [descriptor(layer)] };
  return registry.put(withManifest({ ...usual, ...members }, config, [layer]), "image:1");
}

function withConfig(bytes: Uint8Array): string {
  const config = blobOf(mediaTypes.config, bytes);
  const manifest = { schemaVersion: 2, mediaType: mediaTypes.manifest, config: descriptor(config), layers: [descriptor(layer)] };
  return registry.put(withManifest(manifest, config, [layer]), "image:1");
}

function nestedIndexes(): string {
  let { index } = indexOf([{ image: imageOf([layer]), architecture: ourArchitecture }]);
  for (let depth = 0; depth < 10; depth++) {
    registry.putBlob(index);
    const manifests = [{ ...descriptor(index), platform: { os: "linux", architecture: ourArchitecture } }];
    index = json(mediaTypes.index, { schemaVersion: 2, mediaType: mediaTypes.index, manifests });
  }
  return registry.put({ index, images: [] }, "image:1");
}

function foreign(): { image: OciImage; architecture: string } {
  return { image: imageOf([layer as LayerBlob], {}, { architecture: foreignArchitecture }), architecture: foreignArchitecture };
}

function redirect(location: string): Parameters<ScriptedRegistry["lie"]>[1] {
  return { status: 307, headers: { location }, body: new Uint8Array() };
}

async function* endless(): AsyncGenerator<Uint8Array> {
  for (;;) yield new Uint8Array(64 << 10);
}

function leftPartial(): string[] {
  const dir = path.join(dataDir, "images/partial");
  mkdirSync(dir, { recursive: true });
  return readdirSync(dir);
}
