import { mkdir, mkdtemp, readdir, readFile, rm, stat, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { MitosError } from "@mitos/protocol";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { RootSource } from "../../driver.ts";
import type { Layer } from "../../layers/layer.ts";
import { LayerStore } from "../../layers/store.ts";
import { quiet } from "../../testing.ts";
import { ownLayers } from "../gvisor/own-layers.ts";
import { Images } from "./images.ts";

let dataDir = "";
let dir = "";
let hostRoot = { path: "", hash: "" };
let store: LayerStore;

beforeEach(async () => {
  dataDir = await mkdtemp(path.join(tmpdir(), "mitos-images-"));
  dir = path.join(dataDir, "microvm/images");
  hostRoot = { path: path.join(dataDir, "root-1.erofs"), hash: "1" };
  await writeFile(hostRoot.path, "made by the setup", { mode: 0o444 });
  store = await LayerStore.open({ dataDir, log: quiet });
});
afterEach(() => rm(dataDir, { recursive: true, force: true }));

const openImages = () => Images.open({ dir, hostRoot });
/** A layer of its own for each text. */
const layerOf = (text: string) =>
  store.add(
    (async function* () {
      yield ownLayers(Buffer.from(text)).upper;
    })(),
  );
const sourceOf = async (...texts: string[]): Promise<RootSource> => ({ kind: "layers", layers: await Promise.all(texts.map(layerOf)) });
const files = async () => (await readdir(dir)).sort();
/** Nobody needs anything but what is in use. */
const nothing = async () => new Set<string>();

it("makes an image of layers once however many ask for it, whole and read-only", async () => {
  const images = await openImages();
  const source = await sourceOf("one", "two");
  const uses = await Promise.all([images.use(source), images.use(source), images.use(source)]);
  expect(new Set(uses.map((use) => use.path)).size).toBe(1);
  expect(uses[0].path).toBe(images.pathOf(uses[0].key));
  expect(await files()).toEqual([`${uses[0].key}.erofs`]);
  const { mode, ino } = await stat(uses[0].path);
  expect(mode & 0o777).toBe(0o444);
  const image = await readFile(uses[0].path);
  expect(image.readUInt32LE(1024)).toBe(0xe0f5e1e2);
  expect(image.includes("two")).toBe(true);
  expect(image.includes("one")).toBe(false); // the upper layer has the same names
  // Another server of this data directory finds it.
  expect((await stat((await (await openImages()).use(source)).path)).ino).toBe(ino);
});

it("has an image for each order of layers", async () => {
  const images = await openImages();
  const keys = await Promise.all([sourceOf("one"), sourceOf("two"), sourceOf("one", "two"), sourceOf("two", "one")]).then((sources) =>
    Promise.all(sources.map(async (source) => (await images.use(source)).key)),
  );
  expect(new Set(keys).size).toBe(4);
});

it("keeps the host's root of a snapshot when the setup has made another", async () => {
  const first = await openImages();
  const { key, path: file } = await first.use({ kind: "host" });
  await rm(hostRoot.path);
  hostRoot = { path: path.join(dataDir, "root-2.erofs"), hash: "2" };
  await writeFile(hostRoot.path, "made by a later setup", { mode: 0o444 });
  const later = await openImages();
  const other = await later.use({ kind: "host" });
  expect(other.key).not.toBe(key);
  expect([await readFile(file, "utf8"), await readFile(other.path, "utf8")]).toEqual(["made by the setup", "made by a later setup"]);
  await later.removeUnused(async () => new Set([key]), []);
  expect(await files()).toEqual([`${key}.erofs`, `${other.key}.erofs`].sort());
  await later.removeUnused(nothing, []);
  expect(await files()).toEqual([`${other.key}.erofs`]);
});

it("copies the host's root where it cannot have a second name", async () => {
  const elsewhere = await mkdtemp("/dev/shm/mitos-images-");
  try {
    const images = await Images.open({ dir: elsewhere, hostRoot });
    const use = await images.use({ kind: "host" });
    expect(await readFile(use.path, "utf8")).toBe("made by the setup");
    expect((await stat(use.path)).mode & 0o777).toBe(0o444);
    expect(await readdir(elsewhere)).toEqual([path.basename(use.path)]);
  } finally {
    await rm(elsewhere, { recursive: true });
  }
});

it("removes what nothing needs, and never what is in use, of a template, a machine or a snapshot", async () => {
  const images = await openImages();
  const [used, ofTemplate, ofSnapshot, unneeded] = await Promise.all(
    ["used", "template", "snapshot", "unneeded"].map((text) => sourceOf(text)),
  );
  const uses = await Promise.all([used, ofTemplate, ofSnapshot, unneeded].map((source) => images.use(source!)));
  const [keyOfUsed, keyOfTemplate, keyOfSnapshot] = uses.map(({ key }) => key);
  for (const use of uses.slice(1)) use[Symbol.dispose]();
  await images.removeUnused(async () => new Set([keyOfSnapshot!]), [ofTemplate!]);
  expect(await files()).toEqual([keyOfUsed, keyOfTemplate, keyOfSnapshot].map((key) => `${key}.erofs`).sort());
  // Made again when it is wanted again.
  expect((await stat((await images.use(unneeded!)).path)).isFile()).toBe(true);
});

it("finds an image by its key, keeps it then, and says that one is gone", async () => {
  const images = await openImages();
  const source = await sourceOf("one");
  const made = await images.use(source);
  made[Symbol.dispose]();
  const known = await images.useKnown(made.key);
  expect(known.path).toBe(made.path);
  await images.removeUnused(nothing, []);
  expect(await files()).toEqual([`${made.key}.erofs`]);
  known[Symbol.dispose]();
  await images.removeUnused(nothing, []);
  // Who can make it is not told what the other one is told.
  const [gone, again] = await Promise.allSettled([images.useKnown(made.key), images.use(source)]);
  expect(gone).toMatchObject({ status: "rejected", reason: { code: "snapshot_incompatible" } });
  expect(again.status).toBe("fulfilled");
});

it("keeps the newest while the templates are not known, and removes what a killed server has left half-made", async () => {
  const images = await openImages();
  const names = Array.from({ length: 20 }, (_, index) => `layers-${index.toString(16).padStart(16, "0")}`);
  for (const [index, name] of names.entries()) {
    await writeFile(path.join(dir, `${name}.erofs`), "");
    await utimes(path.join(dir, `${name}.erofs`), index, index);
  }
  await writeFile(path.join(dir, `${names[0]}.erofs.partial-12ab`), "");
  await mkdir(path.join(dir, "somebody else's"));
  await images.removeUnused(async () => new Set([names[0]!]));
  expect(await files()).toEqual([...[names[0], ...names.slice(4)].map((name) => `${name}.erofs`), "somebody else's"].sort());
});

it("says that the tool is missing, and makes the image when it is there", async () => {
  const source = await sourceOf("one");
  const without = await Images.open({ dir, hostRoot, tool: "/nowhere/mitos-layers" });
  await expect(without.use(source)).rejects.toMatchObject({ code: "not_supported" });
  expect((await stat((await (await openImages()).use(source)).path)).isFile()).toBe(true);
});

it("leaves nothing behind when a layer cannot be read", async () => {
  const images = await openImages();
  const source = { kind: "layers", layers: [await layerOf("one")] as Layer[] } as const;
  await rm(path.join(source.layers[0]!.dir, "tree/opt"), { recursive: true });
  await expect(images.use(source)).rejects.toBeInstanceOf(MitosError);
  expect(await files()).toEqual([]);
  await images.removeUnused(nothing, []);
});

it("has no path for what is no key", async () => {
  const images = await openImages();
  expect(() => images.pathOf("../layers-0000000000000000")).toThrow(MitosError);
});
