// Finds a Chromium for the tests, or unpacks the one of the npm package @sparticuz/chromium into .cache/chromium: a headless shell for
// x86-64 with the few libraries that a plain Linux machine may lack. The lock file pins its content.
import { chmodSync, createReadStream, createWriteStream, existsSync, mkdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import path from "node:path";
import { pipeline } from "node:stream/promises";
import { createBrotliDecompress } from "node:zlib";
import { answers, cache, capture, root, SetupError } from "./run.mjs";

const source = path.join(root, "node_modules/@sparticuz/chromium");

/** @returns a note about where it was found. */
export async function ensureChromium() {
  if (findChromium()) return findChromium().where;
  if (process.arch !== "x64") {
    throw new SetupError(`there is no Chromium for ${process.arch} to unpack`, "Install your distribution's package chromium.");
  }
  if (!existsSync(source))
    throw new SetupError("the npm package of Chromium is missing", "Run npm run setup, which installs the packages of the tests.");
  await unpack();
  if (!findChromium()) throw new SetupError("the unpacked Chromium does not start", "Install your distribution's package chromium.");
  return "unpacked into .cache";
}

/**
 * The machine's own, else the unpacked one.
 *
 * @returns its path and the environment to start it with, or undefined
 */
export function findChromium() {
  const folder = unpackedFolder();
  const candidates = [
    { where: "/usr/bin", path: "/usr/bin/chromium", env: {} },
    { where: ".cache", path: path.join(folder, "chromium"), env: {} },
    { where: ".cache, with its libraries", path: path.join(folder, "chromium"), env: { LD_LIBRARY_PATH: path.join(folder, "lib") } },
  ];
  return candidates.find((candidate) => answers(candidate.path, ["--version"], candidate.env));
}

/** One for each version: after an update the new one is unpacked. */
function unpackedFolder() {
  const manifest = path.join(source, "package.json");
  const version = existsSync(manifest) ? JSON.parse(readFileSync(manifest, "utf8")).version : "none";
  return path.join(cache, "chromium", version);
}

async function unpack() {
  const folder = unpackedFolder();
  const work = `${folder}.partial`;
  rmSync(path.dirname(folder), { recursive: true, force: true });
  mkdirSync(work, { recursive: true });
  const libraries = path.join(work, "libraries.tar");
  await Promise.all([decompress("chromium.br", path.join(work, "chromium")), decompress("al2023.tar.br", libraries)]);
  chmodSync(path.join(work, "chromium"), 0o755);
  capture("tar", ["-xf", libraries, "-C", work]);
  rmSync(libraries);
  renameSync(work, folder);
}

async function decompress(name, target) {
  await pipeline(createReadStream(path.join(source, "bin", name)), createBrotliDecompress(), createWriteStream(target));
}
