// QEMU as a folder that is the whole root file system of its process: the program, every library that it loads, its firmware. A process that is
// shut into it sees nothing of the host.
import { chmodSync, copyFileSync, existsSync, mkdirSync, readdirSync, realpathSync, symlinkSync } from "node:fs";
import path from "node:path";
import { unpackDistributionPackages } from "../distribution-package.mjs";
import { answers, capture, SetupError } from "../run.mjs";
import { ensurePart, hashOf, hashOfFile } from "./parts.mjs";

/** Goes into the part's key: a change of what is done below makes it anew. */
const recipe = 1;
const oldest = [8, 2];
const name = "qemu-system-x86_64";
const program = `/usr/bin/${name}`;
/** Of QEMU's firmware only what the machine type `microvm` starts from. */
const firmware = ["qboot.rom"];
const remedy = `Install QEMU ${oldest.join(".")} or newer (the package qemu-system-x86 or your distribution's own) so that ${name} is on PATH.`;

/** @returns a note about it */
export function ensureVmm() {
  const found = onPath();
  const from = { recipe, program: found ? { path: found, hash: hashOfFile(found) } : "distribution" };
  return ensurePart("vmm", from, async (work) => {
    const source = found ? { program: found, folder: "/" } : await unpack(path.join(work, "unpacked"));
    const root = path.join(work, "root");
    const files = gather(source, root);
    const build = buildOf(startedIn(root));
    const key = hashOf([recipe, build, files]).slice(0, 12);
    return { made: root, name: `vmm-${key}`, record: { program, build } };
  });
}

function onPath() {
  const place = (process.env.PATH ?? "")
    .split(":")
    .map((dir) => path.join(dir, name))
    .find((file) => path.isAbsolute(file) && existsSync(file));
  return place && answers(place) && isNewEnough(capture(place, ["--version"])) ? realpathSync(place) : undefined;
}

function isNewEnough(text) {
  const [, major, minor] = /version (\d+)\.(\d+)/.exec(text) ?? [];
  return Number(major) > oldest[0] || (Number(major) === oldest[0] && Number(minor) >= oldest[1]);
}

async function unpack(folder) {
  await unpackDistributionPackages(["qemu-system-x86", "qemu-system-data"], {
    folder,
    remedy,
    suites: ({ id, codename }) =>
      id === "ubuntu" ? [[codename, `${codename}-updates`]] : [[codename, `${codename}-backports`], [codename]],
  });
  const unpacked = path.join(folder, program);
  const version = capture(unpacked, ["--version"], { env: withLibraries(folder), remedy });
  if (!isNewEnough(version))
    throw new SetupError(`the distribution's QEMU is older than ${oldest.join(".")}: ${firstLine(version)}`, remedy);
  return { program: unpacked, folder };
}

/** Copies what the program needs to where it will look for it. @returns what was copied: place and hash of the content */
function gather({ program: source, folder }, root) {
  for (const dir of ["usr/bin", "usr/lib", "usr/lib64", "usr/share/qemu", "dev", "proc", "tmp"])
    mkdirSync(path.join(root, dir), { recursive: true });
  for (const dir of ["bin", "lib", "lib64"]) symlinkSync(`usr/${dir}`, path.join(root, dir));
  const wanted = new Map([[program, source]]);
  for (const module of modulesBeside(folder)) wanted.set(placeOf(module, folder), module);
  for (const file of [...wanted.values()]) for (const [place, library] of librariesOf(file, folder)) wanted.set(place, library);
  for (const file of firmware) wanted.set(`/usr/share/qemu/${file}`, firmwareFile(source, file));
  const files = [...wanted].sort(([a], [b]) => (a < b ? -1 : 1));
  return files.map(([place, from]) => {
    const target = path.join(root, place);
    mkdirSync(path.dirname(target), { recursive: true });
    copyFileSync(from, target);
    chmodSync(target, 0o555);
    return [place, hashOfFile(target)];
  });
}

/** Of the program's parts that some distributions keep apart, the one that we use. */
function modulesBeside(folder) {
  const dirs = [...libraryFolders(folder), path.join(folder, "usr/lib"), path.join(folder, "usr/lib64")].map((dir) =>
    path.join(dir, "qemu"),
  );
  return dirs
    .filter((dir) => existsSync(dir))
    .flatMap((dir) => readdirSync(dir).map((file) => path.join(dir, file)))
    .filter((file) => path.basename(file).startsWith("accel-tcg-x86"));
}

function firmwareFile(source, file) {
  const shared = path.join(path.dirname(source), "../share");
  const found = ["qemu", "qemu-kvm"].map((dir) => path.join(shared, dir, file)).find((place) => existsSync(place));
  if (!found) throw new SetupError(`QEMU's firmware ${file} is missing`, "Install it (Debian and Ubuntu: the package qemu-system-data).");
  return found;
}

/**
 * The loader, where programs ask for it, and all libraries, in the one folder that it looks through in any case: where libc is. It has no list of
 * other folders there.
 */
function librariesOf(file, folder) {
  const lines = capture("ldd", [file], { env: withLibraries(folder), remedy }).split("\n");
  const missing = lines.find((line) => line.includes("not found"));
  if (missing) throw new SetupError(`${path.basename(file)} does not start: ${missing.trim()}`, remedy);
  const found = lines.map((line) => /^\s*(?:(\S+) => )?(\/\S+) \(0x/.exec(line)).filter(Boolean);
  const libc = found.find(([, name]) => name === "libc.so.6");
  if (!libc) throw new SetupError(`${file} is not linked with libc.so.6`, remedy);
  const place = path.dirname(placeOf(libc[2], folder));
  return found.map(([, name, library]) => [name ? path.join(place, path.basename(name)) : placeOf(library, folder), realpathSync(library)]);
}

/** A root of ours has `/lib` and its like as links, whatever the host has. */
function placeOf(file, folder) {
  const place = file.startsWith(`${folder}/`) ? file.slice(folder.length) : file;
  return place.replace(/^\/(bin|lib|lib64)\//, "/usr/$1/");
}

function withLibraries(folder) {
  return folder === "/" ? process.env : { ...process.env, LD_LIBRARY_PATH: libraryFolders(folder).join(":") };
}

function libraryFolders(folder) {
  return ["usr/lib", "lib"]
    .map((dir) => path.join(folder, dir))
    .filter((dir) => existsSync(dir))
    .flatMap((dir) =>
      readdirSync(dir)
        .filter((entry) => entry.endsWith("-linux-gnu"))
        .map((entry) => path.join(dir, entry)),
    );
}

/** What the program says when it sees nothing but this folder; where that cannot be tried, through the folder's own loader. */
function startedIn(root) {
  const shut = ["chroot", root, program, "--version"];
  const wrapped = process.getuid() === 0 ? shut : ["unshare", "--user", "--map-root-user", ...shut];
  if (answers("unshare", ["--user", "--map-root-user", "true"]) || process.getuid() === 0) {
    return capture(wrapped[0], wrapped.slice(1), { env: { PATH: process.env.PATH }, remedy });
  }
  const loader = path.join(root, "lib64/ld-linux-x86-64.so.2");
  return capture(loader, ["--inhibit-cache", "--library-path", libraryFolders(root).join(":"), path.join(root, program), "--version"], {
    remedy,
  });
}

/** `QEMU 10.0.2 (Debian 1:10.0.2+ds-2)` */
function buildOf(text) {
  return firstLine(text).replace("emulator version ", "");
}

function firstLine(text) {
  return text.trim().split("\n", 1)[0];
}
