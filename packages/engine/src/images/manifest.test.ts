import { describe, expect, it } from "vitest";
import { seededRandom } from "../link/seeded-random.ts";
import {
  choosePlatform,
  type Descriptor,
  fits,
  ociConfig,
  ociLayerGzip,
  ociManifest,
  parseConfiguration,
  parseManifest,
} from "./manifest.ts";

const digest = `sha256:${"a".repeat(64)}` as const;
const config = { mediaType: ociConfig, digest, size: 10 };
const layer = { mediaType: ociLayerGzip, digest, size: 20 };
const image = { schemaVersion: 2, mediaType: ociManifest, config, layers: [layer] };
const index = "application/vnd.oci.image.index.v1+json";

const bytes = (value: unknown) => Buffer.from(JSON.stringify(value));
const parse = (value: unknown, contentType = "") => parseManifest(bytes(value), contentType, "an image");
const refusal = (cause: RegExp) => expect.objectContaining({ code: "build_failed", message: expect.stringMatching(cause) });

describe("a manifest", () => {
  it.each([
    ["by its own word", image, ""],
    ["by the answer's word", { ...image, mediaType: undefined }, ociManifest],
    ["by the answer's word with parameters", { ...image, mediaType: undefined }, `${ociManifest}; charset=utf-8`],
    ["of Docker", { ...image, mediaType: "application/vnd.docker.distribution.manifest.v2+json" }, "text/plain"],
  ])("is read %s", (_, value, contentType) => {
    expect(parse(value, contentType)).toEqual({
      manifest: { config: { mediaType: ociConfig, digest, bytes: 10 }, layers: [{ mediaType: ociLayerGzip, digest, bytes: 20 }] },
    });
  });

  it.each([
    ["is no JSON", "{", /not JSON/],
    ["is a list", [], /not an object/],
    ["is of schema 1", { schemaVersion: 1, fsLayers: [] }, /schema 1/],
    ["is of no schema", { ...image, schemaVersion: "2" }, /schemaVersion/],
    ["is of another kind", { ...image, mediaType: "application/json" }, /of the kind/],
    ["is an index and an image at once", { ...image, manifests: [] }, /at once/],
    ["has no config", { ...image, config: undefined }, /config/],
    [
      "has a config that is none",
      { ...image, config: { ...config, mediaType: "application/vnd.cncf.helm.config.v1+json" } },
      /no container's image/,
    ],
    ["has too large a config", { ...image, config: { ...config, size: 9 * 1024 * 1024 } }, /more than/],
    ["has no layers", { ...image, layers: {} }, /not a list/],
    ["has too many layers", { ...image, layers: Array.from({ length: 257 }, () => layer) }, /257/],
    [
      "has a layer that registries may not give",
      { ...image, layers: [{ ...layer, mediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" }] },
      /distributed/,
    ],
    [
      "has a non-distributable layer",
      { ...image, layers: [{ ...layer, mediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip" }] },
      /distributed/,
    ],
    ["has a layer of another kind", { ...image, layers: [{ ...layer, mediaType: "application/wasm" }] }, /of the kind/],
    ["has a layer without a size", { ...image, layers: [{ ...layer, size: "20" }] }, /size/],
    ["has a layer of negative size", { ...image, layers: [{ ...layer, size: -1 }] }, /size/],
    ["has a layer of a fraction of a byte", { ...image, layers: [{ ...layer, size: 1.5 }] }, /size/],
    ["has a giant layer", { ...image, layers: [{ ...layer, size: 2 ** 50 }] }, /more than/],
    ["has a layer with a path as digest", { ...image, layers: [{ ...layer, digest: "sha256:../../etc" }] }, /digest/],
    ["has a layer with another digest", { ...image, layers: [{ ...layer, digest: `sha512:${"a".repeat(128)}` }] }, /digest/],
    ["has null for a layer", { ...image, layers: [null] }, /not an object/],
  ])("is refused that %s", (_, value, cause) => {
    expect(() => parseManifest(typeof value === "string" ? Buffer.from(value) : bytes(value), "", "an image")).toThrow(refusal(cause));
  });

  it("is refused that is nested without end, and that is no text", () => {
    expect(() => parseManifest(Buffer.from("[".repeat(1_000_000)), "", "an image")).toThrow(refusal(/not JSON/));
    expect(() => parseManifest(Buffer.from([0xff, 0xfe]), "", "an image")).toThrow(refusal(/not JSON/));
  });
});

describe("an index", () => {
  const entry = (architecture: string, variant?: string, os = "linux") => ({
    ...image.config,
    mediaType: ociManifest,
    platform: { os, architecture, variant },
  });
  const parsed = (...manifests: object[]) => {
    const value = parse({ schemaVersion: 2, mediaType: index, manifests });
    if (!("index" in value)) throw new Error("no index");
    return value.index;
  };
  const positionOf = (found: Descriptor | undefined, all: readonly Descriptor[]) => (found ? all.indexOf(found) : -1);

  it.each([
    ["amd64", [entry("arm64"), entry("amd64")], 1],
    ["amd64", [entry("amd64", "v3"), entry("amd64")], 1],
    ["amd64", [entry("amd64", "v3")], -1],
    ["amd64", [entry("amd64", undefined, "windows"), entry("unknown", undefined, "unknown")], -1],
    ["arm64", [entry("arm", "v7"), entry("arm64", "v8")], 1],
    ["arm64", [entry("arm64")], 0],
    ["arm64", [entry("amd64")], -1],
    ["amd64", [], -1],
    ["amd64", [{ ...config, mediaType: ociManifest }], 0],
    [
      "amd64",
      [
        { ...config, mediaType: ociManifest },
        { ...config, mediaType: ociManifest },
      ],
      -1,
    ],
  ])("for %s of %j names entry %d", (architecture, manifests, wanted) => {
    const found = parsed(...manifests);
    expect(positionOf(choosePlatform(found, architecture), found.manifests)).toBe(wanted);
  });

  it.each([
    ["of too many manifests", Array.from({ length: 1001 }, () => entry("amd64"))],
    ["with a giant manifest", [{ ...entry("amd64"), size: 5 * 1024 * 1024 }]],
    ["with a platform that is none", [{ ...entry("amd64"), platform: "linux/amd64" }]],
  ])("%s is refused", (_, manifests) => {
    expect(() => parsed(...manifests)).toThrow(expect.objectContaining({ code: "build_failed" }));
  });
});

describe("a configuration", () => {
  const value = { os: "linux", architecture: "amd64", rootfs: { type: "layers", diff_ids: [digest] } };
  const parseConfig = (settings: unknown, more: object = {}) =>
    parseConfiguration(bytes({ ...value, config: settings, ...more }), "an image");

  it("is read with everything that it says", () => {
    const settings = {
      Env: ["PATH=/bin", "EMPTY=", "A=b=c", "nothing", "PATH=/usr/bin"],
      WorkingDir: "app",
      User: "1000:100",
      Entrypoint: ["/entry"],
      Cmd: ["a", "b"],
      Labels: { x: "y" },
    };
    expect(parseConfig(settings)).toEqual({
      platform: { os: "linux", architecture: "amd64", variant: "" },
      diffIds: [digest],
      config: {
        env: { PATH: "/usr/bin", EMPTY: "", A: "b=c" },
        workdir: "/app",
        user: "1000:100",
        entrypoint: ["/entry"],
        command: ["a", "b"],
        labels: { x: "y" },
      },
    });
  });

  it.each([undefined, null, {}, { Env: null, Cmd: null, Entrypoint: null, Labels: null, User: "", WorkingDir: "" }])(
    "may say nothing: %j",
    (settings) => {
      expect(parseConfig(settings).config).toEqual({ env: {}, workdir: "", user: "", entrypoint: [], command: [], labels: {} });
    },
  );

  it("cannot change what all objects have", () => {
    const text = JSON.stringify({ ...value, config: { Env: ["__proto__=x"] } }).replace('"Env"', '"__proto__":{"User":"evil"},"Env"');
    expect(parseConfiguration(Buffer.from(text), "an image").config.user).toBe("");
    expect(({} as { User?: string }).User).toBeUndefined();
  });

  it.each([
    ["Env is no list", { Env: "A=b" }, {}],
    ["Env has a number", { Env: [1] }, {}],
    ["Env has a zero byte", { Env: ["A=\0"] }, {}],
    ["Env is giant", { Env: ["A", "B"].map((name) => `${name}=${"x".repeat(70_000)}`) }, {}],
    ["Cmd is a text", { Cmd: "sh" }, {}],
    ["User is a number", { User: 0 }, {}],
    ["Labels is a list", { Labels: ["x"] }, {}],
    ["it is a list", [], {}],
    ["its layers are none", {}, { rootfs: { type: "other" } }],
    ["a layer has no digest", {}, { rootfs: { type: "layers", diff_ids: ["x"] } }],
  ])("is refused when %s", (_, settings, more) => {
    expect(() => parseConfig(settings, more)).toThrow(expect.objectContaining({ code: "build_failed" }));
  });

  it.each([
    ["linux", "amd64", "", "amd64", true],
    ["linux", "arm64", "v8", "arm64", true],
    ["linux", "arm64", "", "arm64", true],
    ["linux", "arm64", "", "amd64", false],
    ["windows", "amd64", "", "amd64", false],
  ])("for %s/%s%s fits %s: %s", (os, architecture, variant, wanted, answer) => {
    expect(fits({ os, architecture, variant }, wanted)).toBe(answer);
  });
});

it("whatever stands at whatever place, it is read or refused with build_failed", () => {
  const { next, seed } = seededRandom();
  const random = () => next() / 2 ** 32;
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)]!;
  const odd = () =>
    pick<unknown>([
      null,
      true,
      -1,
      1e308,
      "",
      "\0",
      "x".repeat(5000),
      [],
      {},
      [null],
      [[]],
      { mediaType: [] },
      "sha256:",
      Number.MAX_SAFE_INTEGER,
    ]);
  const spoil = (value: unknown): unknown => {
    if (random() < 0.15) return odd();
    if (Array.isArray(value)) return value.map(spoil);
    if (typeof value !== "object" || value === null) return value;
    return Object.fromEntries(
      Object.entries(value).map(([name, member]) => [random() < 0.05 ? pick(["__proto__", "toString", ""]) : name, spoil(member)]),
    );
  };
  const configuration = {
    os: "linux",
    architecture: "amd64",
    rootfs: { type: "layers", diff_ids: [digest] },
    config: { Env: ["A=b"], Cmd: ["a"], Entrypoint: ["b"], Labels: { a: "b" }, User: "c", WorkingDir: "/d" },
  };
  const list = {
    schemaVersion: 2,
    mediaType: index,
    manifests: [{ ...config, mediaType: ociManifest, platform: { os: "linux", architecture: "amd64" } }],
  };
  let [taken, refused] = [0, 0];
  for (let round = 0; round < 3000; round++) {
    const wrong = bytes(spoil(pick<object>([image, list, configuration])));
    for (const read of [() => parseManifest(wrong, "", "an image"), () => parseConfiguration(wrong, "an image")]) {
      try {
        read();
        taken += 1;
      } catch (error) {
        refused += 1;
        expect(error, `seed ${seed}, ${wrong}`).toMatchObject({ code: "build_failed" });
      }
    }
  }
  expect(Math.min(taken, refused)).toBeGreaterThan(0);
});
