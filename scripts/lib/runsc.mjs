// Finds runsc, or unpacks the distribution's package into .cache/runsc. Nothing is installed and no privilege is needed: apt works on
// lists and a cache of its own, so the machine's configuration stays as it is.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { answers, cache, capture, SetupError } from "./run.mjs";

/** The first release with the checkpoint flags that the driver needs (--exclude-committed-zero-pages, --compression). */
const oldestVersion = "20240401";
const unpacked = path.join(cache, "runsc/usr/bin/runsc");

/** @returns a note about where it was found. */
export function ensureRunsc() {
  const found = findRunsc();
  if (found) return `${found.where}, ${version(found.path)}`;
  unpackPackage();
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

function unpackPackage() {
  if (!answers("apt-get") || !answers("dpkg-deb")) {
    throw new SetupError("runsc is missing, and this machine has no apt to take it from", installYourself);
  }
  const release = readRelease();
  const work = path.join(cache, "apt");
  for (const suite of suitesWithRunsc(release)) {
    rmSync(work, { recursive: true, force: true });
    const options = privateApt(work, release, suite);
    try {
      capture("apt-get", [...options, "update"]);
      capture("apt-get", [...options, "download", "runsc"], { cwd: work });
    } catch {
      continue; // This suite has no runsc; the next one may.
    }
    const archive = readdirSync(work).find((name) => name.endsWith(".deb"));
    const target = path.join(cache, "runsc");
    rmSync(target, { recursive: true, force: true });
    capture("dpkg-deb", ["-x", path.join(work, archive), target]);
    rmSync(work, { recursive: true, force: true });
    return;
  }
  throw new SetupError(`no package of runsc was found for ${release.id} ${release.codename}`, installYourself);
}

function readRelease() {
  const fields = Object.fromEntries(
    readFileSync("/etc/os-release", "utf8")
      .split("\n")
      .map((line) => /^([A-Z_]+)="?([^"]*)"?$/.exec(line))
      .filter(Boolean)
      .map((match) => [match[1], match[2]]),
  );
  return { id: fields.ID ?? "linux", codename: fields.VERSION_CODENAME ?? "" };
}

/** Newest first: a backport is newer than the release's own package. */
function suitesWithRunsc({ id, codename }) {
  if (!codename) return [];
  return id === "ubuntu" ? [`${codename}-backports`, `${codename}-updates`, codename] : [`${codename}-backports`, codename];
}

/** apt options for a configuration of our own: one suite from the machine's mirror, own lists and cache. */
function privateApt(work, { id }, suite) {
  for (const folder of ["lists/partial", "cache/archives/partial", "etc"]) mkdirSync(path.join(work, folder), { recursive: true });
  const keyring = [`/usr/share/keyrings/${id}-archive-keyring.gpg`, "/usr/share/keyrings/debian-archive-keyring.gpg"].find((file) =>
    existsSync(file),
  );
  const components = id === "ubuntu" ? "main universe" : "main";
  const list = path.join(work, "etc/sources.list");
  writeFileSync(list, `deb ${keyring ? `[signed-by=${keyring}] ` : ""}${machineMirror(id)} ${suite} ${components}\n`);
  return Object.entries({
    "Dir::Etc::sourcelist": list,
    "Dir::Etc::sourceparts": "/dev/null",
    "Dir::Etc::preferencesparts": "/dev/null",
    "Dir::State::lists": path.join(work, "lists"),
    "Dir::Cache": path.join(work, "cache"),
    "APT::Sandbox::User": "",
    "Acquire::Languages": "none",
  }).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
}

/** The mirror in the machine's own source lists (one-line or deb822); security and third-party lists do not carry the suite. */
function machineMirror(id) {
  const folder = "/etc/apt/sources.list.d";
  const files = ["/etc/apt/sources.list", ...(existsSync(folder) ? readdirSync(folder).map((name) => path.join(folder, name)) : [])];
  const text = files
    .filter((file) => existsSync(file) && /\.(list|sources)$/.test(file))
    .map((file) => readFileSync(file, "utf8"))
    .join("\n");
  const addresses =
    text.match(/^(?:deb\b.*?|URIs:.*?)(https?:\/\/\S+)/gm)?.map((line) => /https?:\/\/\S+/.exec(line)[0].replace(/\/$/, "")) ?? [];
  const mirror = addresses.find((address) => address.endsWith(`/${id}`));
  if (!mirror) throw new SetupError("the machine's apt sources name no mirror to take runsc from", installYourself);
  return mirror;
}
