// Finds runsc, or gets one: built from its source where Go is, since newer ones are faster, else the distribution's package. For the bench
// the package as well.
import { existsSync, rmSync } from "node:fs";
import path from "node:path";
import { unpackDistributionPackages } from "./distribution-package.mjs";
import { cache, capture, root, SetupError } from "./run.mjs";
import { buildRunsc, builtVersion } from "./runsc-build.mjs";

/** The first release with the checkpoint flags that the driver needs (--exclude-committed-zero-pages, --compression). */
const oldestVersion = "20240401";
const built = path.join(cache, "runsc-built/runsc");
const packageFolder = path.join(cache, "runsc");
/** Where the distribution's is unpacked to. The engine takes it only where there is no other one. */
export const distributionRunsc = binaryIn(packageFolder);

/** @returns a note about where it was found. */
export async function ensureRunsc(options) {
  const theirs = foreignRunsc();
  if (theirs) return note(theirs.where, theirs.path);
  const isBuilt = versionText(built).includes(builtVersion);
  // That of an earlier pin would be found before the distribution's.
  if (!isBuilt) rmSync(built, { force: true });
  const problem = isBuilt ? undefined : await buildRunsc(built, options);
  if (!problem) return note("built", built);
  await unpackOnce(packageFolder, options);
  return `${note("the distribution's", distributionRunsc)}; ${problem}`;
}

/**
 * The distribution's beside whichever Mitos uses: what is done with it by hand is what Mitos is judged by. It can be done without.
 *
 * @param options.folder - what it is unpacked to
 * @returns a note: its version, or why there is none
 */
export async function ensureBaselineRunsc({ signal, folder = packageFolder }) {
  try {
    await unpackOnce(folder, { signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    return `none: ${error.message.split("\n")[0]}; the bench judges by the runsc that Mitos uses`;
  }
  return note("the distribution's", binaryIn(folder));
}

/** Folder → its unpacking, which the two above share when they are under way at once. */
const unpacking = new Map();

function unpackOnce(folder, options) {
  if (!unpacking.has(folder)) unpacking.set(folder, unpack(folder, options));
  return unpacking.get(folder);
}

/** One that is too old is kept, so that it is not fetched again by every set-up. */
async function unpack(folder, { signal }) {
  const binary = binaryIn(folder);
  if (!existsSync(binary)) {
    await unpackDistributionPackages(["runsc"], { folder, suites: suitesWithRunsc, remedy: installYourself, signal });
  }
  if (isUsable(binary)) return;
  const tooOld = `the distribution's runsc (${version(binary) || "unknown"}) is older than ${oldestVersion}`;
  throw new SetupError(`${tooOld}; to look for a newer one, remove ${path.relative(root, folder)}`, installYourself);
}

function binaryIn(folder) {
  return path.join(folder, "usr/bin/runsc");
}

/** The first usable one in the order in which the engine looks. */
export function findRunsc() {
  const ours = [built, distributionRunsc].map((path) => ({ where: ".cache", path }));
  return foreignRunsc() ?? ours.find(({ path }) => isUsable(path));
}

function foreignRunsc() {
  const candidates = [
    { where: "MITOS_RUNSC", path: process.env.MITOS_RUNSC },
    { where: "PATH", path: "runsc" },
  ];
  return candidates.find(({ path }) => path && isUsable(path));
}

const installYourself = `Install gVisor's runsc (${oldestVersion} or newer) so that it is on PATH, or set MITOS_RUNSC to it.`;

function note(where, binary) {
  return `${where}, ${version(binary)}`;
}

function isUsable(binary) {
  return version(binary) >= oldestVersion;
}

function version(binary) {
  return /(20\d{6})/.exec(versionText(binary))?.[1] ?? "";
}

function versionText(binary) {
  try {
    return capture(binary, ["--version"]);
  } catch {
    return "";
  }
}

/** Newest first: a backport is newer than the release's own package. */
function suitesWithRunsc({ id, codename }) {
  return id === "ubuntu" ? [`${codename}-backports`, `${codename}-updates`, codename] : [`${codename}-backports`, codename];
}
