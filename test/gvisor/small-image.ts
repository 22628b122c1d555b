/** A root of a few programs of this host: a layer in milliseconds, with nothing to download. */

import { execFileSync } from "node:child_process";
import { readFileSync, realpathSync } from "node:fs";
import type { Layer } from "../../packages/engine/src/layers/layer.ts";
import type { LayerStore } from "../../packages/engine/src/layers/store.ts";
import { type TarEntry, tarOfEntries } from "../support/tar.ts";

/** Programs and the libraries that they load, at the places where they look for them. */
export function programs(...names: readonly string[]): TarEntry[] {
  const files = new Map<string, string>();
  for (const name of names) {
    const file = execFileSync("/bin/sh", ["-c", `command -v ${name}`], { encoding: "utf8" }).trim();
    files.set(`bin/${name}`, realpathSync(file));
    for (const [, library] of execFileSync("ldd", [file], { encoding: "utf8" }).matchAll(/(\/\S+) \(0x/g)) {
      files.set(library!.slice(1), realpathSync(library!));
    }
  }
  return [...files].map(([name, file]) => ({ name, content: readFileSync(file), mode: 0o755 }));
}

export async function addLayer(store: LayerStore, entries: Iterable<TarEntry>): Promise<Layer> {
  const tar = tarOfEntries(entries);
  return store.add(
    (async function* () {
      yield tar;
    })(),
  );
}
