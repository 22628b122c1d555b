// Unpacks a package of the machine's distribution into a folder. Nothing is installed and no privilege is needed: apt works on lists and a
// cache of its own, so the machine's configuration stays as it is.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { answers, cache, capture, SetupError } from "./run.mjs";

/**
 * Unpacks `name`, with those of its dependencies that the machine does not have.
 *
 * @param options.folder - is emptied first
 * @param options.suites - the release `{ id, codename }` → suites of its archive, in the order in which they are tried, one at a time
 * @param options.remedy - what the user can do when there is no such package
 */
export function unpackDistributionPackage(name, { folder, suites, remedy }) {
  if (!answers("apt-get") || !answers("dpkg-deb")) {
    throw new SetupError(`${name} is missing, and this machine has no apt to take it from`, remedy);
  }
  const release = readRelease();
  const work = path.join(cache, "apt");
  for (const suite of release.codename ? suites(release) : []) {
    rmSync(work, { recursive: true, force: true });
    const options = privateApt(work, release, suite, { name, remedy });
    try {
      capture("apt-get", [...options, "update"]);
      capture("apt-get", [...options, "download", ...withDependencies(name, options)], { cwd: work });
    } catch {
      continue; // This suite does not have it; the next one may.
    }
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { recursive: true });
    for (const archive of readdirSync(work).filter((file) => file.endsWith(".deb"))) {
      capture("dpkg-deb", ["-x", path.join(work, archive), folder]);
    }
    rmSync(work, { recursive: true, force: true });
    return;
  }
  rmSync(work, { recursive: true, force: true });
  throw new SetupError(`no package of ${name} was found for ${release.id} ${release.codename}`, remedy);
}

/** What apt would install for it on this machine. */
function withDependencies(name, options) {
  const simulation = capture("apt-get", [...options, "install", "--simulate", "--no-install-recommends", name]);
  const missing = [...simulation.matchAll(/^Inst (\S+)/gm)].map(([, wanted]) => wanted);
  return [...new Set([name, ...missing])];
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

/** apt options for a configuration of our own: one suite from the machine's mirror, own lists and cache. */
function privateApt(work, { id }, suite, wanted) {
  for (const folder of ["lists/partial", "cache/archives/partial", "etc"]) mkdirSync(path.join(work, folder), { recursive: true });
  const keyring = [`/usr/share/keyrings/${id}-archive-keyring.gpg`, "/usr/share/keyrings/debian-archive-keyring.gpg"].find((file) =>
    existsSync(file),
  );
  const components = id === "ubuntu" ? "main universe" : "main";
  const list = path.join(work, "etc/sources.list");
  writeFileSync(list, `deb ${keyring ? `[signed-by=${keyring}] ` : ""}${machineMirror(id, wanted)} ${suite} ${components}\n`);
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
function machineMirror(id, { name, remedy }) {
  const folder = "/etc/apt/sources.list.d";
  const files = ["/etc/apt/sources.list", ...(existsSync(folder) ? readdirSync(folder).map((name) => path.join(folder, name)) : [])];
  const text = files
    .filter((file) => existsSync(file) && /\.(list|sources)$/.test(file))
    .map((file) => readFileSync(file, "utf8"))
    .join("\n");
  const addresses =
    text.match(/^(?:deb\b.*?|URIs:.*?)(https?:\/\/\S+)/gm)?.map((line) => /https?:\/\/\S+/.exec(line)[0].replace(/\/$/, "")) ?? [];
  const mirror = addresses.find((address) => address.endsWith(`/${id}`));
  if (!mirror) throw new SetupError(`the machine's apt sources name no mirror to take ${name} from`, remedy);
  return mirror;
}
