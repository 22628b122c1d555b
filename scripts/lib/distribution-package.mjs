// Unpacks packages of the machine's distribution into a folder. Nothing is installed and no privilege is needed: apt works on lists and a
// cache of its own, so the machine's configuration stays as it is.
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { answers, cache, captureBeside, removeLeftovers, SetupError } from "./run.mjs";

/**
 * Unpacks packages, with those of their dependencies that the machine does not have.
 *
 * @param wanted - their names, or the release `{ id, codename }` → their names
 * @param options.folder - is replaced, when all of them are unpacked
 * @param options.suites - the release → suites of its archive, in the order in which they are tried: one at a time, or, as a list in the
 *   list, several together, the last of which is preferred
 * @param options.dependencies - only dependencies whose names match are unpacked. Default: all
 * @param options.remedy - what the user can do when there are no such packages
 * @param options.have - the `status` file of the root for which dependencies are missing. Default: the machine's own
 * @param options.onArchive - told each archive that was unpacked, while it is there
 * @param options.signal - ends it: rejects, and leaves nothing
 */
export async function unpackDistributionPackages(wanted, { folder, suites, remedy, have, dependencies, onArchive = () => {}, signal }) {
  const release = readRelease();
  const names = typeof wanted === "function" ? wanted(release) : wanted;
  const what = names.join(", ");
  requireApt(what, remedy);
  const work = path.join(cache, `apt-${process.pid}`);
  const partial = `${folder}.partial-${process.pid}`;
  removeLeftovers(cache, "apt-");
  removeLeftovers(path.dirname(folder), `${path.basename(folder)}.partial-`);
  try {
    for (const together of release.codename ? suites(release) : []) {
      rmSync(work, { recursive: true, force: true });
      const options = privateApt(work, release, [together].flat(), { what, remedy, have });
      try {
        await captureBeside("apt-get", [...options, "update"], { signal });
        const all = await withDependencies(names, options, { dependencies, signal });
        await captureBeside("apt-get", [...options, "download", ...all], { cwd: work, signal });
      } catch {
        signal?.throwIfAborted();
        continue; // This archive does not have them; the next one may.
      }
      mkdirSync(partial, { recursive: true });
      const archives = readdirSync(work).filter((file) => file.endsWith(".deb"));
      for (const archive of archives) {
        await captureBeside("dpkg-deb", ["-x", path.join(work, archive), partial], { signal });
        onArchive(path.join(work, archive));
      }
      rmSync(folder, { recursive: true, force: true });
      renameSync(partial, folder);
      return;
    }
  } finally {
    for (const dir of [work, partial]) rmSync(dir, { recursive: true, force: true });
  }
  throw new SetupError(`no package of ${what} was found for ${release.id} ${release.codename}`, remedy);
}

/** The distribution's archive as the machine itself uses it. */
export function machineArchive(what, remedy) {
  requireApt(what, remedy);
  const { id, codename } = readRelease();
  return { codename, mirror: machineMirror(id, { what, remedy }), components: components(id) };
}

function requireApt(what, remedy) {
  if (answers("apt-get") && answers("dpkg-deb")) return;
  throw new SetupError(`${what} cannot be found, and this machine has no apt to take it from`, remedy);
}

/** What apt would install for them on this machine. */
async function withDependencies(names, options, { dependencies = /^/, signal }) {
  const simulation = await captureBeside("apt-get", [...options, "install", "--simulate", "--no-install-recommends", ...names], { signal });
  const missing = [...simulation.matchAll(/^Inst (\S+)/gm)].map(([, wanted]) => wanted);
  return [...new Set([...names, ...missing.filter((name) => dependencies.test(name))])];
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

/** apt options for a configuration of our own: these suites from the machine's mirror, own lists and cache. */
function privateApt(work, { id }, suites, { what, remedy, have }) {
  for (const folder of ["lists/partial", "cache/archives/partial", "etc"]) mkdirSync(path.join(work, folder), { recursive: true });
  const keyring = [`/usr/share/keyrings/${id}-archive-keyring.gpg`, "/usr/share/keyrings/debian-archive-keyring.gpg"].find((file) =>
    existsSync(file),
  );
  const list = path.join(work, "etc/sources.list");
  const source = `deb ${keyring ? `[signed-by=${keyring}] ` : ""}${machineMirror(id, { what, remedy })}`;
  writeFileSync(list, suites.map((suite) => `${source} ${suite} ${components(id)}\n`).join(""));
  return Object.entries({
    "APT::Default-Release": suites.at(-1),
    "Dir::Etc::sourcelist": list,
    "Dir::Etc::sourceparts": "/dev/null",
    "Dir::Etc::preferencesparts": "/dev/null",
    "Dir::State::lists": path.join(work, "lists"),
    ...(have ? { "Dir::State::status": have } : {}),
    "Dir::Cache": path.join(work, "cache"),
    "APT::Sandbox::User": "",
    "Acquire::Languages": "none",
  }).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
}

function components(id) {
  return id === "ubuntu" ? "main universe" : "main";
}

/** The mirror in the machine's own source lists (one-line or deb822); security and third-party lists do not carry the suite. */
function machineMirror(id, { what, remedy }) {
  const folder = "/etc/apt/sources.list.d";
  const files = ["/etc/apt/sources.list", ...(existsSync(folder) ? readdirSync(folder).map((name) => path.join(folder, name)) : [])];
  const text = files
    .filter((file) => existsSync(file) && /\.(list|sources)$/.test(file))
    .map((file) => readFileSync(file, "utf8"))
    .join("\n");
  const addresses =
    text.match(/^(?:deb\b.*?|URIs:.*?)(https?:\/\/\S+)/gm)?.map((line) => /https?:\/\/\S+/.exec(line)[0].replace(/\/$/, "")) ?? [];
  const mirror = addresses.find((address) => address.endsWith(`/${id}`));
  if (!mirror) throw new SetupError(`the machine's apt sources name no mirror to take ${what} from`, remedy);
  return mirror;
}
