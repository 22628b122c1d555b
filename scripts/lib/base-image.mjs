// Makes the real image of the tests, once: a small Debian out of the machine's own archive, as an OCI layout in .cache/base-image. Two
// layers: Debian with apt (`base`), and Python on top (`python`).
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { debianArchive, debianRoot, packagesLayer, startImageTool, thinOut } from "./debian-root.mjs";
import { ensureImageTools } from "./image-tools.mjs";
import { cache } from "./run.mjs";

const parent = path.join(cache, "base-image");

const python = ["python3"];
/** Goes into the key: a change of the recipe below makes the image anew. */
const recipe = 2;

/** What the image says about running it. */
const configuration = [
  ["--config.env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
  ["--config.env", "LANG=C.UTF-8"],
  ["--config.cmd", "bash"],
].flat();

/** @returns {Promise<string>} a note about where it is */
export async function ensureBaseImage() {
  const folder = baseImageFolder();
  if (existsSync(folder)) return path.basename(folder);
  await ensureImageTools();
  mkdirSync(parent, { recursive: true });
  const partial = mkdtempSync(path.join(parent, "partial-"));
  const work = mkdtempSync(path.join(os.tmpdir(), "mitos-base-image-"));
  try {
    const layout = path.join(partial, "layout");
    const base = path.join(work, "base.tar");
    debianRoot(base);
    const layers = [
      { tag: "base", onto: undefined, tar: base },
      { tag: "python", onto: "base", tar: await packagesLayer(python, { work, base }) },
    ];
    umoci("init", "--layout", layout);
    for (const { tag, onto, tar } of layers) {
      if (onto) umoci("tag", "--image", `${layout}:${onto}`, tag);
      else umoci("new", "--image", `${layout}:${tag}`);
      umoci("raw", "add-layer", "--image", `${layout}:${tag}`, tar);
      umoci("config", "--image", `${layout}:${tag}`, ...(onto ? [] : configuration));
    }
    umoci("gc", "--layout", layout);
    becomeFolder(layout, folder);
    forgetOthers(folder);
  } finally {
    for (const dir of [partial, work]) rmSync(dir, { recursive: true, force: true });
  }
  return `made, ${path.basename(folder)}`;
}

/** The layout's folder, whether it is there or not. */
export function baseImageFolder() {
  const { codename, mirror, components } = debianArchive();
  const key = createHash("sha256")
    .update(JSON.stringify([recipe, codename, mirror, components, python, thinOut, configuration]))
    .digest("hex");
  return path.join(parent, `${codename}-${process.arch}-${key.slice(0, 12)}`);
}

function umoci(...args) {
  startImageTool("umoci", args);
}

/** Whole or not at all; when another process was faster, its folder is as good. */
function becomeFolder(partial, folder) {
  try {
    renameSync(partial, folder);
  } catch (error) {
    if (!existsSync(folder)) throw error;
  }
}

function forgetOthers(folder) {
  for (const name of readdirSync(parent)) {
    if (name !== path.basename(folder) && !name.startsWith("partial-")) rmSync(path.join(parent, name), { recursive: true, force: true });
  }
}
