// Finds runsc, or unpacks the distribution's package into .cache/runsc.
import path from "node:path";
import { unpackDistributionPackages } from "./distribution-package.mjs";
import { answers, cache, capture, SetupError } from "./run.mjs";

/** The first release with the checkpoint flags that the driver needs (--exclude-committed-zero-pages, --compression). */
const oldestVersion = "20240401";
const folder = path.join(cache, "runsc");
const unpacked = path.join(folder, "usr/bin/runsc");

/** @returns a note about where it was found. */
export function ensureRunsc() {
  const found = findRunsc();
  if (found) return `${found.where}, ${version(found.path)}`;
  unpackDistributionPackages(["runsc"], { folder, suites: suitesWithRunsc, remedy: installYourself });
  if (!isUsable(unpacked)) {
    throw new SetupError(`the distribution's runsc (${version(unpacked) || "unknown"}) is older than ${oldestVersion}`, installYourself);
  }
  return `unpacked into .cache, ${version(unpacked)}`;
}

/** The first usable one in the order in which the engine looks. */
export function findRunsc() {
  const candidates = [
    { where: "MITOS_RUNSC", path: process.env.MITOS_RUNSC },
    { where: "PATH", path: "runsc" },
    { where: ".cache", path: unpacked },
  ];
  return candidates.find(({ path }) => path && isUsable(path));
}

const installYourself = `Install gVisor's runsc (${oldestVersion} or newer) so that it is on PATH, or set MITOS_RUNSC to it.`;

function version(binary) {
  try {
    return /(20\d{6})/.exec(capture(binary, ["--version"]))?.[1] ?? "";
  } catch {
    return "";
  }
}

function isUsable(binary) {
  return answers(binary) && version(binary) >= oldestVersion;
}

/** Newest first: a backport is newer than the release's own package. */
function suitesWithRunsc({ id, codename }) {
  return id === "ubuntu" ? [`${codename}-backports`, `${codename}-updates`, codename] : [`${codename}-backports`, codename];
}
