// Finds the programs that the tests of images need, or unpacks the distribution's packages into .cache/image-tools: a registry
// (docker-registry), a second implementation of image layouts (umoci), and what makes a Debian root from nothing (mmdebstrap; fakeroot
// where the user is not root and has no user ids to map).
import { existsSync, readdirSync } from "node:fs";
import path from "node:path";
import { unpackDistributionPackages } from "./distribution-package.mjs";
import { answers, cache } from "./run.mjs";

const folder = path.join(cache, "image-tools");
const remedy = "Install docker-registry, umoci, mmdebstrap and fakeroot so that they are on PATH.";

/** By the name of their packages. */
const tools = {
  "docker-registry": { command: "docker-registry" },
  umoci: { command: "umoci" },
  mmdebstrap: { command: "mmdebstrap", env: perlModules },
  fakeroot: { command: "fakeroot", unpackedCommand: "fakeroot-sysv", args: preloadedLibrary },
};

/**
 * @param names - of those that are needed
 * @returns a note about where they were found.
 */
export function ensureImageTools(names = Object.keys(tools)) {
  const missing = names.filter((name) => !findImageTool(name));
  if (missing.length === 0) return "found";
  // With those that are there, since the folder is emptied first.
  const unpacked = Object.keys(tools).filter((name) => missing.includes(name) || (!isOnPath(name) && findImageTool(name)));
  unpackDistributionPackages(unpacked, { folder, suites: ({ codename }) => [codename], remedy });
  const unusable = unpacked.filter((name) => !findImageTool(name));
  if (unusable.length > 0) throw new Error(`unpacked, but does not start: ${unusable.join(", ")}`);
  return `${unpacked.join(", ")} unpacked into .cache`;
}

/**
 * @param name - one of `docker-registry`, `umoci`, `mmdebstrap`, `fakeroot`
 * @returns how to start it, or undefined
 */
export function findImageTool(name) {
  if (isOnPath(name)) return { command: tools[name].command, args: [], env: {} };
  const { command, unpackedCommand = command, args = () => [], env = () => ({}) } = tools[name];
  const candidate = { command: path.join(folder, "usr/bin", unpackedCommand), args: args(), env: env() };
  return existsSync(candidate.command) && answers(candidate.command, [...candidate.args, "--version"], candidate.env)
    ? candidate
    : undefined;
}

function isOnPath(name) {
  return answers(tools[name].command);
}

/** A plain machine has perl without the modules beside it, which are then unpacked with mmdebstrap. */
function perlModules() {
  const below = (dir) =>
    (existsSync(path.join(folder, dir)) ? readdirSync(path.join(folder, dir)) : []).map((name) => path.join(folder, dir, name));
  const libraries = below("usr/lib").flatMap((dir) => below(path.join(path.relative(folder, dir), "perl")));
  const modules = [...below("usr/share/perl"), ...libraries, path.join(folder, "usr/share/perl5")].filter((dir) => existsSync(dir));
  return modules.length === 0 ? {} : { PERL5LIB: modules.join(":") };
}

function preloadedLibrary() {
  const libraries = path.join(folder, "usr/lib");
  const library = (existsSync(libraries) ? readdirSync(libraries) : [])
    .map((dir) => path.join(libraries, dir, "libfakeroot/libfakeroot-sysv.so"))
    .find((file) => existsSync(file));
  return ["-l", library ?? "", "--faked", path.join(folder, "usr/bin/faked-sysv")];
}
