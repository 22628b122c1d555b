// Finds runsc, or gets one: built from its source where Go is, since newer ones are faster, else the distribution's package.
import { chmodSync, mkdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import path from "node:path";
import { unpackDistributionPackages } from "./distribution-package.mjs";
import { answers, cache, capture, removeLeftovers, root, SetupError } from "./run.mjs";

/** The first release with the checkpoint flags that the driver needs (--exclude-committed-zero-pages, --compression). */
const oldestVersion = "20240401";
const packageFolder = path.join(cache, "runsc");
const unpacked = path.join(packageFolder, "usr/bin/runsc");
/** A Go module: the release to build, and the checksums of all that it is made of. */
const module = path.join(root, "scripts/runsc");
const gvisor = "gvisor.dev/gvisor";
const built = path.join(cache, "runsc-built/runsc");
/** The first one that fetches the Go that a module asks for. */
const oldestGo = { major: 1, minor: 21 };

/** @returns a note about where it was found. */
export function ensureRunsc() {
  const theirs = foreignRunsc();
  if (theirs) return note(theirs.where, theirs.path);
  const problem = isPinned(built) ? undefined : build();
  if (!problem) return note("built", built);
  if (!isUsable(unpacked)) {
    unpackDistributionPackages(["runsc"], { folder: packageFolder, suites: suitesWithRunsc, remedy: installYourself });
  }
  if (!isUsable(unpacked)) {
    throw new SetupError(`the distribution's runsc (${version(unpacked) || "unknown"}) is older than ${oldestVersion}`, installYourself);
  }
  return `${note("the distribution's", unpacked)}; ${problem}, a newer one would be faster`;
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

/**
 * Builds the release that the module names. Modules, the Go that they ask for and what is compiled lie in a folder of their own, and go with it.
 *
 * @returns why there is none: nothing that keeps the set-up from going on with another one
 */
function build() {
  if (!hasGo()) return `Go ${oldestGo.major}.${oldestGo.minor} or newer was not found`;
  removeLeftovers(cache, "runsc-build-");
  const work = path.join(cache, `runsc-build-${process.pid}`);
  mkdirSync(work, { recursive: true });
  const binary = path.join(work, "runsc");
  const stamp = `-s -w -X ${gvisor}/runsc/version.version=${pinnedVersion()}`;
  try {
    capture(
      "go",
      ["build", "-mod=readonly", "-modcacherw", "-trimpath", "-buildvcs=false", `-ldflags=${stamp}`, "-o", binary, `${gvisor}/runsc`],
      {
        cwd: module,
        env: {
          ...process.env,
          CGO_ENABLED: "0",
          GOWORK: "off",
          GOFLAGS: "",
          GOMODCACHE: path.join(work, "modules"),
          GOCACHE: path.join(work, "compiled"),
          GOTOOLCHAIN: "auto",
        },
      },
    );
    if (!isPinned(binary)) return "the runsc that was built does not start";
    chmodSync(binary, 0o755);
    mkdirSync(path.dirname(built), { recursive: true });
    renameSync(binary, built);
    return undefined;
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    return `building it failed (${error.message.split("\n").at(-1)})`;
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

function hasGo() {
  const env = { ...process.env, GOTOOLCHAIN: "local" };
  if (!answers("go", ["version"], env)) return false;
  const [, major, minor] = /\bgo(\d+)\.(\d+)/.exec(capture("go", ["version"], { env })) ?? [];
  return Number(major) > oldestGo.major || (Number(major) === oldestGo.major && Number(minor) >= oldestGo.minor);
}

function pinnedVersion() {
  return new RegExp(`${gvisor} (v\\S+)`).exec(readFileSync(path.join(module, "go.mod"), "utf8"))[1];
}

function isPinned(binary) {
  return versionText(binary).includes(pinnedVersion());
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

function isUsable(binary) {
  return version(binary) >= oldestVersion;
}

/** Newest first: a backport is newer than the release's own package. */
function suitesWithRunsc({ id, codename }) {
  return id === "ubuntu" ? [`${codename}-backports`, `${codename}-updates`, codename] : [`${codename}-backports`, codename];
}
