// Finds runsc, or gets one: built from its source where Go is, since newer ones are faster, else the distribution's package.
import { rmSync } from "node:fs";
import path from "node:path";
import { unpackDistributionPackages } from "./distribution-package.mjs";
import { cache, capture, SetupError } from "./run.mjs";
import { buildRunsc, builtVersion } from "./runsc-build.mjs";

/** The first release with the checkpoint flags that the driver needs (--exclude-committed-zero-pages, --compression). */
const oldestVersion = "20240401";
const built = path.join(cache, "runsc-built/runsc");
const packageFolder = path.join(cache, "runsc");
const unpacked = path.join(packageFolder, "usr/bin/runsc");

/** @returns a note about where it was found. */
export async function ensureRunsc(options) {
  const theirs = foreignRunsc();
  if (theirs) return note(theirs.where, theirs.path);
  const isBuilt = versionText(built).includes(builtVersion);
  // That of an earlier pin would be found before the distribution's.
  if (!isBuilt) rmSync(built, { force: true });
  const problem = isBuilt ? undefined : await buildRunsc(built, options);
  if (!problem) return note("built", built);
  if (!isUsable(unpacked)) {
    const { signal } = options;
    await unpackDistributionPackages(["runsc"], { folder: packageFolder, suites: suitesWithRunsc, remedy: installYourself, signal });
  }
  if (!isUsable(unpacked)) {
    throw new SetupError(`the distribution's runsc (${version(unpacked) || "unknown"}) is older than ${oldestVersion}`, installYourself);
  }
  return `${note("the distribution's", unpacked)}; ${problem}`;
}

/** The first usable one in the order in which the engine looks. */
export function findRunsc() {
  const ours = [built, unpacked].map((path) => ({ where: ".cache", path }));
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
