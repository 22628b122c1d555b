// Finds the programs that the tests of images need, or unpacks the distribution's packages into .cache/image-tools: a registry
// (docker-registry), a second implementation of image layouts (umoci) and of file system images (erofs-utils), and what makes a Debian root
// from nothing (mmdebstrap; fakeroot where the user is not root and has no user ids to map).
import { existsSync, readdirSync } from "node:fs";
import path from "node:path";
import { unpackDistributionPackages } from "./distribution-package.mjs";
import { answers, cache } from "./run.mjs";

const folder = path.join(cache, "image-tools");
const remedy = "Install docker-registry, umoci, erofs-utils, mmdebstrap and fakeroot so that they are on PATH.";

/** By the name of their packages. */
const tools = {
  "docker-registry": { command: "docker-registry" },
  umoci: { command: "umoci" },
  "erofs-utils": { command: "fsck.erofs", version: "-V", env: libraries },
  mmdebstrap: { command: "mmdebstrap", env: perlModules },
  fakeroot: { command: "fakeroot", unpackedCommand: "fakeroot-sysv", args: preloadedLibrary },
};

/**
 * @param names - of those that are needed
 * @returns {Promise<string>} a note about where they were found
 */
export async function ensureImageTools(names = Object.keys(tools)) {
  const missing = names.filter((name) => !findImageTool(name));
  if (missing.length === 0) return "found";
  // With those that are there, since the folder is replaced.
  const unpacked = Object.keys(tools).filter((name) => missing.includes(name) || (!isOnPath(name) && findImageTool(name)));
  await unpackDistributionPackages(unpacked, { folder, suites: ({ codename }) => [codename], remedy });
  const unusable = unpacked.filter((name) => !findImageTool(name));
  if (unusable.length > 0) throw new Error(`unpacked, but does not start: ${unusable.join(", ")}`);
  return `${unpacked.join(", ")} unpacked into .cache`;
}

/**
 * @param name - one of `docker-registry`, `umoci`, `erofs-utils` (its fsck.erofs), `mmdebstrap`, `fakeroot`
 * @returns how to start it, or undefined
 */
export function findImageTool(name) {
  if (isOnPath(name)) return { command: tools[name].command, args: [], env: {} };
  const { command, unpackedCommand = command, version = "--version", args = () => [], env = () => ({}) } = tools[name];
  const candidate = { command: path.join(folder, "usr/bin", unpackedCommand), args: args(), env: env() };
  return existsSync(candidate.command) && answers(candidate.command, [...candidate.args, version], candidate.env) ? candidate : undefined;
}

function isOnPath(name) {
  const { command, version = "--version" } = tools[name];
  return answers(command, [version]);
}

/** Those that the machine does not have were unpacked with it. */
function libraries() {
  return { LD_LIBRARY_PATH: ["usr/lib", "lib"].flatMap(below).join(":") };
}

function below(dir) {
  return (existsSync(path.join(folder, dir)) ? readdirSync(path.join(folder, dir)) : []).map((name) => path.join(folder, dir, name));
}

/** A plain machine has perl without the modules beside it, which are then unpacked with mmdebstrap. */
function perlModules() {
  const architectures = below("usr/lib").flatMap((dir) => below(path.join(path.relative(folder, dir), "perl")));
  const modules = [...below("usr/share/perl"), ...architectures, path.join(folder, "usr/share/perl5")].filter((dir) => existsSync(dir));
  return modules.length === 0 ? {} : { PERL5LIB: modules.join(":") };
}

/** The machine may have the library without the program. */
function preloadedLibrary() {
  const library = [path.join(folder, "usr/lib"), "/usr/lib"]
    .flatMap((dir) => (existsSync(dir) ? readdirSync(dir).map((name) => path.join(dir, name)) : []))
    .map((dir) => path.join(dir, "libfakeroot/libfakeroot-sysv.so"))
    .find((file) => existsSync(file));
  return ["-l", library ?? "", "--faked", path.join(folder, "usr/bin/faked-sysv")];
}
