// The addresses of the lock file's packages. npm takes a package that has one from there, or from its cache; of each other it first asks the
// registry for the description of all versions that were ever published.
import { readFileSync } from "node:fs";
import path from "node:path";
import { root } from "./run.mjs";

export const lockFile = path.join(root, "package-lock.json");

/**
 * Stands for the registry that npm is set to, whichever it is: `replace-registry-host` in .npmrc puts that in its place. No such name can
 * ever exist (RFC 2606).
 */
const registry = "https://registry.invalid";

/** The text that the lock file should have: each package that comes from a registry with its address there. */
export function addressedLock() {
  const lock = JSON.parse(readFileSync(lockFile, "utf8"));
  for (const [folder, entry] of Object.entries(lock.packages)) {
    if (entry.integrity === undefined) continue;
    const { name, version, resolved: _, ...others } = entry;
    const resolved = addressOf(name ?? folder.split("node_modules/").at(-1), version);
    lock.packages[folder] = { ...(name && { name }), version, resolved, ...others };
  }
  return `${JSON.stringify(lock, undefined, 2)}\n`;
}

/** Where every registry has a package: `@scope/name` stands whole in the path, and without its scope in the file's name. */
function addressOf(name, version) {
  return `${registry}/${name}/-/${name.split("/").at(-1)}-${version}.tgz`;
}
